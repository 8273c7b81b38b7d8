"""How ranks meet: within a stated time, with a line that says who waits for whom and where."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from allinone.common.errors import LocalConfigError
from allinone.common.exit_codes import ExitCode

if TYPE_CHECKING:
    from allinone.engine.distributed.launch import RankInfo

log = logging.getLogger(__name__)

JOIN_S = 600.0
"""Seconds until all ranks of a launcher must have joined: importing torch from a cold network disk
on hundreds of nodes takes minutes."""
JOIN_LOCAL_S = 120.0
"""The same where variables were set by hand and name this machine."""
REMIND_S = 15.0
"""Seconds after which a rank says that it still waits."""
UNSET = (
    "if this is to be a single process, start it with: env -u RANK -u WORLD_SIZE …; otherwise start"
    " all ranks by torchrun, deepspeed or srun"
)


def by_hand(env: Mapping[str, str]) -> bool:
    """Whether RANK and WORLD_SIZE were set by something other than torchrun and deepspeed."""
    launched = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
    return "RANK" in env and "WORLD_SIZE" in env and not any(name in env for name in launched)


def check_surroundings(info: RankInfo, env: Mapping[str, str]) -> None:
    """Refuse variables with which ranks can never meet.

    Raises:
        LocalConfigError: There is no such rank, or nothing says where the ranks meet.
    """
    if not 0 <= info.rank < info.world:
        raise LocalConfigError(
            f"RANK={info.rank} and WORLD_SIZE={info.world} are set in the environment: there is no"
            f" such rank; {UNSET}"
        )
    if info.world > 1 and by_hand(env) and "MASTER_ADDR" not in env:
        raise LocalConfigError(
            f"RANK={info.rank} and WORLD_SIZE={info.world} are set in the environment, so this"
            f" process would wait for {info.world - 1} others, but MASTER_ADDR, which says where"
            f" they meet, is not; {UNSET}"
        )


def join(info: RankInfo, backend: str, timeout_s: float, *, launched: bool) -> None:
    """Create the process group of all ranks.

    Args:
        info: This rank, and where the ranks meet.
        backend: gloo or nccl.
        timeout_s: Time-out of every collective, seconds.
        launched: A launcher started the ranks, which will also end them.

    Raises:
        LocalConfigError: The address is in use or unknown, or not all ranks came.
    """
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s)
    if info.world == 1:  # no port, and nothing that listens on the network
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
        return
    limit_s = min(timeout_s, JOIN_LOCAL_S if not launched and _is_local(info.address) else JOIN_S)
    with _reminder(info, limit_s):
        try:
            rendezvous = dist.rendezvous(
                "env://", info.rank, info.world, timeout=timedelta(seconds=limit_s)
            )
            store, rank, world = next(rendezvous)
        except (dist.DistStoreError, dist.DistNetworkError, ValueError) as error:
            raise _refusal(info, limit_s, str(error), launched) from error
    store.set_timeout(timeout)
    dist.init_process_group(
        backend,
        # the prefix that init_process_group gives its own store
        store=dist.PrefixStore("default_pg", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


def _is_local(address: str) -> bool:
    if address in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _who(info: RankInfo) -> str:
    return f"rank {info.rank} of {info.world} on {socket.gethostname()} (pid {os.getpid()})"


@contextmanager
def _reminder(info: RankInfo, limit_s: float) -> Iterator[None]:
    """Say at once who waits (rank 0), and again after REMIND_S (every rank)."""
    place = f"{info.address}:{info.port}"
    others = f"{info.world - 1} other rank{'s' * (info.world > 2)}" if info.rank == 0 else "rank 0"
    text = f"{_who(info)} waits for {others} at {place}, at most {limit_s:g} s ({info.launcher})"
    if info.rank == 0:
        log.info("%s", text)
    # not by logging: ranks other than 0 do not log to the terminal
    timer = threading.Timer(REMIND_S, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refusal(info: RankInfo, limit_s: float, reason: str, launched: bool) -> LocalConfigError:
    place = f"{info.address}:{info.port}"
    if "EADDRINUSE" in reason or "already in use" in reason.lower():
        return LocalConfigError(
            f"{_who(info)} cannot listen at {place}: another process uses this port; set"
            " MASTER_PORT to a free one on all ranks, or end the other process"
        )
    if "EADDRNOTAVAIL" in reason or "Name or service" in reason or "resolve" in reason.lower():
        return LocalConfigError(
            f"{_who(info)} cannot use MASTER_ADDR {info.address}: {reason.splitlines()[0]}"
        )
    found = "not all ranks" if info.rank == 0 else "nobody"
    hint = "the output of the missing ranks says why" if launched else UNSET
    return LocalConfigError(
        f"{_who(info)} waited {limit_s:g} s at {place}: {found} came"
        f" ({reason.splitlines()[0][:200]})",
        hint=hint,
        # a rank of a launcher that does not come may be a broken node, which a new start avoids
        exit_code=ExitCode.FAILURE if launched else ExitCode.USAGE,
    )
