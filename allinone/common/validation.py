"""Ranges of option values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from allinone.common.errors import InputError

MAX_PIXELS = 1 << 26
"""Pixels of a picture that is decoded by default, 8192 x 8192: 200 MB as RGB. The largest video of
H.264 and HEVC, level 6.2, has 35.7 million."""


@dataclass(frozen=True)
class Bounds:
    """A range of finite numbers."""

    low: float = 0
    """Smallest value."""
    high: float = math.inf
    """Largest value."""
    above: bool = False
    """Exclude `low`."""
    below: bool = False
    """Exclude `high`."""

    def hold(self, value: float) -> bool:
        """Whether the value is finite and in the range."""
        # NaN and inf are read from the command line as floats
        return (
            math.isfinite(value)
            and (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


COUNT = Bounds(1)
NOT_NEGATIVE = Bounds(0)
POSITIVE = Bounds(0, above=True)
SHARE = Bounds(0, 1)


def require(config: Any, bounds: Bounds, names: Iterable[str]) -> None:
    """Check fields of a configuration against a range.

    Args:
        config: Any object. A field that is None is not checked; every item of a tuple is.
        bounds: The allowed range.
        names: Fields to check.

    Raises:
        InputError: A value is out of range; the message names the command-line option.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not bounds.hold(number):
                raise InputError(f"--{name.replace('_', '-')} must be {bounds}, got {number}")
