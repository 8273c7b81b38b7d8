"""Human-readable durations, byte sizes and counts; values that JSON can represent; foreign text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters other than line feed and tab, and Unicode's line separators: a terminal obeys
them (move, hide, rename the window, answer with a text that is typed into the shell)."""
BIDIRECTIONAL = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that reorder the text around them, so that a name is read as another one."""
_UNPRINTABLE = re.compile(f"{CONTROL.pattern}|{BIDIRECTIONAL.pattern}")


def printable(text: str) -> str:
    """Text for a terminal or a log: CONTROL and BIDIRECTIONAL become escapes, as JSON has them."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`printable` text in which line ends and tabs are escapes too, for a line or a table."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shortened(text: str, most: int = 300) -> str:
    """The beginning of a text of any length: matplotlib lays out and draws every character."""
    return text if len(text) <= most else f"{text[:most]} …"


def printable_values(value: Any) -> Any:
    """A copy of nested values whose texts, keys included, are `printable`."""
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_values(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def duration(seconds: float) -> str:
    """Format a duration: 12.3 s, 4 min 05 s, 3 h 12 min, 2 d 04 h; '?' if NaN or infinite."""
    if not 0 <= seconds < float("inf"):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600:02d} h"


def size(number: float) -> str:
    """Format bytes in binary units: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def count(number: float) -> str:
    """Format a large count with an SI prefix: 1.2 k, 109.9 M, 3.1 G."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f}"


def percent_text(share: float) -> str:
    """Format a share as percent: 41 %, 0.3 %, < 0.1 %."""
    percent = 100 * share
    if percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 1 else f"{percent:.0f} %"


def finite(value: Any) -> Any:
    """A copy of nested values for JSON, in which NaN and infinite numbers are None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
