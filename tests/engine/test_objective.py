"""Seeds of micro-batches."""

from __future__ import annotations

from allinone.engine.objective import seed_of


def test_seeds_of_micro_batches_differ() -> None:
    assert len({seed_of(seed, position) for seed in range(20) for position in range(500)}) == 10_000
