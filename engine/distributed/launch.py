"""How a rank starts under plain python, torchrun, deepspeed and srun, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from allinone.common.access import UNWRITABLE
from allinone.common.console import (
    LOGGER,
    forgive_output,
    log_to_file,
    output_does_not_count,
    setup_logging,
)
from allinone.common.errors import (
    FULL,
    AllInOneError,
    DataError,
    LocalConfigError,
    LostDataError,
)
from allinone.common.exit_codes import ExitCode
from allinone.common.limits import explain, raise_file_limit
from allinone.engine.distributed import rendezvous

log = logging.getLogger(__name__)

PEER_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "Broken pipe",
)
"""Messages of gloo and NCCL on a rank whose peer left during a collective."""
ON_THIS_RANK = (LocalConfigError, DataError)
"""Errors that other ranks may not have: every rank that has one reports it."""
LAUNCHER = "ALLINONE_LAUNCHER"
"""Environment variable with the launcher's name. `start` sets it, because the other variables that
it sets would look like DeepSpeed's to a second call."""
LOGS = "logs"
"""Folder inside OUT with one log file per rank."""


@dataclass(frozen=True)
class RankInfo:
    """One rank among all, and where the ranks meet."""

    rank: int
    world: int
    local_rank: int
    """Rank among those of this host."""
    address: str
    """Host of the rendezvous."""
    port: int
    launcher: str
    """python, torchrun, deepspeed or srun."""


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: node[03-07,9] → node03, rack[1-2]n[04,07] → rack1n04."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if not match:
        raise ValueError(f"SLURM_JOB_NODELIST {nodelist!r} names no host")
    return re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", match[0])


def _slurm_address(nodelist: str) -> str:
    """Address of the first host: its name, or Slurm's NodeAddr where DNS does not know the name."""
    host = first_host(nodelist)
    with contextlib.suppress(OSError):
        socket.getaddrinfo(host, None)
        return host
    command = ["scontrol", "-o", "show", "node", host]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:  # a container without Slurm's programs
        return host
    match = re.search(r"NodeAddr=(\S+)", shown)
    return match[1] if match else host


def free_port() -> int:
    """A TCP port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """An environment variable that must be a number; LocalConfigError otherwise."""
    value = env.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise LocalConfigError(
            f"the environment variable {name} must be a number, it is {value!r}; unset it, or start"
            " by torchrun, deepspeed or srun"
        ) from None


def find_rank_info(env: Mapping[str, str]) -> RankInfo:
    """Rank, world size and rendezvous from the environment variables of each launcher."""
    if "RANK" in env and "WORLD_SIZE" in env:
        default = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "deepspeed"
        return RankInfo(
            rank=_number(env, "RANK"),
            world=_number(env, "WORLD_SIZE"),
            local_rank=_number(env, "LOCAL_RANK", 0),
            address=env.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(env, "MASTER_PORT", 29500),
            launcher=env.get(LAUNCHER) or default,
        )
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    # only srun sets SLURM_STEP_ID; plain python in the shell of sbatch or salloc has
    # SLURM_PROCID too, but is a single process
    if tasks > 1 and "SLURM_STEP_ID" in env:
        address = env.get("MASTER_ADDR") or _slurm_address(
            env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
        )
        # equal on all ranks, and different for job steps that share a host
        port = 20000 + (int(env["SLURM_JOB_ID"]) * 7 + int(env["SLURM_STEP_ID"])) % 10000
        return RankInfo(
            rank=int(env["SLURM_PROCID"]),
            world=tasks,
            local_rank=int(env.get("SLURM_LOCALID", "0")),
            address=address,
            port=_number(env, "MASTER_PORT", port),
            launcher="srun",
        )
    return RankInfo(0, 1, 0, "127.0.0.1", free_port(), "python")


def repeats(tensor_parallel: int) -> bool:
    """Whether a lower rank of the tensor-parallel group reads the same clips and logs bad ones."""
    return find_rank_info(os.environ).rank % tensor_parallel > 0


def ranks_of_host(env: Mapping[str, str], world: int) -> int:
    """Number of ranks that share this machine's cores."""
    given = (
        env.get("LOCAL_WORLD_SIZE")
        or env.get("LOCAL_SIZE")
        or env.get("SLURM_STEP_TASKS_PER_NODE")
        or str(world)
    )
    # Slurm writes 8(x16) for 8 tasks on each of 16 nodes
    return max(1, int(re.split(r"[(,]", given)[0]))


def gpu_of_rank(local_rank: int, visible: int) -> int:
    """CUDA device index of a rank.

    Args:
        local_rank: Rank on this host.
        visible: Number of GPUs that this process sees. If it is 1 (srun --gpus-per-task=1), every
            rank has a GPU of its own at index 0.

    Raises:
        LocalConfigError: There are more ranks than GPUs.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise LocalConfigError(
            f"rank {local_rank} of this host has no GPU: {visible} are visible; start as many ranks"
            " per host as it has GPUs"
        )
    return local_rank


def prepare_environment() -> None:
    """Set the variables that torch and DeepSpeed read at import.

    Without an NVIDIA driver DeepSpeed gets its CPU accelerator. CUDA's memory grows in segments:
    micro-batches differ in length, and blocks of a fixed size would be left over in many sizes.
    """
    if "DS_ACCELERATOR" not in os.environ and not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110 - before any other import
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # the second is the name of earlier torch versions, which torch still reads
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def without_launcher_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments without --local_rank=N, which the deepspeed launcher appends."""
    return [argument for argument in argv if not re.fullmatch(r"--local[_-]rank=\d+", argument)]


def start(device: str, timeout_s: float) -> tuple[RankInfo, Any]:
    """Join the process group.

    Args:
        device: auto, cpu or cuda.
        timeout_s: Time-out of every collective, seconds, so that no rank waits forever.

    Returns:
        This rank, and its torch device.

    Raises:
        LocalConfigError: There is no GPU for this rank.
    """
    prepare_environment()
    import torch
    import torch.distributed as dist

    from allinone.engine import deepspeed_adapter

    info = find_rank_info(os.environ)
    launched = not rendezvous.by_hand(os.environ)
    if not dist.is_initialized():
        rendezvous.check_surroundings(info, os.environ)
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise LocalConfigError(
            "--device cuda was given but torch sees no GPU; use --device cpu or a CUDA build of"
            " torch"
        )
    if not cuda:
        # otherwise DeepSpeed takes a GPU that it sees, also with --device cpu
        os.environ["DS_ACCELERATOR"] = "cpu"
        # each rank would use all cores of the host; srun and taskset restrict them (affinity)
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // ranks_of_host(os.environ, info.world)))
    index = gpu_of_rank(info.local_rank, torch.cuda.device_count()) if cuda else info.local_rank
    os.environ.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.world),
        LOCAL_RANK=str(index),  # DeepSpeed uses it as the index of the GPU
        MASTER_ADDR=info.address,
        MASTER_PORT=str(info.port),
    )
    os.environ[LAUNCHER] = info.launcher
    if cuda:
        torch.cuda.set_device(index)
    if not dist.is_initialized():
        rendezvous.join(info, "nccl" if cuda else "gloo", timeout_s, launched=launched)
        deepspeed_adapter.set_timeout_of_new_groups(timedelta(seconds=timeout_s))
    return info, torch.device("cuda", index) if cuda else torch.device("cpu")


_training_started = False


def mark_training_started() -> None:
    """Call after a step: a file that cannot be found from now on was found before."""
    global _training_started
    _training_started = True


def current_rank() -> int:
    """This process's rank, also before `start`."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def set_up_logging(options: object = None) -> None:
    """Log rank 0 to the terminal.

    Args:
        options: An object with the attributes json, quiet and verbose (TrainConfig); with json,
            messages go to stderr, because stdout carries JSON lines.
    """
    setup_logging(
        terminal=current_rank() == 0,
        quiet=getattr(options, "quiet", False),
        verbose=getattr(options, "verbose", False),
        stderr=getattr(options, "json", False),
    )


_log_file: tuple[Path, logging.Handler] | None = None


def log_rank_to_file(out: Path) -> None:
    """Also log this rank to OUT/logs/rank-NNNNN.log, until the process ends or OUT changes."""
    global _log_file
    path = out / LOGS / f"rank-{current_rank():05d}.log"
    if _log_file is None or _log_file[0] != path:
        close_log_file()
        _log_file = path, log_to_file(path)


def close_log_file() -> None:
    """End this rank's log file."""
    global _log_file
    if _log_file is not None:
        LOGGER.removeHandler(_log_file[1])
        with contextlib.suppress(OSError):  # a full disk: the buffer cannot be written
            _log_file[1].close()
        _log_file = None


def main(run: Callable[[], Any], options: object = None) -> int:
    """Run and return the exit code; an error that a user can act on becomes one line.

    If this rank alone has failed, its peers wait for it in a collective, and NCCL's groups cannot
    be closed before they arrive: the process then ends without closing them, so that the launcher
    notices and ends the others.

    Args:
        run: The program.
        options: As in `set_up_logging`.

    Returns:
        The exit code.

    Raises:
        BaseException: An unexpected error of `run`, with its traceback.
    """
    # before the first message: neither a closed stdout nor a character that the locale lacks may
    # end a run
    forgive_output()
    output_does_not_count()
    set_up_logging(options)
    ending = _run_and_report(run)
    close_log_file()
    if ending.on_all_ranks or not _waits_for_peers():
        _close_process_group()
        if ending.unexpected is not None:
            raise ending.unexpected
        return ending.code
    if ending.unexpected is not None:
        traceback.print_exception(ending.unexpected)
    # os._exit writes no buffers and runs no handlers; sys.exit would destroy NCCL's groups, which
    # waits for the peers
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    from allinone.common.processes import end_readers

    end_readers()
    os._exit(ending.code)


@dataclass(frozen=True)
class _Ending:
    """How a run ended on this rank."""

    code: ExitCode
    on_all_ranks: bool
    """Whether every rank ends in the same way."""
    unexpected: BaseException | None = None
    """An error that keeps its traceback."""


def _run_and_report(run: Callable[[], Any]) -> _Ending:
    try:
        raise_file_limit()
        run()
    except AllInOneError as error:
        code, local = _exit_code(error), isinstance(error, ON_THIS_RANK)
        _report(error, code, local)
        return _Ending(code, on_all_ranks=not local)
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        if limit := explain(error):
            _report(RuntimeError(limit), ExitCode.USAGE, local=True)
            return _Ending(ExitCode.USAGE, on_all_ranks=False)
        found = _code_of_system_error(error)
        if found is None:
            return _unexpected(error)
        if isinstance(error, RuntimeError):
            reason = str(error).splitlines()[0][:200]
            error = RuntimeError(f"another rank has left; its own output says why ({reason})")
        _report(error, found, local=True)
        return _Ending(found, on_all_ranks=False)
    except BaseException as error:  # noqa: BLE001 - raised again, or printed
        return _unexpected(error)
    return _Ending(ExitCode.OK, on_all_ranks=True)


def _unexpected(error: BaseException) -> _Ending:
    log.debug("unexpected error", exc_info=error)  # for the log file; the traceback is printed too
    return _Ending(ExitCode.FAILURE, on_all_ranks=False, unexpected=error)


def _exit_code(error: AllInOneError) -> ExitCode:
    if getattr(error, "disk", False):
        return ExitCode.DISK_FULL
    if isinstance(error, LostDataError):
        return _code_of_missing_file()
    return ExitCode(error.exit_code)


def _code_of_missing_file() -> ExitCode:
    """A file that was found before may be missing because of this node: a node check will tell."""
    return ExitCode.FAILURE if _training_started else ExitCode.USAGE


def _code_of_system_error(error: Exception) -> ExitCode | None:
    """The exit code of an error of the system; None if the error is unexpected."""
    if isinstance(error, FileNotFoundError):
        return _code_of_missing_file()
    if isinstance(error, OSError) and error.errno in UNWRITABLE and not _training_started:
        return ExitCode.USAGE  # the folder, or a mount: starting again does not help
    if isinstance(error, OSError):
        return ExitCode.DISK_FULL if error.errno in FULL else None
    return ExitCode.FAILURE if any(text in str(error) for text in PEER_GONE) else None


def _report(error: Exception, code: ExitCode, local: bool) -> None:
    """Log why the run ends; what all ranks raise alike appears on the terminal once, by rank 0.

    Args:
        error: The reason.
        code: The exit code; REQUEUE is a warning, because the run is to be continued.
        local: Whether this rank alone has the error.
    """
    if local:
        setup_logging(stderr=True)  # only this rank knows the reason
    rank = f"rank {current_rank()}: " if current_rank() else ""
    hint = f"\nhint: {error.hint}" if isinstance(error, AllInOneError) and error.hint else ""
    level = logging.WARNING if code == ExitCode.REQUEUE else logging.ERROR
    log.log(level, "%s%s%s", rank, error, hint)


def _waits_for_peers() -> bool:
    """Whether closing the process group waits for ranks that wait for this one."""
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1 and dist.get_backend() == "nccl"


def _close_process_group() -> None:
    """Close the process group: gloo's threads abort the interpreter if they outlive it."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
