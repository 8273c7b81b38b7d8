#!/usr/bin/env python3
"""Check the nodes of a Slurm job within seconds, before training starts on them.

slurm/lib.sh calls this once per node (run), then once for all nodes (judge).

Every node checks its GPUs, memory, disk and data, times a matrix product and an all-reduce over its
GPUs, reads the GPU clocks under load, waits for the other nodes, and then runs an all-reduce, from
each of its GPUs, with each of its two neighbours in a ring over all nodes. A node is bad if one of
its own checks fails, if it is much slower than the median node, if its clock is off, or if the
exchange with both neighbours fails or is slow while these do well with others. With two nodes it
cannot be decided which of them is at fault in an exchange: both are named, neither is excluded.

With DS_ACCELERATOR=cpu the CPU is checked instead of the GPUs.
"""

from __future__ import annotations

# argparse and not allinone.common.command_line: `judge` runs on the host, whose Python (>= 3.9) has
# no third-party packages; only the container that the ranks run in has them
import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.formatting import count
from allinone.tools.cluster.exchange import exchange
from allinone.tools.cluster.gpu_checks import check_cpu, check_gpus
from allinone.tools.cluster.host_checks import check_data, check_disk, check_memory
from allinone.tools.cluster.node_result import (
    NodeCheckOptions,
    NodeResult,
    first_line,
    read_nodes,
)
from allinone.tools.cluster.node_verdict import judge
from allinone.version import __version__

HELP = {
    "folder": "where the nodes write their results, on a shared file system",
    "nodes": "file with one line NAME ADDRESS per node",
    "gpus": "GPUs that a node must have",
    "port": "first of several TCP ports, one per node and one more",
    "min_free_gib": "free disk space that the run folder needs",
    "min_memory_gib": "free host memory that a node needs",
    "slow": "share of the median rate below which a node is bad (on CPUs the default is 0.1)",
    "max_clock_s": "largest difference of two clocks, seconds",
    "timeout_s": "time limit of one exchange, seconds",
    "limit_s": "time limit of the complete check, seconds",
}


def run(options: NodeCheckOptions) -> int:
    """Check this node; returns 0 unless the time limit ends the process: `judge` decides."""
    start = time.perf_counter()
    result = NodeResult(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    limit = threading.Timer(options.limit_s, lambda: os._exit(1))
    limit.daemon = True
    limit.start()
    accelerator = check_cpu if os.environ.get("DS_ACCELERATOR") == "cpu" else check_gpus
    for name, check in (
        ("memory", check_memory),
        ("disk", check_disk),
        ("data", check_data),
        ("matmul", accelerator),
    ):
        result.doing = f"the check of {name}"
        result.write(options.folder)
        try:
            check(result, options)
        except (OSError, RuntimeError, ValueError) as error:
            result.problems.append((name, f"{type(error).__name__}: {first_line(error)}"))
    exchange(result, options, read_nodes(options.nodes))
    result.doing = ""
    result.facts["seconds"] = time.perf_counter() - start
    result.write(options.folder)
    print(
        f"{result.node}: {count(result.facts.get('matmul', 0.0))}FLOP/s, {len(result.problems)}"
        f" problems, {result.facts['seconds']:.1f} s"
    )
    return 0


def parse(argv: Sequence[str]) -> NodeCheckOptions:
    """Read the options; what follows `--` is the program that will run."""
    parser = argparse.ArgumentParser(
        prog="tools/node_check.py",
        description=__doc__,
        epilog=(
            "After -- comes the program that will run, with its options: the data that they name"
            " must be readable."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"allinone {__version__}")
    parser.add_argument(
        "action",
        choices=("run", "judge"),
        help="run: check this node; judge: read all results, name the bad nodes",
    )
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    for entry in fields(NodeCheckOptions):
        flag = f"--{entry.name.replace('_', '-')}"
        if entry.name in ("folder", "nodes"):
            parser.add_argument(flag, type=Path, required=True, help=HELP[entry.name])
        elif entry.name in HELP:
            # CPUs are shared with other jobs, so their rates differ more
            default = 0.1 if entry.name == "slow" and on_cpu else entry.default
            text = f"{HELP[entry.name]} (default: %(default)s)"
            parser.add_argument(flag, type=type(entry.default), default=default, help=text)
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    return NodeCheckOptions(**vars(parser.parse_args(words[:end])), command=tuple(words[end + 1 :]))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; see node_verdict.judge for the exit codes of judge."""
    options = parse(sys.argv[1:] if argv is None else argv)
    if options.action == "run":
        return run(options)
    names = [name for name, _ in read_nodes(options.nodes)]
    return judge(options.folder, names, slow=options.slow, max_clock_s=options.max_clock_s)


if __name__ == "__main__":
    sys.exit(main())
