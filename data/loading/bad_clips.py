"""The bad-clip log: counts the clips that loading could not use, names them, and caps their share.

Where they are replaced: data/loading/replacement.py.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from pathlib import Path

from allinone.common.errors import DataError
from allinone.common.write_guard import WriteGuard
from allinone.data.loading.batch import BadClip

MIN_CLIPS_SEEN = 200
"""Clips to see before the share of bad ones can stop a run."""


class BadClipShareError(DataError):
    """More clips than --max-bad-share cannot be used."""


class BadClipLog:
    """Writes one JSON line per bad clip and epoch, also across restarts.

    Args:
        folder: Holds one file rank-N.jsonl per rank; None writes nothing.
        rank: This data-parallel rank.
        max_share: Share of bad clips above which `add` raises.
    """

    def __init__(self, folder: Path | None, rank: int, max_share: float) -> None:
        self._path = folder / f"rank-{rank}.jsonl" if folder else None
        self._guard = WriteGuard(self._path or "the log of bad clips")
        self._max_share = max_share
        self._seen = self._bad = 0
        self._reasons: Counter[str] = Counter()
        self._named: dict[str, dict[int, set[str]]] = {}
        """Data set → epoch → clips that the file names; the two newest epochs only."""
        self._read_back()

    def add(self, seen: int, bad: tuple[BadClip, ...]) -> None:
        """Count a batch.

        Args:
            seen: Good clips of the batch.
            bad: Clips that were replaced while making it.

        Raises:
            BadClipShareError: The share of bad clips exceeds the limit by more than chance allows.
        """
        self._seen += seen + len(bad)
        self._bad += len(bad)
        for clip in bad:
            self._reasons[clip.reason] += 1
            if self._is_new(clip.dataset, clip.clip, clip.epoch):
                self._write(vars(clip))
        if self._seen >= MIN_CLIPS_SEEN and self._bad > self._allowed():
            worst = ", ".join(
                f"{reason} ({number})" for reason, number in self._reasons.most_common(3)
            )
            raise BadClipShareError(
                f"{self._bad} of {self._seen} clips are bad, clearly more than --max-bad-share"
                f" {self._max_share}: {worst}. They are listed in {self._path}; prepare the data"
                " again, or raise --max-bad-share"
            )

    def _allowed(self) -> float:
        """Return how many bad clips chance may produce at the allowed share.

        Five standard deviations of a Poisson distribution above its mean. Every rank decides on its
        own: without this margin, one of 128 ranks stops healthy data after a few hundred clips.
        """
        expected = self._max_share * self._seen
        return expected + 5 * math.sqrt(expected)

    def _read_back(self) -> None:
        """Remember what an earlier process of this rank has named; skip a line that was cut off."""
        if not self._path:
            return
        with self._guard():
            content = self._path.read_bytes() if self._path.exists() else b""
            for line in content.splitlines():
                with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                    record = json.loads(line)
                    self._is_new(str(record["dataset"]), str(record["clip"]), int(record["epoch"]))

    def _is_new(self, dataset: str, clip: str, epoch: int) -> bool:
        """Return whether this clip is met for the first time in this epoch, and remember it.

        Args:
            dataset: Name of the data set.
            clip: Name of the clip.
            epoch: Epoch of the position at which it was met.
        """
        epochs = self._named.setdefault(dataset, {})
        clips = epochs.setdefault(epoch, set())
        # Positions in flight never span more than two epochs of a data set.
        for old in [known for known in epochs if known < epoch - 1]:
            del epochs[old]
        if clip in clips:
            return False
        clips.add(clip)
        return True

    def _write(self, record: dict[str, object]) -> None:
        if not self._path:
            return
        with self._guard():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Closed after each line, so that others can read it at once. Not fsynced: what a crash
            # loses is written again when the resumed run meets the clip.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
