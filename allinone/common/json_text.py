"""Parses JSON of unknown origin: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """Parse a JSON text.

    Python refuses integers of more than 4,300 digits; they become floats here (infinite ones), so
    that they spoil their own record only.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        try:
            return json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:
            return json.loads(content, parse_int=integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def integer(digits: str) -> int | float:
    """An integer of JSON; a float if Python would refuse it."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)
