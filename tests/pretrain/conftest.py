"""Shared by the tests that start training as a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import RANK_MODULES
from tests.forked import ForkServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Stands in for the interpreter where it is not the launch that is tested."""
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    server = ForkServer(tmp_path_factory.mktemp("server"), RANK_MODULES, env)
    try:
        server.wait()
        yield server
    finally:
        server.close()
