"""The training order: which clip is at which position.

A pure function of (seed, position), built on grain's MapDataset. The state of a run is one integer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

# Otherwise grain warns on import that jax is missing, which it does not need here.
logging.set_verbosity(logging.ERROR)
import grain.experimental  # noqa: E402
import grain.python as grain  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402


@dataclass(frozen=True)
class SamplePosition:
    """What a position of the training order holds."""

    dataset: int
    epoch: int
    row: int


class _Rows:
    """A grain source: the row numbers of one data set."""

    def __init__(self, dataset: int, rows: int) -> None:
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> tuple[int, int]:
        return self._dataset, int(row)


@functools.lru_cache(maxsize=16)
def _windows(rows: int, windows: int, seed: int, epoch: int) -> tuple[int, NDArray[np.int64]]:
    """Return where an epoch's first window begins, and the order of the epoch's windows.

    Args:
        rows: Rows of the data set.
        windows: Complete windows in it.
        seed: Seed of the data set's order.
        epoch: Number of the epoch.
    """
    # cached: a look-up per sample would permute HowTo100M's windows each time
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(rows)), random.permutation(windows)


class _WindowShuffle(grain.MapDataset[tuple[int, int]]):
    """Shuffles windows of neighbouring rows, and the rows inside each window.

    Every epoch orders the windows differently and lets them begin at another row, so that other
    rows share a window; the rows left over come last. Grain's own window shuffle keeps the order of
    the windows, and reads beyond the last row if the window does not divide the rows.

    Args:
        parent: The rows of the data set.
        window: Rows of a window.
        seed: Seed of the order.
    """

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
        window, size = full, self._rows - full * self._window  # the rows left over come last
        if turn < full:
            window, size = int(order[turn]), self._window
        seed = (self._seed + epoch * full + window) % 2**32
        inside = grain.experimental.index_shuffle(inside, max_index=size - 1, seed=seed, rounds=4)
        return self._parent[(start + window * self._window + inside) % self._rows]


LONGEST_PERIOD = 1 << 16
"""Positions after which the mixture's pattern repeats, at most: weights are exact to 1/65,536."""


class _Mixture:
    """Which data set a position belongs to, and how many earlier positions that data set had.

    A repeating pattern in which every data set is spread evenly.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = np.array(weights) / sum(weights)
        period = self._period(shares)
        # 1e-9: a product that should be an integer may be just below it; at least 1, so that a
        # data set of tiny weight is not lost
        counts = np.maximum(1, np.floor(shares * period + 1e-9)).astype(np.int64)
        # largest remainders first; stable, because ties must not depend on the sort algorithm
        by_rest = np.argsort(counts - shares * period, kind="stable")
        counts[by_rest[: max(0, period - counts.sum())]] += 1
        # position k of n is at the middle of the k-th of n equal parts of the period
        turns = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        sets = np.repeat(np.arange(len(counts)), counts)
        self._sets = sets[np.argsort(turns, kind="stable")].astype(np.int32)
        self._before = np.zeros(len(self._sets), np.int32)
        for number, count in enumerate(counts):
            self._before[self._sets == number] = np.arange(count)
        self._counts = counts

    @staticmethod
    def _period(shares: NDArray[np.float64]) -> int:
        """Return the shortest period in which all shares are integers, else the longest."""
        places = np.arange(1, LONGEST_PERIOD + 1)[:, None] * shares
        near_integer = np.abs(places - places.round()) < 1e-9 * LONGEST_PERIOD
        exact = near_integer.all(1) & (places.round() >= 1).all(1)
        return int(exact.argmax()) + 1 if exact.any() else LONGEST_PERIOD

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (data set, number of its earlier positions)."""
        periods, place = divmod(position, len(self._sets))
        number = int(self._sets[place])
        return number, periods * int(self._counts[number]) + int(self._before[place])


class Order:
    """An endless order over a mixture of data sets.

    Each data set is reshuffled every epoch and each of its rows comes once per epoch.

    Args:
        sizes: Rows of each data set.
        weights: Relative share of the samples of each data set, kept to 1/65,536.
        seed: Seed of the order.
        window: Rows that are shuffled together, so that reads stay near each other; 0 shuffles the
            complete data set.

    Raises:
        ValueError: A data set is empty.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, window: int = 0
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every data set needs at least one clip, got sizes {list(sizes)}")
        parts = []
        for index, rows in enumerate(sizes):
            # a seed per data set: two of equal size must not be shuffled alike
            dataset = grain.MapDataset.source(_Rows(index, rows)).seed(seed * 1009 + index)
            shuffled = (
                _WindowShuffle(dataset, min(window, rows), seed * 1009 + index)
                if window
                else dataset.shuffle()
            )
            parts.append(shuffled.repeat(None))
        self._parts, self._sizes, self._mixture = parts, list(sizes), _Mixture(weights)
        self.samples_per_epoch = sum(sizes)

    def __getitem__(self, position: int) -> SamplePosition:
        dataset, place = self._mixture[position]
        _, row = self._parts[dataset][place]
        return SamplePosition(dataset, place // self._sizes[dataset], row)
