"""Finds unresponsive ranks during a hang.

Every rank writes a heartbeat with its current activity to the rendezvous store every two seconds. A
rank whose watchdog has expired reads the heartbeats of all ranks twice and compares.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from allinone.engine import deepspeed_adapter

PERIOD_S = 2.0
LISTEN_S = 5.0
"""Time between the two readings. Counts are compared, not clocks, which differ between hosts."""
STORE_TIMEOUT_S = 10.0
"""How long to wait for the store, which may be what hangs."""
MAX_NAMED = 8
"""Ranks that a report lists by name."""


@dataclass(frozen=True)
class Heartbeat:
    """The newest heartbeat of a rank."""

    count: int
    host: str
    pid: str
    activity: str


def describe_unresponsive_ranks(
    before: Mapping[int, Heartbeat], after: Mapping[int, Heartbeat], world: int
) -> str:
    """Name the ranks that stopped sending heartbeats, or else the ranks that do something unusual.

    Args:
        before: Rank → heartbeat at the first reading.
        after: The same at the second reading.
        world: Number of ranks.
    """
    # equal counts are enough: two heartbeats fall between readings that are LISTEN_S apart
    silent = [
        rank
        for rank in range(world)
        if rank not in after or (rank in before and after[rank].count == before[rank].count)
    ]
    if silent:
        named = [_describe(rank, after.get(rank)) for rank in silent[:MAX_NAMED]]
        more = f" and {len(silent) - MAX_NAMED} more" if len(silent) > MAX_NAMED else ""
        return (
            f"no sign of life from {'; '.join(named)}{more}: stopped, dead, or on an unreachable"
            " host"
        )
    usual = Counter(heartbeat.activity for heartbeat in after.values()).most_common(1)[0][0]
    others = [
        f"rank {rank} on {heartbeat.host} in {heartbeat.activity}"
        for rank, heartbeat in after.items()
        if heartbeat.activity != usual
    ]
    exceptions = f"; except {'; '.join(others[:MAX_NAMED])}" if others else ""
    return f"all ranks are alive, most of them in {usual}{exceptions}"


def _describe(rank: int, heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return f"rank {rank}"
    return f"rank {rank} on {heartbeat.host} (pid {heartbeat.pid}), last in {heartbeat.activity}"


class HeartbeatMonitor:
    """Sends this rank's heartbeats from a thread and reads those of all ranks.

    Args:
        activity: Returns what this rank is doing.
    """

    def __init__(self, activity: Callable[[], str]) -> None:
        import torch.distributed as dist

        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._activity = activity
        # one client per thread: calls of one client wait for each other
        self._writer = deepspeed_adapter.rendezvous_store()
        self._reader = deepspeed_adapter.rendezvous_store()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send, name="heartbeat", daemon=True)
        self._thread.start()

    def _send(self) -> None:
        count = 0
        while True:
            count += 1
            fields = (str(count), socket.gethostname(), str(os.getpid()), self._activity())
            try:
                self._writer.set(f"heartbeat/{self._rank}", "\t".join(fields))
            except RuntimeError:  # the rank that hosts the store has left, which others will notice
                return
            if self._stopped.wait(PERIOD_S):
                return

    def _read(self) -> dict[int, Heartbeat]:
        heartbeats = {}
        for rank in range(self._world):
            key = f"heartbeat/{rank}"
            # get() blocks until the key exists, and a rank that never started has none
            if self._reader.check([key]):
                # the activity is last, and may contain any character
                count, host, pid, activity = self._reader.get(key).decode().split("\t", 3)
                heartbeats[rank] = Heartbeat(int(count), host, pid, activity)
        return heartbeats

    def find_unresponsive(self) -> str:
        """Describe unresponsive ranks; takes up to LISTEN_S + STORE_TIMEOUT_S + PERIOD_S."""
        result = ["the rendezvous store, hosted by rank 0 or the launcher, does not answer"]

        def compare() -> None:
            try:
                before = self._read()
                time.sleep(LISTEN_S)
                result[0] = describe_unresponsive_ranks(before, self._read(), self._world)
            except RuntimeError as error:
                result[0] += f" ({error})"

        # in a thread of its own: a store that hangs must not keep the watchdog from ending
        thread = threading.Thread(target=compare, daemon=True)
        thread.start()
        thread.join(LISTEN_S + STORE_TIMEOUT_S)
        # other ranks read at about the same time, and this rank may host the store
        time.sleep(PERIOD_S)
        return result[0]

    def stop(self) -> None:
        """End the heartbeats. A thread inside the store would make the interpreter's exit abort."""
        self._stopped.set()
        self._thread.join(STORE_TIMEOUT_S)
