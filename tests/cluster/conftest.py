"""A cluster for all tests of this folder, and a few prepared clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.cluster.cluster import Cluster, why_not
from tests.data.helpers import small_demo


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """16 nodes with 8 fake GPUs each."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.wait_for_fork_server()
        yield cluster


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 prepared clips."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(
        PrepareOptions(small_demo(folder / "source", 64), folder / "few", workers=1), progress=False
    )
    return folder / "few"
