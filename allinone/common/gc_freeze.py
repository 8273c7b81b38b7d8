"""Exempts everything imported so far from garbage collection.

The fork server of allinone.common.processes imports this module last. Without it, the collector's
marks would copy, in every child, the memory pages of imported modules that all children share.
"""

import gc

gc.collect()
gc.freeze()
