"""The scripts in slurm/ without a cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from allinone.common.exit_codes import ExitCode
from tests.cluster.cluster import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
MORE_SCRIPTS = [ROOT / "containers/install.sh", ROOT / "tests/containers/clean_tree.sh"]


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
    assert f"SITE={tmp_path}/none.sh: no such file" in done.stderr


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


NUMBERS = [
    "TRAIN_NODES",
    "RANKS_PER_NODE",
    "NODE_CHECK",
    "MAX_STARTS",
    "SLURM_JOB_ID",
    "SLURM_GPUS_PER_NODE",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_JOB_CPUS_PER_NODE",
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["PATH[$(touch {file})]", "a[`touch {file}`]", "x=1", "08", "-1"])
def test_no_variable_of_a_job_is_evaluated(tmp_path: Path, name: str, value: str) -> None:
    """bash runs commands inside of a text that it evaluates as a number."""
    file = tmp_path / "ran"
    script = """
source slurm/lib.sh
scontrol() { echo node1; }
require_job example
read_allocation
OUT=$PWD/none NODES=(node1) START=$PWD/none
check_nodes true
"""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_CPUS_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**os.environ, "NODE_CHECK": "0", **job, name: value.replace("{file}", str(file))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not file.exists()
    assert done.returncode == 2, done.stderr
    assert "give a number" in done.stderr


@pytest.mark.parametrize("value", ["PATH[$(touch {file})]", "a[`touch {file}`]"])
def test_the_port_of_tensorboard_is_not_evaluated(tmp_path: Path, value: str) -> None:
    file = tmp_path / "ran"
    bash("tensorboard.sh", str(tmp_path), SLURM_JOB_ID=value.replace("{file}", str(file)))
    assert not file.exists()


def test_the_site_example_is_valid_and_all_its_names_are_used(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("left_s", "what"), [(3600, "signalled"), (5, "requeueing the job")])
def test_ranks_still_running_at_the_time_limit_are_requeued(left_s: int, what: str) -> None:
    """Slurm's programs are replaced by functions; the rank leaves after 1 s or after 10 minutes."""
    script = f"""
source slurm/lib.sh
scontrol() {{
  [[ $1 == -o ]] || {{ echo "scontrol $*" && exit 0; }}
  echo "JobId=7 EndTime=$(date -d "+{left_s} seconds" +%FT%T) Deadline=N/A"
}}
scancel() {{ echo signalled; }}
SLURM_JOB_ID=7 stopping=USR1
sleep {1 if left_s > 60 else 600} &
rank=$!
trap 'kill $rank $(jobs -p) 2>/dev/null' EXIT
forward_signal $rank
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert what in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == (left_s < 60)


def test_starts_without_progress_are_limited(tmp_path: Path) -> None:
    script = """
source slurm/lib.sh
OUT=$1 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n1 MAX_STARTS=2
mkdir -p "$OUT/slurm" "$OUT/cache/ab"
for batch in 1 2 3 4 5 5 5; do
  touch "$OUT/cache/ab/$batch.npz" "$OUT/cache/ab/.tmp-$batch.npz-7$RANDOM"
  record_start 9
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
        "2 starts of job 7 produced no checkpoint after step -1 and nothing evaluated"
        in done.stderr
    )
    rows = [line.split("\t") for line in (tmp_path / "slurm/starts.tsv").read_text().splitlines()]
    assert [row[5] for row in rows] == ["evaluated", "1", "2", "3", "4", "5", "5"]


def test_exit_codes_are_those_of_the_python_package() -> None:
    text = (ROOT / "slurm/lib.sh").read_text()
    found = {name: int(code) for name, code in re.findall(r"\bEXIT_([A-Z_]+)=(\d+)\b", text)}
    assert found.pop("SIGTERM") == 128 + 15
    assert found == {code.name: code.value for code in ExitCode}
    assert not re.search(r"\b(exit|fail) \d", text), "a literal exit code"


def test_rank_script_delays_the_codes_after_which_others_report() -> None:
    text = (ROOT / "slurm/rank.sh").read_text()
    (digits,) = re.findall(r"\$code != \[(\d+)\]", text)
    delayed = {ExitCode.USAGE, ExitCode.DISK_FULL, ExitCode.NON_FINITE, ExitCode.HANG}
    assert {int(digit) for digit in digits} == delayed
    assert f"code == {ExitCode.REQUEUE.value} ? 0 : code" in text


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_the_documentation_quotes_every_exit_code(code: ExitCode) -> None:
    rows = (ROOT / "docs/slurm.md").read_text().splitlines()
    assert any(row.startswith(f"| {code.value} | {code.meaning} |") for row in rows)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_reports_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", *SCRIPTS, *(ROOT / "slurm").glob("site*.example"), *MORE_SCRIPTS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
