"""What the command lines of the tools share: errors that a user can mend, exit codes, types of
options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from allinone.common.errors import DataError

EXIT_USER = 2


class InputError(ValueError):
    """Something that a user gave cannot be used; the message names the option."""


def run_tool(tool: Callable[[], int | None]) -> int:
    """Exit code of a tool: its own or 0, and 2 after an InputError or a DataError, which is printed
    without a traceback."""
    try:
        return tool() or 0
    except (InputError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def at_least_one(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return int(text)
