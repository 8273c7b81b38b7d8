"""Which clip stands at which position: a pure function of (seed, position), by grain's MapDataset. The state of a run is one integer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

logging.set_verbosity(logging.ERROR)  # else grain warns, when it is imported, that it found no jax, which it does not need
import grain.experimental  # noqa: E402
import grain.python as grain  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402


@dataclass(frozen=True)
class Place:
    """What a global position holds."""

    dataset: int
    epoch: int
    row: int


class _Places:
    """A grain source: row numbers of one data set."""

    def __init__(self, dataset: int, rows: int) -> None:
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> tuple[int, int]:
        return self._dataset, int(row)


@functools.lru_cache(maxsize=16)
def _windows(rows: int, windows: int, seed: int, epoch: int) -> tuple[int, NDArray[np.int64]]:
    """Where an epoch's first window begins, and the order of its windows."""
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(rows)), random.permutation(windows)


class _WindowShuffle(grain.MapDataset[tuple[int, int]]):
    """Rows in windows of neighbours: the windows in an order of their own in every epoch, and the rows of each. They begin elsewhere in each,
    so that other rows meet; what they leave over comes last. (Grain's shuffle of that name keeps the order of the windows, and reads beyond the last
    row where they do not divide the rows.)"""

    def __init__(self, parent: grain.MapDataset[tuple[int, int]], window: int, seed: int) -> None:
        super().__init__(parent)
        self._rows, self._window, self._seed = len(parent), window, seed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, position: Any) -> Any:
        epoch, place = divmod(position, self._rows)
        turn, inside = divmod(place, self._window)
        full = self._rows // self._window
        start, order = _windows(self._rows, full, self._seed, epoch)
        window, size = (int(order[turn]), self._window) if turn < full else (full, self._rows - full * self._window)
        seed = (self._seed + epoch * full + window) % 2**32
        inside = grain.experimental.index_shuffle(inside, max_index=size - 1, seed=seed, rounds=4)
        return self._parent[(start + window * self._window + inside) % self._rows]


class Order:
    """An endless sequence over data sets of the given sizes: each is reshuffled every epoch, each row once per epoch, mixed by weights exactly.
    With a window (clips), neighbours in the index stay near each other."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, window: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every data set needs at least one clip, got sizes {list(sizes)}")
        parts = []
        for index, rows in enumerate(sizes):
            dataset = grain.MapDataset.source(_Places(index, rows)).seed(seed * 1009 + index)
            shuffled = _WindowShuffle(dataset, min(window, rows), seed * 1009 + index) if window else dataset.shuffle()
            parts.append(shuffled.repeat(None))
        self._mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=list(weights))
        self._sizes = list(sizes)
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self.samples_per_epoch = sum(sizes)

    def __getitem__(self, position: int) -> Place:
        dataset, row = self._mixed[position]
        # positions of a data set inside the mixture advance by its share; its epoch is how often it has been gone through by then
        epoch = (
            int(position * self._shares[dataset]) // self._sizes[dataset] if len(self._sizes) > 1 else position // self._sizes[0]
        )
        return Place(dataset, epoch, row)
