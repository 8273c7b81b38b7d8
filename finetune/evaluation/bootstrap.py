"""Confidence intervals by percentile bootstrap over items, or over clusters of dependent items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SAMPLES, LEVEL = 1_000, 0.95
"""Resamples of the bootstrap, and the share of them inside the interval."""

Array = np.ndarray
Statistic = Callable[[Array], float]


def mean(values: Array) -> float:
    """Mean of all values."""
    return float(np.mean(values))


def median(values: Array) -> float:
    """Median of all values; of an even number, the mean of the middle two."""
    return float(np.median(values))


def ratio(values: Array) -> float:
    """Sum of column 0 over sum of column 1 of [N, 2]; NaN if the denominator is 0.

    For example, accuracy over the answerable questions.
    """
    top, bottom = values.sum(0)
    return float(top / bottom) if bottom else float("nan")


def interval(
    per_item: Array | Sequence[Array],
    statistic: Statistic = mean,
    *,
    clusters: Array | Sequence[Array] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over items.

    Args:
        per_item: [N] or [N, columns]. A list of arrays (folds) is resampled within each array, and
            their statistics are averaged.
        statistic: Of the resampled items.
        clusters: One name per item, in the same form. Complete clusters are drawn instead of items:
            questions about one video are not independent observations, and treating them as such
            makes the interval too narrow.
        samples: Number of resamples.
        seed: Seed of the resampling.
        level: Share of the resamples inside the interval.

    Returns:
        (low, high).

    Raises:
        ValueError: There are no items, or `clusters` has another length.
    """
    groups = groups_of(per_item)
    owners: list[Array] | list[None] = (
        [None] * len(groups) if clusters is None else groups_of(clusters)
    )
    if not groups or not all(len(group) for group in groups):
        raise ValueError("no items to average over")
    pick = [_draw(len(group), owner) for group, owner in zip(groups, owners, strict=True)]
    # a fixed seed: the same results always get the same interval
    random = np.random.default_rng(seed)
    drawn = np.array(
        [
            np.mean(
                [statistic(group[draw(random)]) for group, draw in zip(groups, pick, strict=True)]
            )
            for _ in range(samples)
        ]
    )
    # a resample without an answerable question has no ratio, and is skipped
    # at 1,000 resamples, 25 of them are beyond each end of a 95 % interval
    edge = 100 * (1 - level) / 2
    low, high = (
        np.nanpercentile(drawn, [edge, 100 - edge])
        if not np.isnan(drawn).all()
        else (np.nan, np.nan)
    )
    return float(low), float(high)


def groups_of(values: Array | Sequence[Array]) -> list[Array]:
    """One array is one group."""
    return [values] if isinstance(values, np.ndarray) else list(values)


def _draw(size: int, clusters: Array | None) -> Callable[[np.random.Generator], Array]:
    """A function that draws `size` item indices, or the items of as many clusters as there are."""
    if clusters is None:
        return lambda random: random.integers(size, size=size)
    if len(clusters) != size:
        raise ValueError(f"{len(clusters)} cluster names for {size} items")
    # Items sorted by cluster: cluster c occupies members[starts[c] : starts[c] + counts[c]].
    _, numbers, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    members, starts = np.argsort(numbers, kind="stable"), np.cumsum(counts) - counts

    def draw(random: np.random.Generator) -> Array:
        drawn = random.integers(len(counts), size=len(counts))
        lengths = counts[drawn]
        # 0 … length - 1 for each drawn cluster, without a Python loop over clusters
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return members[np.repeat(starts[drawn], lengths) + within]

    return draw


def paired_interval(
    first: Array,
    second: Array,
    statistic: Statistic = mean,
    *,
    clusters: Array | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """Bootstrap interval of the difference of two runs; each draw takes the same items of both.

    Args:
        first: Values per item of one run.
        second: Values per item of the other run, for the same items in the same order.
        statistic: Of the resampled items of each run.
        clusters: See `interval`.
        samples: Number of resamples.
        seed: Seed of the resampling.
        level: Share of the resamples inside the interval.

    Returns:
        (difference second - first, low, high).

    Raises:
        ValueError: The runs have different numbers of values.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"the two runs have {list(first.shape)} and {list(second.shape)} values; pair the items"
            " first"
        )
    # both runs are resampled together: the variation that items share cancels out
    both = np.stack([first, second], axis=1)

    def difference(values: Array) -> float:
        return statistic(values[:, 1]) - statistic(values[:, 0])

    return (
        difference(both),
        *interval(both, difference, clusters=clusters, samples=samples, seed=seed, level=level),
    )
