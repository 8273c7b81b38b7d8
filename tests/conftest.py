"""Shared by all tests: one thread per process, no accelerator, no model hub."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# tests that are started under nohup would hand the ignored signal on to ranks that must obey it
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, so that none of them runs alone at the end while a worker is idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _fresh_log(request: pytest.FixtureRequest) -> None:
    """Commands that earlier tests ran in this process have set up the project's logger: pytest
    would see its records not at all, or twice."""
    if "caplog" not in request.fixturenames:
        return
    logger = logging.getLogger("allinone")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(autouse=True, scope="module")
def _priority() -> Iterator[None]:
    """No test may leave its process with real-time priority: ranks that later tests fork would
    keep all other processes from running."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before
