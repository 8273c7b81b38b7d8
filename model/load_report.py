"""What happened to each tensor when weights were loaded, and the error for weights that misfit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from allinone.common.errors import AllInOneError

_SHOWN = 12
"""Names of one kind in an error message; files can hold thousands."""


class ConversionError(AllInOneError, ValueError):
    """A state dict does not fit.

    Args:
        missing: Names that the file lacks.
        unexpected: Names that the model lacks.
        misshaped: Names with both shapes.
        hint: The likely cause and what to change.
        source: File, folder or hub id, in front of the message.
    """

    def __init__(
        self,
        missing: list[str],
        unexpected: list[str],
        misshaped: list[str],
        hint: str = "",
        source: str = "",
    ) -> None:
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        parts = [hint] if hint else []
        for names, title in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (misshaped, "mis-shaped"),
        ):
            if names:
                shown = grouped(names)
                more = " …" if len(shown) > _SHOWN else ""
                parts.append(f"{len(names)} {title}: {', '.join(shown[:_SHOWN])}{more}")
        where = f"{source}: " if source else ""
        super().__init__(f"{where}the weights do not fit the model: {'; '.join(parts)}")


@dataclass
class LoadReport:
    """Lists every tensor that was not loaded unchanged."""

    source: str = ""
    """File, folder or hub id that the weights come from."""
    loaded: int = 0
    """Number of tensors, resized ones included."""
    resized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Tensors of the file that were not used."""
    initialised: list[str] = field(default_factory=list)
    """Parameters that the file lacks."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded" + (f" from {self.source}" if self.source else "")]
        for title in ("resized", "ignored", "initialised", "notes"):
            entries = grouped(getattr(self, title))
            lines += [f"{title.removesuffix('s')}: {entry}" for entry in entries]
        return "\n".join(lines)


def grouped(entries: Sequence[str]) -> list[str]:
    """Merge entries that differ only in the block number into one, with `*` and a count."""
    counts: dict[str, int] = {}
    for entry in entries:
        name, *rest = entry.split(":", 1)
        pattern = ":".join([re.sub(r"(?<=\.)\d+(?=\.)", "*", name), *rest])
        counts[pattern] = counts.get(pattern, 0) + 1
    return [
        entry if number == 1 else f"{entry} ({number} tensors)" for entry, number in counts.items()
    ]
