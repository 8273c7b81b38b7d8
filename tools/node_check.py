#!/usr/bin/env python3
"""Check the nodes of a Slurm job before training on them, in seconds: called by slurm/lib.sh, one
task per node, then once to judge.

Every node looks at its GPUs, memory, disk and data, times a matrix product and an all-reduce over
its GPUs, reads the GPUs' clocks under load, waits for the others, and then does an all-reduce, from
each of its GPUs, with each of its two neighbours in a ring over all nodes. A node is bad if a check
of its own fails, if it is much slower than the median of all, if its clock is off, or if the
exchange fails or is slow with both neighbours while they do well with others. With two nodes no one
can tell which of them is at fault in an exchange: both are named, neither is excluded.

With DS_ACCELERATOR=cpu the same is done on the CPU, and GPUs are not looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, size
from allinone.data.config import DatasetSpec
from allinone.tools.cluster.node_verdict import judge

GIB = 2**30


@dataclass
class Result:
    """What one node found; written after every check, so that a node that hangs or dies has said
    what it was doing."""

    node: str
    doing: str = "start"
    facts: dict[str, float] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(check, what is wrong)"""
    neighbours: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → {"rate": bytes/s, "clock_s": difference of the clocks} or {"error": text}."""


def edges(nodes: int) -> Iterator[tuple[int, int, int]]:
    """(round, a, b) of a ring: in a round every node has at most one partner."""
    for a in range(nodes if nodes > 2 else nodes - 1):
        b = (a + 1) % nodes
        yield (2 if b == 0 and nodes % 2 else a % 2), a, b


def check_memory(result: Result, args: argparse.Namespace) -> None:
    """Memory of the host that is free."""
    import psutil

    free = psutil.virtual_memory().available / GIB
    result.facts["host_memory_gib"] = free
    if free < args.min_memory_gib:
        result.problems.append(
            (
                "memory",
                (
                    f"{free:.1f} GiB of host memory are free, less than --min-memory-gib"
                    f" {args.min_memory_gib:g}"
                ),
            )
        )


def check_disk(result: Result, args: argparse.Namespace) -> None:
    """The run folder and the node's own temporary folder take a file and keep it."""
    for name, folder, least in (
        ("run folder", args.folder, args.min_free_gib),
        ("temporary folder", Path(tempfile.gettempdir()), 0.1),
    ):
        free = shutil.disk_usage(folder).free
        if free < least * GIB:
            result.problems.append(
                ("disk", f"{size(free)} are free in the {name} {folder}, less than {least:g} GiB")
            )
            continue
        content, start = os.urandom(2**20) * 8, time.perf_counter()
        # without a name: jobs that share a node check it at the same time, and a check that is
        # killed leaves nothing
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            same = file.read() == content
        result.facts[f"{name.split()[0]}_disk_s"] = time.perf_counter() - start
        if not same:
            result.problems.append(
                ("disk", f"a file in the {name} {folder} came back with another content")
            )


def check_data(result: Result, args: argparse.Namespace) -> None:
    """Every data set's index opens, and its first and last shard can be read; folders of
    annotations and media can be listed."""
    options = options_of(args.command)
    prepared = [
        text for name in ("data", "val", "images") if name in options for text in options[name]
    ]
    if args.command and args.command[0].endswith("pretrain/train.py"):
        prepared += _data_of_recipe(args.command[1], options)
    start = time.perf_counter()
    for folder in {DatasetSpec.parse(text).path for text in prepared}:
        shards = sorted((folder / "shards").glob("*.tar"))
        if not (folder / "index.arrow").is_file() or not shards:
            result.problems.append(
                ("data", f"{folder} holds no prepared data here: is it mounted?")
            )
            continue
        for path in {folder / "index.arrow", shards[0], shards[-1]}:
            with path.open("rb") as file:
                file.read(2**20)
    for path in (Path(text) for name in ("annotations", "media") for text in options.get(name, [])):
        if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            result.problems.append(("data", f"{path} is empty or absent here: is it mounted?"))
    result.facts["data_s"] = time.perf_counter() - start


def options_of(command: Sequence[str]) -> dict[str, list[str]]:
    """--name → the words after it up to the next option, as the trainer's command line reads them;
    --name=value too."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = [value] if equals else []
        elif name:
            options[name].append(word)
    return options


def _data_of_recipe(name: str, given: Mapping[str, object]) -> list[str]:
    """A pre-training recipe's data sets, where the command does not name others."""
    from allinone.pretrain.recipes import RECIPES

    if name not in RECIPES:
        return []  # the trainer says which there are
    recipe = RECIPES[name][1]
    defaults = {"data": recipe.data, "val": recipe.val, "images": recipe.cotrain.images}
    return [text for option, texts in defaults.items() if option not in given for text in texts]


def check_gpus(result: Result, args: argparse.Namespace) -> None:
    """As many GPUs as ranks, each nearly empty, each multiplying at its rate with no brake on its
    clock, and all of them together."""
    import torch

    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    result.facts["gpus"] = visible
    if visible < args.gpus:
        result.problems.append(("gpus", f"{visible} of {args.gpus} GPUs are visible"))
        return
    for gpu in range(visible):
        free, total = torch.cuda.mem_get_info(gpu)
        if free < 0.9 * total:
            text = (
                f"GPU {gpu} has {size(free)} of {size(total)} free: another process holds the rest"
            )
            result.problems.append(("memory", text))
            return
    order = 8192
    factors = [
        torch.randn(order, order, device=f"cuda:{gpu}", dtype=torch.bfloat16)
        for gpu in range(visible)
    ]
    products = [functools.partial(torch.matmul, factor, factor) for factor in factors]
    result.facts["matmul"] = min(
        _best_rate(product, 2 * order**3, functools.partial(torch.cuda.synchronize, gpu), 10)
        for gpu, product in enumerate(products)
    )
    with _busy(products, torch.cuda.synchronize):
        check_clocks(result)
    if visible > 1:
        shares = [torch.ones(2**26, device=f"cuda:{gpu}") for gpu in range(visible)]
        torch.cuda.nccl.all_reduce(shares)
        if any(float(share[-1]) != visible for share in shares):
            result.problems.append(("all-reduce", "the sum over the node's GPUs is wrong"))
        result.facts["inner_all_reduce"] = _best_rate(
            lambda: torch.cuda.nccl.all_reduce(shares), 2**28, torch.cuda.synchronize
        )


@contextlib.contextmanager
def _busy(
    products: Sequence[Callable[[], object]], wait: Callable[[int], object]
) -> Iterator[None]:
    """Every GPU works meanwhile: clocks of an idle one say nothing."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for _ in range(20):  # tenths of a second
                for product in products:
                    product()
            for gpu in range(len(products)):
                wait(gpu)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        ended.set()
        thread.join()


BRAKES = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of nvidia-smi's clocks_throttle_reasons.active that a healthy GPU under load does not show;
its power cap (0x04) is normal."""


def check_clocks(result: Result) -> None:
    """Clocks of the GPUs under load, what brakes them, and memory errors, by nvidia-smi where there
    is one."""
    fields = "index,clocks.sm,clocks_throttle_reasons.active,ecc.errors.uncorrected.volatile.total"
    try:
        ours = os.environ.get(
            "CUDA_VISIBLE_DEVICES"
        )  # other jobs' GPUs may be seen too, idle or broken
        shown = subprocess.run(
            [
                "nvidia-smi",
                f"--query-gpu={fields}",
                "--format=csv,noheader,nounits",
                *([f"--id={ours}"] if ours else []),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (
        OSError,
        subprocess.SubprocessError,
    ):  # a container without it, or an old driver without a field: the products were timed
        return
    clocks, problems = read_clocks(shown)
    if clocks:
        result.facts["sm_clock_mhz"] = min(clocks)
    result.problems += [("clocks", text) for text in problems]


def read_clocks(shown: str) -> tuple[list[float], list[str]]:
    """(clock of each GPU in MHz, what is wrong) from nvidia-smi's lines `index, clock, brakes,
    errors`; fields that a card lacks are skipped."""
    clocks, problems = [], []
    for line in shown.strip().splitlines():
        gpu, clock, brakes, errors = (field.strip() for field in line.split(","))
        clocks += [float(clock)] if clock.isdecimal() else []
        mask = int(brakes, 16) if brakes.startswith("0x") else 0
        problems += [
            f"GPU {gpu}: {reason}, {clock} MHz" for bit, reason in BRAKES.items() if mask & bit
        ]
        if errors.isdecimal() and int(errors):
            problems.append(f"GPU {gpu}: {errors} uncorrected memory errors")
    return clocks, problems


def _best_rate(
    action: Callable[[], object], work: float, wait: Callable[[], object], repeats: int = 5
) -> float:
    """Work per second of the fastest repetition, after one to warm up."""
    best = 0.0
    for repeat in range(repeats + 1):
        wait()
        start = time.perf_counter()
        action()
        wait()
        if repeat:
            best = max(best, work / (time.perf_counter() - start))
    return best


def check_cpu(result: Result, args: argparse.Namespace) -> None:
    """The CPU stands in for a GPU: the rate of a matrix product."""
    from allinone.engine.monitoring.peak_flops import measured_matmul_rate

    result.facts["matmul"] = measured_matmul_rate(seconds=0.5, order=512)


def exchange(result: Result, args: argparse.Namespace, nodes: list[tuple[str, str]]) -> None:
    """All-reduces with both neighbours of the ring, in rounds; every time-out leaves room for a
    partner that waited for a dead one before."""
    names = [name for name, _ in nodes]
    me = names.index(result.node)
    result.doing = "waiting for the other nodes"
    write_result(result, args.folder)
    meeting = meet(me, nodes[0][1], len(nodes), args.port + len(nodes), args.limit_s / 2)
    for number, a, b in sorted(edges(len(nodes))):
        if me not in (a, b):
            continue
        partner = names[b if me == a else a]
        result.doing = f"the all-reduce with {partner}"
        write_result(result, args.folder)
        try:
            result.neighbours[partner] = _with_partner(
                me == b,
                nodes[a][1],
                args.port + a,
                args.timeout_s * (number + 1),
                max(1, args.gpus),
            )
        except (RuntimeError, OSError, ValueError) as error:
            result.neighbours[partner] = {"error": _first_line(error)[:200]}
    del meeting  # not before: the first node's is the one that the others ask


def meet(me: int, address: str, nodes: int, port: int, limit_s: float) -> object:
    """Wait for all nodes, so that one which comes late, its files not yet cached, is not taken for
    one that does not answer; limit_s at most."""
    from torch.distributed import TCPStore

    end = time.monotonic() + limit_s
    try:
        store = TCPStore(
            address,
            port,
            is_master=me == 0,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,
        )
        here = store.add("here", 1)
        while here < nodes and time.monotonic() < end:
            time.sleep(0.1)
            here = store.add("here", 0)
    except RuntimeError:  # the first node is gone: the exchanges tell
        return None
    return store


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "it says no more")


def _with_partner(
    second: bool, address: str, port: int, timeout_s: float, gpus: int
) -> dict[str, float]:
    """The slowest rate over the GPUs, each of which may have a network adapter of its own, and how
    far the clocks are apart."""
    import torch
    import torch.distributed as dist

    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    devices = (
        [torch.device("cpu")] if on_cpu else [torch.device("cuda", gpu) for gpu in range(gpus)]
    )
    limit = timedelta(seconds=timeout_s)
    # a time-out raises here; by itself torch ends the process, and no one says with whom it was
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        init_method=f"tcp://{address}:{port}",
        rank=int(second),
        world_size=2,
        timeout=limit,
    )
    try:
        rates = [_rate_on(device) for device in devices]
        clocks = [torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        try:  # by gloo, which training uses beside NCCL
            side = dist.new_group(backend="gloo", timeout=limit)
            dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64), group=side)
        except RuntimeError as error:
            raise ValueError(
                f"gloo: {_first_line(error)}; GLOO_SOCKET_IFNAME names the interface between the"
                " nodes"
            ) from error
        return {"rate": min(rates), "clock_s": float(clocks[int(second)] - clocks[1 - int(second)])}
    finally:
        dist.destroy_process_group()


def _rate_on(device: Any) -> float:
    """Bytes per second of an all-reduce with the partner; the errors name the GPU."""
    import torch
    import torch.distributed as dist

    on_cpu = device.type == "cpu"
    try:
        payload = torch.ones((2**20 if on_cpu else 2**26), device=device)
        dist.all_reduce(payload)
        if float(payload[-1]) != 2.0:
            raise ValueError(f"{device}: the sum is wrong")
        wait: Callable[[], object] = (
            (lambda: None) if on_cpu else functools.partial(torch.cuda.synchronize, device)
        )
        return _best_rate(lambda: dist.all_reduce(payload), payload.numel() * 4.0, wait)
    except RuntimeError as error:
        raise RuntimeError(f"{device}: {_first_line(error)}") from error


def write_result(result: Result, folder: Path) -> None:
    """Publish what is known so far."""
    write_atomic(folder / f"{result.node}.json", json.dumps(asdict(result), indent=1) + "\n")


def read_nodes(path: Path) -> list[tuple[str, str]]:
    """(name, address) of every node of the allocation."""
    return [
        (name, address)
        for name, address in (line.split() for line in path.read_text().splitlines())
    ]


def run(args: argparse.Namespace) -> int:
    """Check this node. What it finds is judged elsewhere, so that this ends with 0 unless it is cut
    off."""
    start = time.perf_counter()
    result = Result(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    limit = threading.Timer(args.limit_s, lambda: os._exit(1))
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
        write_result(result, args.folder)
        try:
            check(result, args)
        except (OSError, RuntimeError, ValueError) as error:
            result.problems.append((name, f"{type(error).__name__}: {_first_line(error)}"))
    exchange(result, args, read_nodes(args.nodes))
    result.doing, result.facts["seconds"] = "", time.perf_counter() - start
    write_result(result, args.folder)
    print(
        f"{result.node}: {count(result.facts.get('matmul', 0.0))}FLOP/s, {len(result.problems)}"
        f" problems, {result.facts['seconds']:.1f} s"
    )
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of both ways to call it, which take the same."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=(
            "After -- comes the program that will run, with its options: the data that they name"
            " must be readable."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "action",
        choices=("run", "judge"),
        help="run: check this node; judge: read all results, name the bad nodes",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where the nodes write their results, on a shared file system",
    )
    parser.add_argument(
        "--nodes", type=Path, required=True, help="file with a line NAME ADDRESS per node"
    )
    parser.add_argument(
        "--gpus", type=int, default=8, help="GPUs that a node must have (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=18000,
        help="first of as many TCP ports as there are nodes (default: %(default)s)",
    )
    parser.add_argument(
        "--min-free-gib",
        type=float,
        default=10.0,
        help="free disk that the run folder needs (default: %(default)s)",
    )
    parser.add_argument(
        "--min-memory-gib",
        type=float,
        default=2.0,
        help="free host memory that a node needs (default: %(default)s)",
    )
    parser.add_argument(
        "--slow",
        type=float,
        default=None,
        help="share of the median rate below which a node is bad (default: 0.7, on CPUs 0.1)",
    )
    parser.add_argument(
        "--max-clock-s",
        type=float,
        default=5.0,
        help="largest difference of two clocks, seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=30.0,
        help="limit of one exchange, seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--limit-s",
        type=float,
        default=180.0,
        help="limit of the whole check, seconds (default: %(default)s)",
    )
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    args.command = words[end + 1 :]
    if args.slow is None:
        args.slow = 0.1 if os.environ.get("DS_ACCELERATOR") == "cpu" else 0.7
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry. judge ends with 0 (files good and bad written), 2 (the options are wrong
    on every node) or 3 (no disk anywhere)."""
    args = parse(argv)
    if args.action == "run":
        return run(args)
    names = [name for name, _ in read_nodes(args.nodes)]
    return judge(args.folder, names, slow=args.slow, max_clock_s=args.max_clock_s)


if __name__ == "__main__":
    sys.exit(main())
