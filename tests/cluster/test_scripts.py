"""What slurm/*.sh say without a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.cluster import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


def bash(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "SITE", "PROJECT"))
    }
    command = ["bash", str(ROOT / "slurm" / script), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **env}, capture_output=True, text=True, check=False
    )


def test_a_batch_script_started_by_hand_says_how_to_submit_it() -> None:
    for script in ("pretrain_128gpu.sh", "finetune_8gpu.sh", "evaluate.sh"):
        done = bash(script)
        assert done.returncode == 2
        assert f"sbatch slurm/{script}" in done.stderr


def test_a_wrong_folder_and_a_missing_site_file_are_named(tmp_path: Path) -> None:
    done = bash("pretrain_128gpu.sh", PROJECT=str(tmp_path))
    assert done.returncode == 2
    assert "error: submit from the root of the project" in done.stderr
    done = bash("pretrain_128gpu.sh", SITE=str(tmp_path / "none.sh"), SLURM_JOB_ID="7")
    assert done.returncode == 2
    assert f"SITE={tmp_path}/none.sh: there is no such file" in done.stderr


def test_tensorboard_prints_the_tunnel_to_its_own_loopback(tmp_path: Path) -> None:
    job = {
        "PYTHON": "echo",
        "LOGIN": "login.example.org",
        "USER": "ada",
        "SLURMD_NODENAME": "node07",
        "SLURM_JOB_ID": "3",
    }
    done = bash("tensorboard.sh", str(tmp_path), **job)
    assert done.returncode == 0, done.stderr
    assert "  ssh -N -J ada@login.example.org -L 10399:127.0.0.1:10399 ada@node07\n" in done.stdout
    assert f"-m tensorboard.main --logdir {tmp_path} --host 127.0.0.1 --port 10399\n" in done.stdout
    done = bash("tensorboard.sh", str(tmp_path), **job, TENSORBOARD_HOST="0.0.0.0", PORT="6006")
    assert "  ssh -N -L 6006:node07:6006 ada@login.example.org\n" in done.stdout
    assert bash("tensorboard.sh", str(tmp_path / "none"), **job).returncode == 2


def test_the_site_file_example_is_valid_and_every_name_in_it_is_used(tmp_path: Path) -> None:
    example = ROOT / "slurm/site.sh.example"
    assert subprocess.run(["bash", "-n", str(example)], check=False).returncode == 0
    used = "".join(path.read_text() for path in SCRIPTS)
    for name in (
        "SBATCH_OPTIONS",
        "SRUN_OPTIONS",
        "COMMAND_PREFIX",
        "HOST_PYTHON",
        "PYTHON",
        "TRAIN_NODES",
        "RANKS_PER_NODE",
    ):
        assert name in example.read_text()
        assert name in used
    for name in (
        "NODE_CHECK_OPTIONS",
        "NODE_CHECK_MINUTES",
        "MAX_STARTS",
        "RESTART_DELAY_S",
        "LOGIN",
    ):
        assert name in example.read_text()
        assert name in used


@pytest.mark.parametrize(("left_s", "what"), [(3600, "told"), (5, "back into the queue")])
def test_ranks_that_do_not_leave_before_the_time_limit_cost_no_requeue(
    left_s: int, what: str
) -> None:
    """Slurm's programs are stand-ins; the rank leaves after a second, or would not within ten
    minutes."""
    script = f"""
source slurm/lib.sh
scontrol() {{
  if [[ $1 == -o ]]; then echo "JobId=7 EndTime=$(date -d "+{left_s} seconds" +%FT%T) Deadline=N/A"; else echo "scontrol $*" && exit 0; fi
}}
scancel() {{ echo told; }}
SLURM_JOB_ID=7 stopping=USR1
sleep {1 if left_s > 60 else 600} &
rank=$!
trap 'kill $rank $(jobs -p) 2>/dev/null' EXIT
pass_on $rank
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert what in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == (left_s < 60)


def test_an_evaluation_that_gets_on_is_started_again_and_one_that_does_not_is_given_up(
    tmp_path: Path,
) -> None:
    script = """
source slurm/lib.sh
OUT=$1 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n1 MAX_STARTS=2
mkdir -p "$OUT/slurm" "$OUT/cache/ab"
for batch in 1 2 3 4 5 5 5; do
  touch "$OUT/cache/ab/$batch.npz" "$OUT/cache/ab/.tmp-$batch.npz-7$RANDOM"
  next_start 9
done
"""
    done = subprocess.run(
        ["bash", "-c", script, "-", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    assert (
        "2 starts of job 7 brought no checkpoint newer than step -1 and nothing evaluated"
        in done.stderr
    )
    rows = [line.split("\t") for line in (tmp_path / "slurm/starts.tsv").read_text().splitlines()]
    assert [row[5] for row in rows] == ["evaluated", "1", "2", "3", "4", "5", "5"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["shellcheck", *SCRIPTS, ROOT / "slurm/site.sh.example"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
