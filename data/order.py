"""Which clip stands at which position: a pure function of (seed, position), by grain's MapDataset. The state of a run is one integer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from absl import logging

logging.set_verbosity(logging.ERROR)  # else grain warns, when it is imported, that it found no jax, which it does not need
import grain.python as grain  # noqa: E402


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


class Order:
    """An endless sequence over data sets of the given sizes: each is reshuffled every epoch, each row once per epoch, mixed by weights exactly."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, window: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every data set needs at least one clip, got sizes {list(sizes)}")
        parts = []
        for index, rows in enumerate(sizes):
            dataset = grain.MapDataset.source(_Places(index, rows)).seed(seed * 1009 + index)
            shuffled = dataset.shuffle() if not window else dataset.window_shuffle(window_size=min(window, rows))
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
