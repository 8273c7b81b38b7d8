"""Measure the time from sbatch to the first step and the memory per rank, at 16 and 128 ranks.

    python -m tests.cluster.start 16 128

The ranks run slurm/pretrain_128gpu.sh with the nano model on the 16 nodes of
tests/cluster/cluster.py. They are forked from a server that has done the imports; with --plain each
is an interpreter of its own. ZeRO 1 uses buckets of half a million elements: those of ds_configs/,
sized for a GPU, would add two copies of the model to each of 128 processes on one machine. 128
ranks of 140 MiB need 19 GB. Not part of CI: `make cluster128`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from allinone.common.command_line import parse
from allinone.common.formatting import size
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.engine import ds_config
from tests.cluster.cluster import BatchJob, Cluster, wait_for
from tests.cluster.test_slurm import options as run_options
from tests.cluster.test_slurm import ranks_of, rows
from tests.data.helpers import small_demo
from tests.memory import rollup

TIDY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""glibc returns freed tensors immediately; otherwise it keeps up to 100 MiB from the start."""
COLUMNS = (
    "ranks",
    "python",
    "in the queue",
    "node check",
    "first step",
    "sbatch to first step",
    "PSS per rank",
    "RSS per rank",
)


def plain_ranks(job: BatchJob) -> list[int]:
    """Processes of ranks that were not forked: children of slurm/rank.sh."""
    parents = {
        path for path in Path("/proc").glob("[0-9]*") if b"slurm/rank.sh" in _read(path / "cmdline")
    }
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if (
            b"pretrain/train.py" in _read(path / "cmdline")
            and path not in parents
            and f"SLURM_JOB_ID={job.id}\0".encode() in _read(path / "environ")
        ):
            found.append(int(path.name))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def memory(pids: Sequence[int], field: str) -> float:
    """Mean of a field of the processes' smaps_rollup, bytes."""
    values = []
    for pid in pids:
        with contextlib.suppress(OSError):  # has ended
            values.append(rollup(pid, field))
    return sum(values) / len(values)


def small_buckets(folder: Path) -> Path:
    """zero1_fp32 for many ranks on one machine."""
    config = ds_config.load("zero1_fp32")
    config["zero_optimization"] |= {
        "reduce_bucket_size": 500_000,
        "allgather_bucket_size": 500_000,
        "overlap_comm": False,
    }
    path = folder / "small_buckets.json"
    path.write_text(json.dumps(config))
    return path


def measure(
    cluster: Cluster, clips: Path, folder: Path, ranks: int, python: str
) -> tuple[str, ...]:
    """One row of the table."""
    out, log = folder / "run", folder / "job.log"
    folder.mkdir()
    words = [
        *run_options(clips, out, ranks=ranks, hang_timeout_s=1800),
        "--ds-config",
        str(small_buckets(folder)),
    ]
    begin = time.monotonic()
    job = cluster.sbatch(
        f"--gpus-per-node={ranks // 16}", "slurm/pretrain_128gpu.sh", *words, log=log, PYTHON=python
    )
    marks = []
    for what, seen in (
        ("start", lambda: job.text()),
        ("node check", lambda: job.text().count("node check:") == 16),
        ("first step", lambda: rows(out)),
    ):
        wait_for(f"{what}; log: {job.text()}", seen, 900, every_s=0.05)
        marks.append(time.monotonic() - begin)
    wait_for("second step", lambda: len(rows(out)) > 1, 900)
    pids = list(ranks_of(job).values()) or plain_ranks(job)
    assert len(pids) == ranks, (len(pids), job.text())
    pss, rss = (size(memory(pids, field)) for field in ("Pss", "Rss"))
    job.cancel()
    seconds = (marks[0], marks[1] - marks[0], marks[2] - marks[1], marks[2])
    return (
        str(ranks),
        "forked" if python == str(cluster.python) else "own",
        *(f"{value:.1f} s" for value in seconds),
        pss,
        rss,
    )


@dataclass(frozen=True)
class StartOptions:
    """What to measure."""

    ranks: tyro.conf.Positional[tuple[Literal[16, 32, 64, 128], ...]] = (16, 128)
    """Numbers of ranks, one row of the table each."""
    plain: bool = False
    """Start an interpreter per rank, which does its own imports."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    options = parse(
        StartOptions,
        sys.argv[1:] if argv is None else argv,
        prog="python -m tests.cluster.start",
        description=__doc__ or "",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(
            PrepareOptions(small_demo(folder / "source", 64), folder / "few", workers=1),
            progress=False,
        )
        cluster = Cluster(folder / "cluster")
        cluster.env |= TIDY
        with cluster:
            cluster.wait_for_fork_server()
            python = sys.executable if options.plain else str(cluster.python)
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
            for ranks in options.ranks:
                row = measure(cluster, folder / "few", folder / str(ranks), ranks, python)
                print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
