"""Bad clips met while loading: counted, named once per epoch, capped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from data.batch import BadClip
from data.errors import DataError

ENOUGH = 200
"""Clips seen before the share of bad ones is judged."""


class BadClipShareError(DataError):
    """Too many clips cannot be used."""


class Ledger:
    """One JSON line per bad clip in `folder`/rank-N.jsonl; raises BadClipShareError above the share."""

    def __init__(self, folder: Path | None, rank: int, max_share: float) -> None:
        self._path = folder / f"rank-{rank}.jsonl" if folder else None
        self._max_share = max_share
        self._seen = self._bad = 0
        self._reasons: Counter[str] = Counter()
        self._named: set[tuple[str, str, int]] = set()

    def add(self, seen: int, bad: tuple[BadClip, ...]) -> None:
        """Count a batch of `seen` clips, of which some were bad."""
        self._seen += seen
        self._bad += len(bad)
        for clip in bad:
            self._reasons[clip.reason] += 1
            if (clip.dataset, clip.clip, clip.epoch) not in self._named:
                self._named.add((clip.dataset, clip.clip, clip.epoch))
                self._write(vars(clip))
        if self._seen >= ENOUGH and self._bad > self._max_share * self._seen:
            worst = ", ".join(f"{reason} ({number})" for reason, number in self._reasons.most_common(3))
            raise BadClipShareError(
                f"{self._bad} of {self._seen} clips are bad, more than --max-bad-share {self._max_share}: {worst}. They are named in "
                f"{self._path}; prepare the "
                "data again, or raise the option"
            )

    def _write(self, record: dict[str, object]) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
