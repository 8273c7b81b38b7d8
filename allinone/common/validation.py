"""What the values of options may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; `low` and `high` belong to it unless `above` and `below` say otherwise.
    Infinity and NaN never do."""

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Whether the value lies within."""
        return (
            math.isfinite(value)
            and (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        return (
            low
            if self.high == math.inf
            else f"{low} and {'below' if self.below else 'at most'} {self.high:g}"
        )


COUNT = Bounds(1)
NOT_NEGATIVE = Bounds(0)
POSITIVE = Bounds(0, above=True)
SHARE = Bounds(0, 1)


def require(config: Any, bounds: Bounds, names: Iterable[str]) -> None:
    """ValueError that names the option where a value (each of a tuple; None stands for a default)
    lies outside."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not bounds.hold(number):
                raise ValueError(f"--{name.replace('_', '-')} must be {bounds}, got {number}")
