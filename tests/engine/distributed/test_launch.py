"""How ranks start under each launcher, and how they end."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from allinone.engine.distributed import launch
from allinone.engine.distributed.launch import (
    find_rank_info,
    first_host,
    gpu_of_rank,
    ranks_of_host,
    without_launcher_arguments,
)

ROOT = Path(__file__).parents[3]

FAILING = """
import sys, time
from allinone.common.errors import DataError, LostDataError
from allinone.engine.distributed import launch
from allinone.common.errors import LocalConfigError
launch._waits_for_peers = lambda: True
# NCCL blocks like this while other ranks wait for this one
launch._close_process_group = lambda: time.sleep(600)
def run():
    print("working")
    raise {error}
sys.exit(launch.main(run))
"""


@pytest.mark.parametrize(
    ("env", "launcher", "rank", "world"),
    [
        ({}, "python", 0, 1),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x"},
            "torchrun",
            3,
            8,
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29501"},
            "deepspeed",
            1,
            2,
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "ALLINONE_LAUNCHER": "python"},
            "python",
            0,
            1,
        ),  # after the first call of `start`
        (
            {
                "SLURM_PROCID": "9",
                "SLURM_NTASKS": "16",
                "SLURM_LOCALID": "1",
                "SLURM_JOB_NODELIST": "localhost",
                "SLURM_JOB_ID": "4711",
                "SLURM_STEP_ID": "0",
            },
            "srun",
            9,
            16,
        ),
        # plain python inside the shell of a 16-task batch job, which is no step of its own
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "16",
                "SLURM_JOB_NODELIST": "localhost",
                "SLURM_JOB_ID": "4711",
            },
            "python",
            0,
            1,
        ),
    ],
)
def test_each_launcher_is_recognised(
    env: dict[str, str], launcher: str, rank: int, world: int
) -> None:
    place = find_rank_info(env)
    assert (place.launcher, place.rank, place.world) == (launcher, rank, world)


def test_slurm_node_lists_and_launcher_arguments() -> None:
    lists = {
        "node[03-07,9]": "node03",
        "a1": "a1",
        "gpu-[12,14]": "gpu-12",
        "x1,x2": "x1",
        "rack[1-2]n[04,07],y1": "rack1n04",
    }
    assert {text: first_host(text) for text in lists} == lists
    assert without_launcher_arguments(["demo", "--local_rank=3", "--lr", "1"]) == [
        "demo",
        "--lr",
        "1",
    ]


def test_ranks_find_their_gpu_and_share_of_the_cores() -> None:
    assert [gpu_of_rank(rank, 8) for rank in (0, 7)] == [0, 7]
    assert gpu_of_rank(3, 1) == 0, "srun --gpus-per-task=1 shows each rank its own GPU only"
    with pytest.raises(ValueError, match="2 are visible"):
        gpu_of_rank(2, 2)
    given = [
        {"LOCAL_WORLD_SIZE": "4"},
        {"SLURM_STEP_TASKS_PER_NODE": "8(x16)"},
        {"SLURM_STEP_TASKS_PER_NODE": "3,2"},
        {},
    ]
    assert [ranks_of_host(env, 128) for env in given] == [4, 8, 3, 128]


def test_cuda_memory_grows_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for chosen in (None, *names):
        environment = {} if chosen is None else {chosen: "max_split_size_mb:64"}
        monkeypatch.setattr(launch.os, "environ", dict(environment))
        launch.prepare_environment()
        found = {name: launch.os.environ[name] for name in names if name in launch.os.environ}
        assert found == (environment or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ('RuntimeError("CUDA out of memory")', 1, "RuntimeError: CUDA out of memory"),
        ('LostDataError("shard x cannot be opened")', 2, "error: shard x cannot be opened"),
        (
            'launch.mark_training_started() or LostDataError("shard x cannot be opened")',
            1,
            "error: shard x cannot be opened",
        ),
        (
            'launch.mark_training_started() or DataError("too many bad clips")',
            2,
            "error: too many bad clips",
        ),
        ('LocalConfigError("no GPU here")', 2, "error: no GPU here"),
        ('OSError(28, "No space left on device")', 3, "error: [Errno 28] No space left on device"),
    ],
)
def test_a_rank_that_failed_alone_reports_why_and_ends(error: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1] == said
    assert ended.stdout == "working\n"


def test_groups_made_by_deepspeed_have_our_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    # `start` writes these; setting them here restores them for the tests that follow
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**variables, "MASTER_PORT": launch.free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv(launch.LAUNCHER, "python")
    try:
        launch.start("cpu", 1830.0)
        assert dist.distributed_c10d._get_default_timeout(dist.Backend.NCCL) == timedelta(
            seconds=1830
        )
    finally:
        dist.destroy_process_group()
