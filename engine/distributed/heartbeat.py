"""Who is missing when a run hangs. Every rank tells the rendezvous store every two seconds that it
lives, and what it does; a rank whose watchdog has run out asks who has fallen silent."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

PERIOD_S = 2.0
LISTEN_S = 5.0
"""A rank whose count has not moved for so long is silent. Counts, not clocks: those of two hosts
differ."""
PATIENCE_S = 10.0
"""The store itself may be what hangs."""


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a rank."""

    number: int
    host: str
    pid: str
    doing: str


def describe_silent_ranks(before: dict[int, Sign], after: dict[int, Sign], world: int) -> str:
    """Who is missing, from two looks at all ranks' signs."""
    silent = [
        rank
        for rank in range(world)
        if rank not in after or (rank in before and after[rank].number == before[rank].number)
    ]
    if silent:
        named = []
        for rank in silent[:8]:
            sign = after.get(rank)
            named.append(
                f"rank {rank} on {sign.host} (pid {sign.pid}), last in {sign.doing}"
                if sign
                else f"rank {rank}"
            )
        more = f" and {len(silent) - 8} more" if len(silent) > 8 else ""
        return (
            f"no sign of life from {'; '.join(named)}{more}: stopped, dead, or its host is out of"
            " reach"
        )
    usual = Counter(sign.doing for sign in after.values()).most_common(1)[0][0]
    elsewhere = [
        f"rank {rank} on {sign.host} in {sign.doing}"
        for rank, sign in after.items()
        if sign.doing != usual
    ]
    return f"all ranks live, most in {usual}" + (
        f"; elsewhere: {'; '.join(elsewhere[:8])}" if elsewhere else ""
    )


class Heartbeat:
    """Signs of life of this rank, in a thread of its own, and a look at all others'."""

    def __init__(self, doing: Callable[[], str]) -> None:
        import torch.distributed as dist

        # the only way to the store that all ranks share already
        from torch.distributed.distributed_c10d import _get_default_store

        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._doing = doing
        # a client each: calls of one wait for another
        self._store, self._reader = _get_default_store().clone(), _get_default_store().clone()  # type: ignore[attr-defined]  # not in torch's stub
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="roll call", daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self._store.set(
                    f"sign/{self._rank}",
                    "\t".join((str(number), socket.gethostname(), str(os.getpid()), self._doing())),
                )
            except (
                RuntimeError
            ):  # the store has gone with its rank; that rank's end will be noticed
                return
            if self._ended.wait(PERIOD_S):
                return

    def _signs(self) -> dict[int, Sign]:
        signs = {}
        for rank in range(self._world):
            if self._reader.check([f"sign/{rank}"]):
                number, host, pid, doing = self._reader.get(f"sign/{rank}").decode().split("\t", 3)
                signs[rank] = Sign(int(number), host, pid, doing)
        return signs

    def missing(self) -> str:
        """Who is missing, in words; takes up to LISTEN_S + PATIENCE_S + PERIOD_S."""
        found = ["the rendezvous store, which rank 0 or the launcher keeps, does not answer"]

        def ask() -> None:
            try:
                before = self._signs()
                time.sleep(LISTEN_S)
                found[0] = describe_silent_ranks(before, self._signs(), self._world)
            except RuntimeError as error:
                found[0] += f" ({error})"

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(LISTEN_S + PATIENCE_S)
        time.sleep(
            PERIOD_S
            # others ask at about the same time: they should still find this rank, and the store if
            # it keeps it
        )
        return found[0]

    def stop(self) -> None:
        """The run has ended. A thread inside the store when the interpreter ends makes it abort; it
        gets PATIENCE_S to come back."""
        self._ended.set()
        self._thread.join(PATIENCE_S)
