"""Optimizer state on a disk gives the same weights, and continues bit-equal from a checkpoint.

    NVME_DIR=FOLDER pytest tests/engine/checkpoint/test_nvme.py

Not in CI: DeepSpeed compiles its async_io extension first (libaio-dev; ten minutes on one core).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.benchmarks.equality_matrix import OPTIONS, TOLERANCE, trace
from tests.engine.ranks import RankServer

pytestmark = pytest.mark.skipif(
    "NVME_DIR" not in os.environ, reason="NVME_DIR does not name a folder on a disk"
)
MODEL = {"hidden_size": 192, "num_hidden_layers": 2}
"""Large enough for a group of 1 MiB, the smallest that DeepSpeed moves to the disk."""


def train(server: RankServer, out: Path, config: str, world: int) -> None:
    codes, output = server.run(
        out, world, **OPTIONS | {"save_every": 2, "lr": 1e-5}, model=MODEL, ds_config=config
    )
    assert codes == [0] * world, output


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_with_its_state_on_a_disk_continues_bit_equal(
    server: RankServer, tmp_path: Path, world: int
) -> None:
    train(server, tmp_path / "memory", "zero3_fp32", world)
    train(server, tmp_path / "disk", "zero3_offload_nvme_fp32", world)
    swapped = list((tmp_path / "disk" / "checkpoints" / "step-00000002").rglob("exp_avg-*.swp"))
    assert len(swapped) == world
    full_run = trace(tmp_path / "disk")
    assert max(full_run.differences(trace(tmp_path / "memory"))) < TOLERANCE
    shutil.copytree(tmp_path / "disk", tmp_path / "again")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    train(server, tmp_path / "again", "zero3_offload_nvme_fp32", world)
    again = trace(tmp_path / "again")
    assert again.losses == full_run.losses
    assert all(torch.equal(again.weights[name], value) for name, value in full_run.weights.items())
