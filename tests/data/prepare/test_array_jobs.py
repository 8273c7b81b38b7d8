"""Preparation in parts, on many machines: the bytes of one run, in any order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.common.paths import ROOT
from allinone.data.index import Index
from allinone.data.prepare.pipeline import PrepareOptions, _claim_folder, prepare
from tests.cluster.cluster import wait_for
from tests.data.helpers import contents, howto, small_demo


def test_parts_in_any_order_and_a_merge_equal_one_run(tmp_path: Path) -> None:
    for name, source in (
        ("webvid", small_demo(tmp_path / "webvid")),
        ("howto", howto(tmp_path / "howto")),
    ):
        clips = 7 if name == "webvid" else 1
        prepare(
            PrepareOptions(source, tmp_path / f"{name}-single", shard_clips=clips, workers=2),
            progress=False,
        )
        out = tmp_path / f"{name}-parts"
        for part in (3, 1):
            summary = prepare(
                PrepareOptions(source, out, shard_clips=clips, workers=2, part=(part, 3)),
                progress=False,
            )
            assert "merge" in (summary.part or "")
        with pytest.raises(DataError, match=r"no dataset\.json"):
            Index(out, "train")
        with pytest.raises(
            DataError, match=r"shards of .* are not prepared yet, first: train-00001"
        ):
            prepare(PrepareOptions(source, out, shard_clips=clips, merge=True), progress=False)
        prepare(
            PrepareOptions(source, out, shard_clips=clips, workers=2, part=(2, 3)), progress=False
        )
        merged = prepare(PrepareOptions(source, out, shard_clips=clips, merge=True), progress=False)
        assert merged.clips["train"] == (40 if name == "webvid" else 4)
        assert contents(out) == contents(tmp_path / f"{name}-single")


def test_only_the_merge_removes_other_parts_unfinished_files(tmp_path: Path) -> None:
    source, out = small_demo(tmp_path / "source", 10), tmp_path / "out"
    options = {"shard_clips": 5, "workers": 1}
    prepare(PrepareOptions(source, out, part=(1, 2), **options), progress=False)  # type: ignore[arg-type]
    theirs, ours = (out / "shards" / f".tmp-train-0000{k}.tar-12345678" for k in (0, 1))
    theirs.write_bytes(b"x")
    ours.write_bytes(b"x")
    prepare(PrepareOptions(source, out, part=(2, 2), **options), progress=False)  # type: ignore[arg-type]
    assert theirs.exists()
    assert not ours.exists()
    prepare(PrepareOptions(source, out, merge=True, **options), progress=False)  # type: ignore[arg-type]
    assert not theirs.exists()


def test_parts_may_claim_a_new_folder_at_the_same_time(tmp_path: Path) -> None:
    source = small_demo(tmp_path / "source", 10)
    with ThreadPoolExecutor(8) as threads:
        for turn in range(40):
            options = PrepareOptions(source, tmp_path / f"out{turn}").resolved()
            list(threads.map(_claim_folder, [options] * 8))


def test_a_source_that_has_grown_is_refused(tmp_path: Path) -> None:
    source = small_demo(tmp_path / "source", 10)
    prepare(
        PrepareOptions(source, tmp_path / "out", shard_clips=5, workers=1, part=(1, 2)),
        progress=False,
    )
    with (source / "results_demo_train.csv").open("a") as file:
        file.write("999,,PT,x,more\n")
    with pytest.raises(DataError, match=r"lists {'train': 11} now, and listed {'train': 10} when"):
        prepare(PrepareOptions(source, tmp_path / "out", shard_clips=5, workers=1), progress=False)


@pytest.mark.parametrize("makes", [True, False])
def test_an_array_task_that_makes_progress_is_requeued(tmp_path: Path, makes: bool) -> None:
    """With fake versions of sbatch, scontrol and Python."""
    made = "out/parts/train-00000.parquet" if makes else ""
    stand_ins = {
        "sbatch": "true",
        "scontrol": f'echo "$@" >>"{tmp_path}/scontrol.log"; kill -TERM $PPID',
        "python": (
            f'cd "{tmp_path}"; mkdir -p out/parts; touch out/prepare.json {made} runs; exec'
            " sleep 60"
        ),
    }
    for name, line in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHON": f"{tmp_path}/bin/python",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    env |= {
        "SLURM_JOB_ID": "78",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_MAX": "2",
    }
    command = [
        "bash",
        str(ROOT / "slurm" / "prepare_array.sh"),
        "source",
        "--out",
        str(tmp_path / "out"),
    ]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(command, env=env, stderr=said, start_new_session=True)
    try:
        wait_for("work", (tmp_path / "runs").exists, 30)
        job.send_signal(signal.SIGUSR1)
        job.wait(30)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 78\n" if makes else "")
    assert (
        "no shard was finished within the time limit" in (tmp_path / "said").read_text()
    ) != makes


def test_slurm_array_makes_the_parts_and_submits_one_merge(tmp_path: Path) -> None:
    """With a fake sbatch that logs its arguments."""
    source, out = small_demo(tmp_path / "source with space", 12), tmp_path / "out"
    log = tmp_path / "sbatch.log"
    stub = tmp_path / "bin" / "sbatch"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$PREPARE_STEP" "$@" >> "{log}"\n')
    stub.chmod(0o755)
    base = {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_MAX": "2",
        "SLURM_JOB_PARTITION": "cpu",
    }
    command = [
        "bash",
        str(ROOT / "slurm" / "prepare_array.sh"),
        str(source),
        "--out",
        str(out),
        "--shard-clips",
        "4",
    ]

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**base, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run().returncode == 2, "without an array it says how to submit"
    for task, restarts in (("1", "0"), ("1", "1"), ("2", "0")):
        done = run(SLURM_ARRAY_TASK_ID=task, SLURM_RESTART_COUNT=restarts)
        assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("merge --dependency=afterok:77 ")
    assert "--partition=cpu" in lines[0]
    done = run(PREPARE_STEP="merge")
    assert done.returncode == 0, done.stderr
    assert len(Index(out, "train")) == 12
