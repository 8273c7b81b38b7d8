"""Bad clips met while loading: counted, named once per epoch, capped."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.loading.batch import BadClip

ENOUGH = 200
"""Clips seen before the share of bad ones is judged."""


class BadClipShareError(DataError):
    """Too many clips cannot be used."""


class Ledger:
    """One JSON line per bad clip and epoch in `folder`/rank-N.jsonl, also over restarts; raises
    BadClipShareError above the share."""

    def __init__(self, folder: Path | None, rank: int, max_share: float) -> None:
        self._path = folder / f"rank-{rank}.jsonl" if folder else None
        self._max_share = max_share
        self._seen = self._bad = 0
        self._reasons: Counter[str] = Counter()
        self._named: dict[str, dict[int, set[str]]] = {}
        """Data set → epoch → clips that stand in the file; of the newest epochs only."""
        self._recall()

    def add(self, seen: int, bad: tuple[BadClip, ...]) -> None:
        """Count a batch of `seen` clips, and those that were bad before as many were found."""
        self._seen += seen + len(bad)
        self._bad += len(bad)
        for clip in bad:
            self._reasons[clip.reason] += 1
            if self._is_new(clip.dataset, clip.clip, clip.epoch):
                self._write(vars(clip))
        if self._seen >= ENOUGH and self._bad > self._most():
            worst = ", ".join(
                f"{reason} ({number})" for reason, number in self._reasons.most_common(3)
            )
            raise BadClipShareError(
                f"{self._bad} of {self._seen} clips are bad, clearly more than --max-bad-share"
                f" {self._max_share}: {worst}. They are named in {self._path}; prepare the data"
                " again, or raise the option"
            )

    def _most(self) -> float:
        """Bad clips among those seen that chance may give at the share allowed: five standard
        deviations of a Poisson number above what is expected. Every rank judges for itself; without
        that room, one of 128 ends a run of healthy data after a few hundred clips.
        """
        expected = self._max_share * self._seen
        return expected + 5 * math.sqrt(expected)

    def _recall(self) -> None:
        """What an earlier process of this rank has named; a line that its end cut short counts as
        none."""
        if self._path and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    record = json.loads(line)
                    self._is_new(record["dataset"], record["clip"], record["epoch"])

    def _is_new(self, dataset: str, clip: str, epoch: int) -> bool:
        """Whether it is met for the first time in this epoch; remembers it."""
        epochs = self._named.setdefault(dataset, {})
        clips = epochs.setdefault(epoch, set())
        for old in [
            known for known in epochs if known < epoch - 1
        ]:  # positions of two epochs are never further apart
            del epochs[old]
        if clip in clips:
            return False
        clips.add(clip)
        return True

    def _write(self, record: dict[str, object]) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
