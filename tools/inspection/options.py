"""Options that the inspection commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from allinone.common.errors import InputError

Size = Literal["nano", "tiny", "small", "base", "large", "huge"]
"""The keys of allinone.model.SIZES, which --help must list without importing torch."""
PatchOrder = Literal["raster", "shuffled"]
Device = Literal["auto", "cpu", "cuda"]
FigureFormat = Literal["png", "html", "webp"]


@dataclass(frozen=True, kw_only=True)
class InspectionOptions:
    """Which model to load."""

    checkpoint: Path
    """Run (its best weights, else its newest checkpoint), checkpoint, model folder, file of
    weights, or hub id (owner/name)."""
    device: Device = "auto"
    """auto takes the GPU if torch finds one."""


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Which files to write."""

    formats: tuple[FigureFormat, ...] = ("png", "html")
    """File formats."""


def require_one(first: tuple[str, object], second: tuple[str, object]) -> None:
    """Raise InputError unless exactly one of two options, as (flag, value), is given."""
    given = [flag for flag, value in (first, second) if value is not None]
    if len(given) != 1:
        problem = "not both" if given else "none was given"
        raise InputError(f"give either {first[0]} or {second[0]}; {problem}")
