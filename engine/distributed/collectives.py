"""Collectives over all ranks for Python objects and decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from allinone.engine.distributed.watchdog import GRACE_S, START_S

T = TypeVar("T")


def collective_timeout_s(hang_timeout_s: float) -> float:
    """Time-out of collectives: later than any watchdog's."""
    return max(hang_timeout_s, START_S) + GRACE_S


def run_on_rank0(action: Callable[[], T]) -> T:
    """Result of `action` on rank 0, given to every rank. Its error is raised on every rank, so that
    none waits for one that has left."""
    import torch.distributed as dist

    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = action()
        except (ValueError, RuntimeError, OSError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def all_gather_object(value: T) -> list[T]:
    """The value of every rank, in their order; collective."""
    import torch.distributed as dist

    everywhere: list[Any] = [value]
    if dist.get_world_size() > 1:
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, value)
    return everywhere
