"""How long from sbatch to the first step, and how much memory a rank takes, at 16 and 128 ranks:
`python -m tests.cluster.start 16 128`.

Ranks of slurm/pretrain_128gpu.sh with the nano model, forked from a server that has done the
imports (`--plain`: 16 interpreters of their own), on 16 nodes of the real Slurm in
tests/cluster/cluster.py. ZeRO 1 with buckets of half a million elements: those of ds_configs/, of
which a GPU has room for one, would be two more copies of the model in each of 128 processes of one
machine. 128 ranks of 140 MiB need 19 GB. Not part of CI: `make cluster128`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from allinone.common.formatting import size
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.engine import ds_config
from tests.cluster.cluster import Cluster, Job, wait_for
from tests.cluster.test_slurm import options, ranks_of, rows
from tests.data.prepare.test_prepare_and_load import small_demo
from tests.memory import rollup

TIDY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""glibc gives a freed tensor back at once, where it would keep up to 100 MiB of what starting
needed."""
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


def plain_ranks(job: Job) -> list[int]:
    """Processes of a job's ranks that are interpreters of their own: children of slurm/rank.sh."""
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
        with contextlib.suppress(OSError):  # it has ended
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
        *options(clips, out, ranks=ranks, hang_timeout_s=1800),
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranks", type=int, nargs="+", choices=(16, 32, 64, 128))
    parser.add_argument(
        "--plain",
        action="store_true",
        help="every rank an interpreter of its own, which does its own imports",
    )
    args = parser.parse_args(argv)
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
            python = sys.executable if args.plain else str(cluster.python)
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
            for ranks in args.ranks:
                print(
                    f"| {' | '.join(measure(cluster, folder / 'few', folder / f'{ranks}', ranks, python))} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
