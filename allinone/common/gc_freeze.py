"""Imported last by the fork server of data.processes: the collector leaves alone what has been
imported, since its marks would copy, in every child, the pages that all share."""

import gc

gc.collect()
gc.freeze()
