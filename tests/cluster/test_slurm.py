"""The scripts in slurm/ on a real Slurm with a controller and 16 node daemons on this machine.

GPUs are fake; ranks run on the CPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.data.index import Index
from tests.cluster.cluster import ROOT, BatchJob, Cluster, wait_for
from tests.data.helpers import small_demo

pytestmark = pytest.mark.slow

PRETRAIN, FINETUNE = "slurm/pretrain_128gpu.sh", "slurm/finetune_8gpu.sh"
PROGRAM = "tests/cluster/program.py"
TWO = ("--nodes=2", "--gpus-per-node=1")
ENDLESS = 100_000
"""Steps of runs that are cancelled after a while: how far they get depends on the machine, what
each step computes does not."""


def options(
    clips: Path, out: Path, steps: int = ENDLESS, ranks: int = 2, hang_timeout_s: int = 300
) -> list[str]:
    """A pre-training run of tiny steps."""
    plain = (
        "--image-size 32 --vtc 0 --micro-batch 2 --workers 0 --log-every 1 --save-every 5 --lr 1e-3"
        " --warmup 10"
    )
    sizes = [
        "--steps",
        str(steps),
        "--global-batch",
        str(2 * ranks),
        "--hang-timeout-s",
        str(hang_timeout_s),
    ]
    return [
        "demo",
        "--data",
        str(clips),
        "--val",
        "none",
        "--out",
        str(out),
        *sizes,
        *plain.split(),
    ]


def rows(out: Path) -> list[dict[str, object]]:
    """What each step computed."""
    path = out / "history.jsonl"
    lines = (
        [line for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
    found = [row for row in map(json.loads, lines) if "metrics" in row]
    return [
        {name: row[name] for name in ("step", "metrics", "digest", "grad_norm")} for row in found
    ]


def await_steps(job: BatchJob, out: Path, steps: int, timeout_s: float = 120) -> None:
    wait_for(f"step {steps} of job {job.id}", lambda: len(rows(out)) >= steps, timeout_s)


def ranks_of(job: BatchJob) -> dict[int, int]:
    """Rank → process, of a running job started through the fork server."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            number, _, rank = path.read_text().strip().partition(".")
        except OSError:  # has ended
            continue
        if number == job.id and rank.isdecimal():
            found[int(rank)] = int(path.parent.name)
    return found


class Undisturbed:
    """A run without interruptions, whose steps the other runs must equal."""

    def __init__(self, job: BatchJob, out: Path) -> None:
        self.job, self.out = job, out

    def rows(self, number: int) -> list[dict[str, object]]:
        """What its first steps computed."""
        await_steps(self.job, self.out, number)
        return rows(self.out)[:number]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    job = cluster.sbatch(*TWO, PRETRAIN, *options(clips, out), log=out.with_name("job.log"))
    yield Undisturbed(job, out)
    job.cancel()


def test_a_submitted_job_trains_and_writes_logs_and_tensorboard(
    cluster: Cluster, clips: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run with space"
    job = cluster.sbatch(
        *TWO,
        PRETRAIN,
        *options(clips, out, steps=4),
        log=tmp_path / "job.log",
        PYTHON=sys.executable,
    )
    assert job.wait() == "COMPLETED", job.text()
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    board = EventAccumulator(str(out / "tensorboard" / "mlm"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/mlm_loss")] == [1, 2, 3, 4]
    log = job.text()
    for text in (
        "node check: node01  good",
        "node check: node02  good",
        "2 ranks",
        "started by srun",
        "step 4/4",
        "ended with 0",
    ):
        assert text in log
    ranks = out / "slurm/start-0001/ranks"
    assert [(ranks / f"rank-{rank}.node").read_text().strip() for rank in (0, 1)] == [
        "node01",
        "node02",
    ]
    assert (ranks / "rank-0.log").read_text().count("step 4/4") == 1


def test_one_rank_on_each_of_16_nodes(cluster: Cluster, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = options(clips, out, steps=2, ranks=16)
    job = cluster.sbatch("--gpus-per-node=1", PRETRAIN, *words, log=tmp_path / "job.log")
    assert job.wait() == "COMPLETED", job.text()
    assert [row["step"] for row in rows(out)] == [1, 2]
    nodes = [path.read_text().strip() for path in out.glob("slurm/start-0001/ranks/rank-*.node")]
    assert sorted(nodes) == cluster.nodes
    assert job.text().count(" good ") == 16


def test_time_limit_saves_requeues_and_continues_exactly(
    cluster: Cluster, clips: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """USR1 arrives 50 s before the limit of a minute, or later: Slurm checks every 30 s."""
    out = tmp_path / "run"
    limited = ("--time=1", "--signal=B:USR1@50", *TWO)
    job = cluster.sbatch(*limited, PRETRAIN, *options(clips, out), log=tmp_path / "job.log")
    await_steps(job, out, 2)
    again = cluster.sbatch(*TWO, PRETRAIN, *options(clips, out), log=tmp_path / "again.log")
    assert again.wait(60) == "FAILED"
    assert again.field("ExitCode") == "2:0"
    assert f"job {job.id} is already running in {out}" in again.text()

    wait_for(f"signal; log:\n{job.text()}", lambda: "USR1: saved" in job.text(), 120)
    # Once is enough: a slow machine needs half a minute to start and would reach the limit again.
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
    saved = max(int(path.name[5:]) for path in out.glob("checkpoints/step-*"))
    await_steps(job, out, saved + 3)
    assert int(job.field("Restarts")) >= 1
    text = job.text()
    assert f"step {saved}; the same command continues" in text
    assert "requeueing the job" in text
    assert f"resumed from {out}/checkpoints/step-{saved:08d}" in text
    computed = rows(out)
    assert [row["step"] for row in computed] == list(range(1, len(computed) + 1))
    assert computed == undisturbed.rows(len(computed))

    job.cancel()
    assert job.field("JobState") == "CANCELLED", "a cancelled job is not requeued"
    assert "SIGTERM: saved" in "".join(
        path.read_text() for path in out.glob("slurm/start-*/ranks/rank-0.log")
    )


def test_killed_hung_and_lost_ranks_do_not_change_results(
    cluster: Cluster, clips: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    undisturbed.rows(40)
    undisturbed.job.cancel()
    out = tmp_path / "run"
    job = cluster.sbatch(
        *TWO, PRETRAIN, *options(clips, out, hang_timeout_s=30), log=tmp_path / "job.log"
    )
    await_steps(job, out, 6)

    os.kill(ranks_of(job)[1], signal.SIGKILL)
    killed = time.monotonic()
    wait_for(
        "restart after a killed rank",
        lambda: "starting again inside the allocation" in job.text(),
        60,
    )
    assert time.monotonic() - killed < 30, "docs/slurm.md: a dead rank ends the others within 30 s"
    assert job.text().startswith("======== first error: rank 1 on node02: killed by SIGKILL")
    wait_for("resumed run", lambda: "resumed from" in job.text(), 60)
    await_steps(job, out, 12)

    os.kill(ranks_of(job)[1], signal.SIGSTOP)
    wait_for(
        "hang that is named",
        lambda: job.text().startswith("======== hung: rank 1 on node02 did not say where"),
        90,
    )
    wait_for("third start", lambda: "start 3 in" in job.text(), 30)
    wait_for("resumed run", lambda: job.text().count("resumed from") == 2, 60)
    await_steps(job, out, 18)
    assert job.field("Restarts") == "0"

    cluster.run("scontrol", "update", "NodeName=node02", "State=down", "Reason=test")
    try:
        wait_for(
            "requeued job",
            lambda: job.field("Restarts") == "1" and job.field("JobState") == "RUNNING",
            90,
        )
        assert (
            "node02"
            not in cluster.run("scontrol", "show", "hostnames", job.field("NodeList")).split()
        )
        wait_for("resumed run", lambda: job.text().count("resumed from") == 3, 90)
        await_steps(job, out, 22)
    finally:
        cluster.run("scontrol", "update", "NodeName=node02", "State=resume")
    job.cancel()
    computed = rows(out)
    assert computed[:40] == undisturbed.rows(40)[: len(computed)]
    starts = [line.split("\t") for line in (out / "slurm/starts.tsv").read_text().splitlines()[1:]]
    assert [(start, restarts) for start, _job, restarts, _time, _step, _evaluated in starts] == [
        ("1", "0"),
        ("2", "0"),
        ("3", "0"),
        ("4", "1"),
    ]
    assert [int(start[4]) for start in starts[:1]] == [-1]
    assert sorted(int(start[4]) for start in starts[1:]) == [int(start[4]) for start in starts[1:]]


@pytest.fixture
def python_with_a_bad_node(cluster: Cluster, tmp_path: Path) -> Path:
    """The node check requires too much memory on the first node of the first allocation."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f"""#!/bin/bash
if [[ $2 == run && $SLURM_NODEID == 0 && ${{SLURM_RESTART_COUNT:-0}} == 0 ]]; then
  set -- "$1" run --min-memory-gib 1000000 "${{@:3}}"
fi
exec {cluster.python} "$@"
""")
    wrapper.chmod(0o755)
    return wrapper


def test_bad_node_is_named_and_left_out(
    cluster: Cluster, tmp_path: Path, python_with_a_bad_node: Path
) -> None:
    requeued = cluster.sbatch(
        *TWO,
        FINETUNE,
        PROGRAM,
        "--exit",
        "0",
        "--out",
        tmp_path / "a",
        log=tmp_path / "a.log",
        PYTHON=str(python_with_a_bad_node),
    )
    spare = cluster.sbatch(
        *(
            "--nodes=3",
            "--gpus-per-node=1",
            FINETUNE,
            PROGRAM,
            "--exit",
            "0",
            "--out",
            tmp_path / "b",
        ),
        log=tmp_path / "b.log",
        PYTHON=str(python_with_a_bad_node),
        TRAIN_NODES="2",
    )
    for job, out, start in ((requeued, "a", 2), (spare, "b", 1)):
        assert job.wait() == "COMPLETED", job.text()
        assert "of host memory are free, less than --min-memory-gib" in job.text()
        bad = next(line.split()[2] for line in job.text().splitlines() if "  bad: " in line)
        logs = [
            path.read_text()
            for path in (tmp_path / out).glob(f"slurm/start-000{start}/ranks/rank-*.log")
        ]
        assert len(logs) == 2
        assert not any(f"on {bad}\n" in text for text in logs)
        assert job.field("Restarts") == str(start - 1)
        assert job.field("ExcNodeList") == (bad if job is requeued else "(null)")


def test_a_check_that_fails_on_most_nodes_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """As if the network or the storage stalled for all nodes."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f"""#!/bin/bash
[[ $2 != run || $* != *start-0001/* ]] || set -- "$1" run --min-memory-gib 1000000 "${{@:3}}"
exec {cluster.python} "$@"
""")
    wrapper.chmod(0o755)
    job = cluster.sbatch(
        *(*TWO, FINETUNE, PROGRAM, "--exit", "0", "--out", tmp_path / "out"),
        log=tmp_path / "job.log",
        PYTHON=str(wrapper),
        RESTART_DELAY_S="1",
    )
    assert job.wait() == "COMPLETED", job.text()
    assert "2 of 2 nodes failed the check" in job.text()
    assert "checking the nodes again" in job.text()
    assert len(list((tmp_path / "out/slurm").glob("start-*"))) == 2
    assert job.field("Restarts") == "0"


def test_exit_codes_decide_about_restarts(cluster: Cluster, tmp_path: Path) -> None:
    jobs = {
        code: cluster.sbatch(
            *TWO,
            FINETUNE,
            PROGRAM,
            "--exit",
            str(code),
            "--out",
            tmp_path / str(code),
            log=tmp_path / f"{code}.log",
            NODE_CHECK="0",
        )
        for code in (0, 1, 2)
    }
    evaluation = cluster.sbatch(
        "slurm/evaluate.sh",
        PROGRAM,
        "--exit",
        "0",
        "--out",
        tmp_path / "e",
        log=tmp_path / "e.log",
        NODE_CHECK="0",
    )
    assert evaluation.wait() == "COMPLETED", evaluation.text()
    logs = [
        path.read_text().splitlines()
        for path in (tmp_path / "e").glob("slurm/start-0001/ranks/rank-*.log")
    ]
    assert sorted(lines[0] for lines in logs) == [
        f"rank {rank} on {evaluation.field('NodeList')}" for rank in (0, 1)
    ]
    assert logs[0][1:] == ["--exit", "0", "--out", str(tmp_path / "e"), "--eval-only"]
    for code, starts in ((0, 1), (1, 3), (2, 1)):
        state = jobs[code].wait()
        text = jobs[code].text()
        assert state == ("FAILED" if code else "COMPLETED"), text
        assert jobs[code].field("ExitCode") == f"{code}:0"
        assert len(list((tmp_path / str(code) / "slurm").glob("start-*"))) == starts
        assert ("3 starts of job" in text) == (code == 1)
        assert text.startswith("======== first error: rank ") == (code != 0)


def test_sbatch_options_override_the_site_file(cluster: Cluster, tmp_path: Path) -> None:
    site, out = tmp_path / "site.sh", tmp_path / "out"
    site.write_text(
        "SBATCH_OPTIONS=(--nodes=2 --gpus-per-node=1 --parsable --job-name=of-the-site)\n"
        'COMMAND_PREFIX=(env "CODE=a b")\nSRUN_OPTIONS=(--export=ALL,OF_SITE=1'
        f" --chdir=/)\nPYTHON={sys.executable}\n"
        "case $UNKNOWN in esac  # as conda and vendors' scripts do\n"
    )
    script = tmp_path / "say.py"
    script.write_text(
        "import os\nprint(os.environ['CODE'], os.environ['OF_SITE'],"
        " os.environ['SLURM_STEP_NODELIST'])\n"
    )
    log = tmp_path / "job.log"
    # As in a container, tasks start in another folder, without the environment of the submission.
    given = (
        "--job-name=mine",
        f"--output={log}",
        f"--export=SITE={site},PROJECT={ROOT},DS_ACCELERATOR,GLOO_SOCKET_IFNAME",
    )
    arguments = (*given, ROOT / FINETUNE, script.name, "--out", "out")
    shown = cluster.run(
        ROOT / "slurm/submit.sh", *arguments, cwd=tmp_path, SITE=str(site), PROJECT=str(ROOT)
    )
    job = BatchJob(cluster, shown.strip(), log)
    assert job.wait(60) == "COMPLETED", job.text()
    assert job.field("JobName") == "mine"
    for rank in (0, 1):
        assert (
            out / f"slurm/start-0001/ranks/rank-{rank}.log"
        ).read_text() == f"a b 1 {job.field('NodeList')}\n"


def test_prepare_array_makes_the_parts_and_merges_them(cluster: Cluster, tmp_path: Path) -> None:
    source, out = small_demo(tmp_path / "source", 12), tmp_path / "out"
    arguments = (ROOT / "slurm/prepare_array.sh", source, "--out", "out", "--shard-clips", "4")
    elsewhere = {"PROJECT": str(ROOT), "PYTHON": sys.executable}
    cluster.sbatch("--array=1-2", *arguments, log=tmp_path / "%A_%a.log", cwd=tmp_path, **elsewhere)
    wait_for("merged index", (out / "dataset.json").exists, 120)
    wait_for(
        "end of the merge", lambda: not cluster.run("squeue", "-h", "--name=prepare-merge"), 30
    )
    assert len(Index(out, "train")) == 12
