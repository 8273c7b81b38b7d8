"""Shared by the tests that train the very small model at several layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.ranks import RankServer


@pytest.fixture(scope="module")
def server() -> Iterator[RankServer]:
    """Starts ranks in a second."""
    ranks = RankServer()
    yield ranks
    ranks.close()
