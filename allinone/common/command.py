"""Types of argparse options that the tools share."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return int(text)
