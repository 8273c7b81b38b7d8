"""Where the project's own files are."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder `allinone`; in a source tree its sub-packages are links to the folders beside it."""
ROOT = PACKAGE.parent
"""What must be on sys.path; in a source tree the project's root."""
