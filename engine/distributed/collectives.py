"""Collectives for Python objects, decisions of rank 0, and the time-out of all collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from allinone.engine.distributed.watchdog import GRACE_S, STARTUP_S

T = TypeVar("T")


def collective_timeout_s(hang_timeout_s: float) -> float:
    """Time-out of collectives in seconds: later than any watchdog's, which says more."""
    return max(hang_timeout_s, STARTUP_S) + GRACE_S


def run_on_rank0(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on every rank; collective.

    Raises:
        ValueError, RuntimeError, OSError: What `action` raised, on every rank, so that no rank
            waits for one that has left.
    """
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = action()
        # keep the error for the broadcast: the other ranks are already blocked in it
        except (ValueError, RuntimeError, OSError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    # other errors are bugs: rank 0 ends with a traceback, and its peers because it has left
    if box[1] is not None:
        raise box[1]
    return box[0]


def all_gather_object(value: T) -> list[T]:
    """The values of all ranks in rank order; collective."""
    # pickled to a tensor of bytes and, with NCCL, copied to the GPU and back: not inside a step
    values: list[Any] = [value]
    if dist.get_world_size() > 1:
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values
