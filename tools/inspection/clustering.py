"""k-means over patch features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from allinone.common.errors import InputError
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, TextReader
from allinone.tools.inspection.patch_attribution import fine_patch_features

STARTS, ROUNDS = 10, 100
"""Restarts, against local optima, and the most rounds of each."""


def kmeans(points: NDArray[np.float32], groups: int, seed: int) -> NDArray[np.int64]:
    """Cluster points by the best of STARTS runs of Lloyd's algorithm from k-means++ starts.

    k-means++ is Arthur and Vassilvitskii, SODA 2007. Equal seeds give equal clusters.

    Args:
        points: [N, C].
        groups: Number of clusters.
        seed: Seed of the starts.

    Returns:
        The cluster of each point, int64 [N], numbered by decreasing size.

    Raises:
        InputError: More groups than points.
    """
    if groups > len(points):
        raise InputError(f"--groups {groups} is more than the {len(points)} patches of the clip")
    random = np.random.default_rng(seed)
    # float64: rounding must not decide between starts of nearly equal cost
    exact = points.astype(np.float64)
    best = np.zeros(len(exact), dtype=np.int64)
    best_cost = np.inf
    for _ in range(STARTS):
        centres = _spread(exact, groups, random)
        for _ in range(ROUNDS):
            labels = _distances(exact, centres).argmin(1)
            # an empty cluster keeps its centre
            moved = np.stack(
                [
                    exact[labels == group].mean(0) if (labels == group).any() else centre
                    for group, centre in enumerate(centres)
                ]
            )
            if np.array_equal(moved, centres):
                break
            centres = moved
        distances = _distances(exact, centres)
        cost = distances.min(1).sum()
        if cost < best_cost:
            best, best_cost = distances.argmin(1), cost
    by_size = np.argsort(-np.bincount(best, minlength=groups), kind="stable")
    return np.argsort(by_size)[best]


def _distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances, [N, groups]."""
    return ((points[:, None] - centres[None]) ** 2).sum(-1)


def _spread(
    points: NDArray[np.float64], groups: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """k-means++: each further centre is drawn in proportion to its squared distance."""
    chosen = [int(random.integers(len(points)))]
    for _ in range(1, groups):
        distance = _distances(points, points[chosen]).min(1)
        total = distance.sum()
        # equal points only: all distances are 0, and any point is as good
        odds = distance / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(random.choice(len(points), p=odds)))
    return points[chosen]


def match_labels(
    labels: NDArray[np.int64], others: NDArray[np.int64], groups: int
) -> NDArray[np.int64]:
    """Renumber clusters to agree with another clustering of the same points.

    Args:
        labels: Clusters to renumber, int64 [N].
        others: The other clustering, int64 [N].
        groups: Number of clusters of each.

    Returns:
        `labels` with each cluster numbered like the one of `others` that it shares most points
        with; pairs with the largest overlap are matched first.
    """
    shared = np.zeros((groups, groups), dtype=np.int64)
    np.add.at(shared, (labels, others), 1)
    new = np.full(groups, -1, dtype=np.int64)
    free = set(range(groups))
    for flat in np.argsort(-shared, axis=None, kind="stable"):
        own, other = divmod(int(flat), groups)
        if new[own] < 0 and other in free:
            new[own] = other
            free.remove(other)
    return new[labels]


def cluster_patches(
    loaded: LoadedModel, clip: InputClip, text: str, groups: int, seed: int, fine: int = 1
) -> NDArray[np.int64]:
    """Cluster the patches of a clip by their features, scaled to unit length.

    Args:
        loaded: The model.
        clip: The video.
        text: Text of the joint pass.
        groups: Number of clusters.
        seed: Seed of k-means.
        fine: Cells per patch in each direction; see fine_patch_features.

    Returns:
        The cluster of every cell, int64 [T, fine^2 * P].
    """
    words = TextReader(loaded.model.config)(text)
    features = fine_patch_features(loaded, clip, words, fine).numpy()
    # unit length, so that squared distances order pairs as their cosine similarity does
    points = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    return kmeans(points.reshape(-1, points.shape[-1]), groups, seed).reshape(features.shape[:2])
