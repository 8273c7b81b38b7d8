"""Between two logging steps the host of a GPU waits for nothing, and its streams are ordered.

On a CPU, reading a number from a tensor costs nothing; on a GPU the host waits for the device at
each. tests/gpu/sync.py counts the same on a GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.ranks import RankServer

ALLOWED = {
    "zero0_fp32": set(),
    "zero1_bf16": set(),
    "zero2_bf16": set(),
    # in fp32 there is no option against DeepSpeed's checks for an overflow
    "zero1_fp32": {"has_overflow", "is_invalid_grad_norm"},
    # ZeRO 3, and 16 bits without ZeRO, always check, whoever skips the step
    "zero3_bf16": {"has_overflow"},
    "zero0_bf16": {"has_overflow"},
}
"""Configuration → functions of DeepSpeed that wait in a step."""


def watch(server: RankServer, out: Path, word: str, world: int = 1, **options: Any) -> list[Any]:
    """What each rank observed."""
    codes, output = server.run(out, world, program="tests.engine.watched_step", **options)
    assert codes == [0] * world, output
    found = [json.loads(line) for line in re.findall(rf"\b{word} ([{{\[].*)$", output, re.M)]
    assert len(found) == world, output
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_a_step_of_all_objectives_waits_for_nothing(
    server: RankServer, tmp_path: Path, name: str
) -> None:
    (counts,) = watch(server, tmp_path / "run", "waits", ds_config=name)
    places = [place.partition(" at ")[2] for place in counts]
    assert {place.split()[-1] for place in places} == ALLOWED[name], counts
    assert all(place.startswith("runtime/") for place in places), "a wait of ours"


def test_exchanges_between_ranks_wait_for_nothing(server: RankServer, tmp_path: Path) -> None:
    assert watch(server, tmp_path / "run", "waits", 2, ds_config="zero1_bf16") == [{}, {}]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_streams_are_ordered_without_the_host(
    server: RankServer, tmp_path: Path, stage: int, accumulation: int
) -> None:
    # buckets of 100 elements: several per step, and a weight of 128 that fits into none
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100, "overlap_comm": True},
        "bf16": {"enabled": True, "check_grad_overflow": False},
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(config))
    observed = watch(
        server,
        tmp_path / "run",
        "races",
        2,
        streams=True,
        ds_config=str(path),
        global_batch=4 * accumulation,
    )
    assert observed == [[[], 0], [[], 0]]
