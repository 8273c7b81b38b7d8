"""k-means and the numbering of clusters."""

from __future__ import annotations

import numpy as np
import pytest

from allinone.common.errors import InputError
from allinone.tools.inspection.clustering import kmeans, match_labels


def three_groups() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    truth = np.repeat([0, 1, 2], [20, 12, 5])
    centres = np.array([[0, 0, 4], [4, 0, 0], [0, 4, 0]], dtype=np.float32)
    return (centres[truth] + 0.3 * random.standard_normal((37, 3))).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(5))
def test_three_known_groups_are_found_and_numbered_by_size(seed: int) -> None:
    points, truth = three_groups()
    assert kmeans(points, 3, seed).tolist() == truth.tolist()


def test_the_order_of_points_does_not_matter() -> None:
    points, truth = three_groups()
    order = np.random.default_rng(4).permutation(len(points))
    assert kmeans(points[order], 3, 0).tolist() == truth[order].tolist()


def test_equal_seeds_give_equal_clusters_of_random_points() -> None:
    points = np.random.default_rng(5).standard_normal((60, 8)).astype(np.float32)
    first = kmeans(points, 6, 7)
    assert np.array_equal(first, kmeans(points, 6, 7))
    sizes = np.bincount(first, minlength=6)
    assert (np.diff(sizes) <= 0).all()


def test_equal_points_are_one_cluster_too_many_groups_an_error() -> None:
    assert set(kmeans(np.ones((6, 2), np.float32), 3, 0).tolist()) == {0}
    with pytest.raises(InputError, match="--groups 7 is more than the 6 patches"):
        kmeans(np.ones((6, 2), np.float32), 7, 0)


def test_a_second_clustering_takes_the_numbers_it_overlaps_most() -> None:
    first = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    renamed = np.array([2, 2, 2, 0, 0, 0, 1, 1])  # 2 is mostly the first's 0, 0 its 1, 1 its 2
    assert match_labels(renamed, first, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
