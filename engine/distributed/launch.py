"""Where a rank finds itself, under plain python, torchrun, deepspeed and srun; and how a run
ends."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from allinone.common.errors import ConfigError, LocalConfigError

EXIT_PEER, EXIT_USER, EXIT_DISK, EXIT_NONFINITE, EXIT_REQUEUE = 1, 2, 3, 4, 75
"""Another rank has left (lower than the code of the one with the reason: srun gives the highest);
wrong options or data; a checkpoint could not be written; too many non-finite steps; saved after a
signal, start again (EX_TEMPFAIL)."""
EXIT_AGAIN = 1
"""Of a rank whose node may be to blame: the batch scripts check the nodes and start again."""
PEER_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "Broken pipe",
)
"""What gloo and NCCL say in a rank whose partner has left in the middle of a collective."""

LAUNCHER = "ALLINONE_LAUNCHER"
"""Set by `start`, whose own variables look like DeepSpeed's to a second call."""


@dataclass(frozen=True)
class RankInfo:
    """One rank among all."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    launcher: str


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: node[03-07,9] → node03, rack[1-2]n[04,07] → rack1n04."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if not match:
        raise ValueError(f"SLURM_JOB_NODELIST {nodelist!r} names no host")
    return re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", match[0])


def _slurm_address(nodelist: str) -> str:
    host = first_host(nodelist)
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:  # nodes without a DNS name: the address that Slurm itself uses
        try:
            shown = subprocess.run(
                ["scontrol", "-o", "show", "node", host],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
        except FileNotFoundError:  # a container without Slurm's programs
            return host
        match = re.search(r"NodeAddr=(\S+)", shown)
        return match[1] if match else host


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_rank_info(env: Mapping[str, str]) -> RankInfo:
    """Rank, world and rendezvous from the environment that each launcher sets."""
    if "RANK" in env and "WORLD_SIZE" in env:
        launcher = env.get(LAUNCHER) or (
            "torchrun" if "TORCHELASTIC_RUN_ID" in env else "deepspeed"
        )
        port = int(env.get("MASTER_PORT", "29500"))
        return RankInfo(
            int(env["RANK"]),
            int(env["WORLD_SIZE"]),
            int(env.get("LOCAL_RANK", "0")),
            env.get("MASTER_ADDR", "127.0.0.1"),
            port,
            launcher,
        )
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    if (
        tasks > 1 and "SLURM_STEP_ID" in env
        # srun sets it; plain python in an sbatch or salloc shell sees SLURM_PROCID too, but is
        # alone
    ):
        address = env.get("MASTER_ADDR") or _slurm_address(
            env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
        )
        port = int(
            env.get(
                "MASTER_PORT",
                20000 + (int(env["SLURM_JOB_ID"]) * 7 + int(env["SLURM_STEP_ID"])) % 10000,
            )
        )
        return RankInfo(
            int(env["SLURM_PROCID"]),
            tasks,
            int(env.get("SLURM_LOCALID", "0")),
            address,
            port,
            "srun",
        )
    return RankInfo(0, 1, 0, "127.0.0.1", free_port(), "python")


def repeats(tensor_parallel: int) -> bool:
    """Whether another rank of this one's tensor-parallel group reads the same clips: one of them
    writes down which are bad."""
    return find_rank_info(os.environ).rank % tensor_parallel > 0


def ranks_of_host(env: Mapping[str, str], world: int) -> int:
    """Ranks that share this machine's cores."""
    given = (
        env.get("LOCAL_WORLD_SIZE")
        or env.get("LOCAL_SIZE")
        or env.get("SLURM_STEP_TASKS_PER_NODE")
        or str(world)
    )
    return max(
        1, int(re.split(r"[(,]", given)[0])
    )  # Slurm writes 8(x16) for 8 tasks on each of 16 nodes


def gpu_of_rank(local_rank: int, visible: int) -> int:
    """CUDA device of a rank. With one visible GPU (srun --gpus-per-task=1) it is that one, whatever
    the local rank."""
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise LocalConfigError(
            f"rank {local_rank} of this host has no GPU: {visible} are visible; start as many ranks"
            " per host as it has GPUs"
        )
    return local_rank


def prepare_environment() -> None:
    """Settle what torch and DeepSpeed read at import: the CPU accelerator where there is no NVIDIA
    driver."""
    if "DS_ACCELERATOR" not in os.environ and not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110 - before any other import
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def without_launcher_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments without --local_rank=N, which the deepspeed launcher appends."""
    return [argument for argument in argv if not re.fullmatch(r"--local[_-]rank=\d+", argument)]


def start(device: str, timeout_s: float) -> tuple[RankInfo, Any]:
    """Join the process group; returns the place and the torch device. The time-out bounds every
    collective, so that no rank waits for ever."""
    prepare_environment()
    import torch
    import torch.distributed as dist

    place = find_rank_info(os.environ)
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise LocalConfigError(
            "--device cuda was asked for but torch sees no GPU; use --device cpu or a CUDA build of"
            " torch"
        )
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(
                max(1, len(os.sched_getaffinity(0)) // ranks_of_host(os.environ, place.world))
            )
    device_index = (
        gpu_of_rank(place.local_rank, torch.cuda.device_count()) if cuda else place.local_rank
    )
    environment = {
        "RANK": place.rank,
        "WORLD_SIZE": place.world,
        "LOCAL_RANK": device_index,
    }  # DeepSpeed takes LOCAL_RANK for the GPU
    os.environ.update(
        {name: str(value) for name, value in environment.items()} | {LAUNCHER: place.launcher}
    )
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    if cuda:
        torch.cuda.set_device(device_index)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
        # groups that DeepSpeed makes take no time-out: NCCL would end them after ten minutes,
        # before a hang is looked into
        dist.distributed_c10d.default_pg_nccl_timeout = timedelta(seconds=timeout_s)
    return place, torch.device("cuda", device_index) if cuda else torch.device("cpu")


_began = False


def mark_training_started() -> None:
    """To be called after a step: what this rank cannot find from now on, it has found before."""
    global _began
    _began = True


def main(run: Callable[[], Any]) -> int:
    """Run and turn what users can mend into one line and an exit code; anything else keeps its
    traceback.

    Where this rank alone has failed, the others wait for it in a collective, and NCCL's groups
    cannot be closed before they come: the process then ends without closing them, so that the
    launcher sees it and ends the others.
    """
    code, shared, fault = _outcome(run)
    if shared or not _waits_for_peers():
        _leave()
        if fault is not None:
            raise fault
        return code
    if fault is not None:
        traceback.print_exception(fault)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    from allinone.common.processes import end_readers

    end_readers()  # os._exit leaves no one else to do it
    os._exit(code)


def _outcome(run: Callable[[], Any]) -> tuple[int, bool, BaseException | None]:
    """(exit code, whether all ranks end so, what is to be raised)."""
    from allinone.common.errors import FULL, DataError, LostDataError
    from allinone.engine.checkpoint.manager import CheckpointError
    from allinone.engine.distributed.signals import Stopped, TooManySkippedError

    try:
        run()
    except Stopped as stopped:
        return _end(stopped, EXIT_REQUEUE, shared=True), True, None
    except TooManySkippedError as error:
        return _end(error, EXIT_NONFINITE, shared=True), True, None
    except CheckpointError as error:
        return _end(error, EXIT_DISK if error.disk else EXIT_USER, shared=True), True, None
    except ConfigError as error:
        shared = not isinstance(error, LocalConfigError)
        return _end(error, EXIT_USER, shared=shared), shared, None
    except (
        LostDataError,
        FileNotFoundError,
    ) as error:  # it was there: a mount has gone, perhaps, and a node check will find this node
        return _end(error, EXIT_AGAIN if _began else EXIT_USER, shared=False), False, None
    except DataError as error:
        return _end(error, EXIT_USER, shared=False), False, None
    except RuntimeError as error:
        if not any(text in str(error) for text in PEER_GONE):
            return 1, False, error
        gone = RuntimeError(
            f"another rank has left; its own output says why ({str(error).splitlines()[0][:200]})"
        )
        return _end(gone, EXIT_PEER, shared=False), False, None
    except OSError as error:
        if error.errno not in FULL:
            return 1, False, error
        return _end(error, EXIT_DISK, shared=False), False, None
    except BaseException as error:  # noqa: BLE001 - raised again, or printed
        return 1, False, error
    return 0, True, None


def _waits_for_peers() -> bool:
    """Whether closing the process group waits for ranks that wait for this one."""
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1 and dist.get_backend() == "nccl"


def _end(reason: Exception, code: int, shared: bool) -> int:
    """Say why the run ends. What all ranks raise alike is said by rank 0 only."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    if rank == 0 or not shared:
        where = f"rank {rank}: " if rank else ""
        print(f"{'' if code == EXIT_REQUEUE else 'error: '}{where}{reason}", file=sys.stderr)
    return code


def _leave() -> None:
    """Close the process group: gloo's threads abort the interpreter if they are alive at its
    end."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
