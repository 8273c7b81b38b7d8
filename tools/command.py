"""What the command lines of the tools share: errors that a user can mend, exit codes, types of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

EXIT_USER = 2


class InputError(ValueError):
    """Something that a user gave cannot be used; the message names the option."""


def run_tool(tool: Callable[[], None]) -> int:
    """Exit code of a tool: 0, or 2 after an InputError, which is printed without a traceback."""
    try:
        tool()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


def at_least_one(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return int(text)
