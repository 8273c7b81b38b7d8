"""Where a rank finds itself, under plain python, torchrun, deepspeed and srun; and how a run ends."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

EXIT_USER, EXIT_DISK, EXIT_NONFINITE, EXIT_REQUEUE = 2, 3, 4, 75
"""Wrong options or data; a checkpoint could not be written; too many non-finite steps; saved after a signal, start again (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Place:
    """One rank among all."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: node[03-07,9] → node03."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodelist)
    if not match:
        raise ValueError(f"SLURM_JOB_NODELIST {nodelist!r} names no host")
    return match[1] + (re.split(r"[-,]", match[2])[0] if match[2] else "")


def _slurm_address(nodelist: str) -> str:
    host = first_host(nodelist)
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:  # nodes without a DNS name: the address that Slurm itself uses
        shown = subprocess.run(["scontrol", "-o", "show", "node", host], capture_output=True, text=True, check=False).stdout
        match = re.search(r"NodeAddr=(\S+)", shown)
        return match[1] if match else host


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_place(env: Mapping[str, str]) -> Place:
    """Rank, world and rendezvous from the environment that each launcher sets."""
    if "RANK" in env and "WORLD_SIZE" in env:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "deepspeed"
        port = int(env.get("MASTER_PORT", "29500"))
        return Place(
            int(env["RANK"]),
            int(env["WORLD_SIZE"]),
            int(env.get("LOCAL_RANK", "0")),
            env.get("MASTER_ADDR", "127.0.0.1"),
            port,
            launcher,
        )
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
        address = env.get("MASTER_ADDR") or _slurm_address(env["SLURM_JOB_NODELIST"])
        port = int(env.get("MASTER_PORT", 20000 + int(env["SLURM_JOB_ID"]) % 10000))
        return Place(
            int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", "0")), address, port, "srun"
        )
    return Place(0, 1, 0, "127.0.0.1", free_port(), "python")


def prepare_environment() -> None:
    """Settle what torch and DeepSpeed read at import: the CPU accelerator where there is no NVIDIA driver."""
    if "DS_ACCELERATOR" not in os.environ and not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110 - before any other import
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def without_launcher_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments without --local_rank=N, which the deepspeed launcher appends."""
    return [argument for argument in argv if not re.fullmatch(r"--local[_-]rank=\d+", argument)]


def start(device: str, timeout_s: float) -> tuple[Place, Any]:
    """Join the process group; returns the place and the torch device. The time-out bounds every collective, so that no rank waits for ever."""
    prepare_environment()
    import torch
    import torch.distributed as dist

    place = find_place(os.environ)
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for but torch sees no GPU; use --device cpu or a CUDA build of torch")
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", str(place.world))))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(ranks_here, 1)))
    environment = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    if cuda:
        torch.cuda.set_device(place.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    return place, torch.device("cuda", place.local_rank) if cuda else torch.device("cpu")


def main(run: Callable[[], Any]) -> int:
    """Run and turn what users can mend into one line and an exit code; anything else keeps its traceback."""
    from data.errors import DataError
    from engine.checkpoint import CheckpointError
    from engine.faults import Stopped, TooManySkipped

    try:
        run()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_REQUEUE
    except TooManySkipped as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NONFINITE
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DISK if error.disk else EXIT_USER
    except (ValueError, DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    finally:
        _leave()
    return 0


def _leave() -> None:
    """Close the process group: gloo's threads abort the interpreter if they are alive at its end."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
