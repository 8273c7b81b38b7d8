"""Made-up benchmarks for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.finetune.official import WRITERS, MadeUpBenchmark


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MadeUpBenchmark]:
    """Made-up benchmarks, written once, read-only."""
    written: dict[str, MadeUpBenchmark] = {}

    def sample(name: str) -> MadeUpBenchmark:
        if name not in written:
            written[name] = WRITERS[name](tmp_path_factory.mktemp(name))
        return written[name]

    return sample
