"""`python -m allinone` is the command `allinone`."""

import sys

from allinone.cli import main

sys.exit(main())
