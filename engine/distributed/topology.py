"""Which rank computes what.

Data ranks see different clips. The ranks of a tensor-parallel group share the clips of one data
rank and hold shards of its layers. Nothing here needs megatron-core; tensor_parallel.py does, and
is imported for --tensor-parallel above 1 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.engine import deepspeed_adapter
from allinone.engine.distributed.collectives import all_gather_object

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """The position of one rank.

    The ranks of a tensor-parallel group are consecutive, so that they share one machine.
    """

    rank: int = 0
    world: int = 1
    tensor: int = 1
    """Size of a tensor-parallel group."""
    data_group: Any = None
    """Process group of the ranks that hold the same shards and see different clips; None: all
    ranks."""
    tensor_group: Any = None
    """Process group of the ranks that see the same clips; None without tensor parallelism."""

    @property
    def data_rank(self) -> int:
        """Rank among those that see different clips."""
        return self.rank // self.tensor

    @property
    def data_world(self) -> int:
        """Number of micro-batches of different clips that are computed at the same time."""
        return self.world // self.tensor

    @property
    def tensor_rank(self) -> int:
        """Index of the shards that this rank holds."""
        return self.rank % self.tensor

    def one_per_data_rank(self, parts: Sequence[T]) -> list[T]:
        """One value per data rank out of one per rank; the others are repetitions."""
        return list(parts[:: self.tensor])


_current: Layout | None = None


def current() -> Layout:
    """The layout of the run in this process; before `start`, every rank is a data rank."""
    rank, world = 0, 1
    if dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    # a layout of an earlier process group of this process does not apply
    if _current is not None and (_current.rank, _current.world) == (rank, world):
        return _current
    return Layout(rank, world)


def start(tensor: int, timeout_s: float) -> Layout:
    """Arrange the ranks of the process group; collective.

    Args:
        tensor: Size of a tensor-parallel group (--tensor-parallel).
        timeout_s: Time-out of the new groups' collectives, seconds.

    Raises:
        ConfigError: `tensor` does not divide the number of ranks.
    """
    global _current
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % tensor:
        valid = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        raise ConfigError(
            f"--tensor-parallel {tensor} does not divide the {world} ranks; valid here: {valid}"
        )
    _current = Layout(rank, world)
    if tensor > 1:
        from allinone.engine.distributed import tensor_parallel

        _current = Layout(rank, world, tensor, *tensor_parallel.groups(tensor, timeout_s))
    return _current


def of_data_ranks(mine: T) -> list[T]:
    """The values of all data ranks in order, on every rank; collective."""
    return current().one_per_data_rank(all_gather_object(mine))


@dataclass(frozen=True)
class Division:
    """How a parameter is sharded over a tensor-parallel group."""

    dim: int
    blocks: int = 1
    """Number of blocks along `dim`, each of which is sharded separately. The joint q, k, v weight
    has three, so that every rank gets the queries, keys and values of the same heads."""

    def part(self, full: Tensor, rank: int, size: int) -> Tensor:
        """Cut a rank's shard from the full tensor.

        Args:
            full: The parameter, as at tensor parallel 1.
            rank: Tensor-parallel rank.
            size: Size of the tensor-parallel group.
        """
        # piece block * size + r belongs to rank r, which gets one piece of every block
        pieces = full.chunk(self.blocks * size, self.dim)
        return torch.cat(pieces[rank::size], self.dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The full tensor from the shards of all ranks in order."""
        pieces = [part.chunk(self.blocks, self.dim) for part in parts]
        return torch.cat(
            [piece[block] for block in range(self.blocks) for piece in pieces], self.dim
        )


def division_of(parameter: nn.Parameter) -> Division | None:
    """How a parameter is sharded; None for a replicated one."""
    partition = deepspeed_adapter.tensor_parallel_partition(parameter)
    return None if partition is None else Division(*partition)


def gather(part: Tensor, division: Division, layout: Layout) -> Tensor:
    """The full tensor from the shards of all ranks of a tensor-parallel group; collective over it.

    Args:
        part: This rank's shard.
        division: How the tensor is sharded.
        layout: Names the group.
    """
    # all_gather takes contiguous tensors only, of equal shape on all ranks
    parts = [torch.empty_like(part) for _ in range(layout.tensor)]
    dist.all_gather(parts, part.contiguous(), group=layout.tensor_group)
    return division.join(parts)
