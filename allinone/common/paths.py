"""Locations of the project's own files."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder `allinone`; in a source tree, links in it point to the folders of the root."""
ROOT = PACKAGE.parent
"""The folder that must be on sys.path; in a source tree, the project's root."""
