"""Shared by all tests: one thread per process, no accelerator, no model hub."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of minutes first: with two workers that each take whole files, none of them is left to
    run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="module")
def _priority() -> Iterator[None]:
    """No test may leave its process as a real-time one: the ranks that later tests fork would keep
    all others from running."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before
