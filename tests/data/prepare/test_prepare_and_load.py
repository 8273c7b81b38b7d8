"""Moved to tests.data.helpers."""

from tests.data.helpers import ROOT, small_demo

__all__ = ["ROOT", "small_demo"]
