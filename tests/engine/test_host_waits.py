"""Between two logging steps the host of a GPU waits for nothing, and its streams are ordered.

On a CPU, reading a number from a tensor costs nothing; on a GPU the host waits for the device at
each. tests/gpu/sync.py counts the same on a GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allinone.engine.deepspeed_adapter import CHECKED_VERSION, order_on_device
from tests.engine.ranks import RankServer

ALLOWED = {
    "zero0_fp32": set(),
    "zero1_bf16": set(),
    "zero2_bf16": set(),
    # in fp32 and at stage 3 there is no option against DeepSpeed's check of the norm
    "zero2_fp32": {"is_invalid_grad_norm"},
    "zero3_bf16": {"is_invalid_grad_norm", "get_grad_norm_direct"},
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
    assert all("runtime/" in place for place in places), "a wait outside of DeepSpeed"


def test_exchanges_between_ranks_wait_for_nothing(server: RankServer, tmp_path: Path) -> None:
    for counts in watch(server, tmp_path / "run", "waits", 2, ds_config="zero1_bf16"):
        # the exchange of signals uses the host on purpose, in a group of its own
        assert all("distributed/signals.py" in place for place in counts), counts


def bucket_file(folder: Path, stage: int) -> str:
    """Buckets of 100 elements: several per step, and a weight of 128 that fits into none."""
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100, "overlap_comm": True},
        "bf16": {"enabled": True, "check_grad_overflow": False},
    }
    path = folder / "own.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_streams_are_ordered_without_the_host(
    server: RankServer, tmp_path: Path, stage: int, accumulation: int
) -> None:
    options = {"ds_config": bucket_file(tmp_path, stage), "global_batch": 4 * accumulation}
    observed = watch(server, tmp_path / "run", "races", 2, streams=True, **options)
    assert observed == [[[], 0], [[], 0]]


def test_another_version_of_deepspeed_keeps_its_waits_and_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import deepspeed

    class DeepSpeedZeroOptimizer:
        overlap_comm = contiguous_gradients = use_multi_rank_bucket_allreduce = True
        cpu_offload, reduction_stream = False, object()

        def independent_gradient_partition_epilogue(self) -> None:
            """Stands for DeepSpeed's."""

    changed = []
    for version in (CHECKED_VERSION, "99.0"):
        monkeypatch.setattr(deepspeed, "__version__", version)
        optimizer = DeepSpeedZeroOptimizer()
        order_on_device(SimpleNamespace(optimizer=optimizer))
        changed.append("independent_gradient_partition_epilogue" in vars(optimizer))
    assert changed == [True, False]
    assert caplog.text.count("DeepSpeed 99.0 makes the host wait") == 1


def test_without_the_order_of_streams_races_are_found(server: RankServer, tmp_path: Path) -> None:
    options = {"ds_config": bucket_file(tmp_path, 1), "global_batch": 4}
    observed = watch(server, tmp_path / "run", "races", 2, streams=True, ordered=False, **options)
    assert all(races and not waits for races, waits in observed)
