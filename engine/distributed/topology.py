"""Who computes what: data ranks see different clips, the ranks of a tensor-parallel group share one
data rank's clips and hold parts of the layers.

Nothing here needs megatron-core; engine/distributed/tensor_parallel.py does, and is imported for
--tensor-parallel above 1 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.engine.distributed.collectives import all_gather_object

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """The place of one rank among all. Ranks of one tensor-parallel group follow one another, so
    that they sit on one machine."""

    rank: int = 0
    world: int = 1
    tensor: int = 1
    """Ranks that share every layer."""
    data_group: Any = None
    """Process group of the ranks that hold the same part of the layers and see different clips;
    None: all ranks."""
    tensor_group: Any = None
    """Process group of the ranks that see the same clips; None without tensor parallelism."""

    @property
    def data_rank(self) -> int:
        """Place among those that see different clips."""
        return self.rank // self.tensor

    @property
    def data_world(self) -> int:
        """How many micro-batches of different clips are computed side by side."""
        return self.world // self.tensor

    @property
    def tensor_rank(self) -> int:
        """Which part of the layers this rank holds."""
        return self.rank % self.tensor

    def one_per_data_rank(self, parts: Sequence[T]) -> list[T]:
        """Of one value per rank, those that count: tensor-parallel ranks repeat what their data
        rank computes."""
        return list(parts[:: self.tensor])


_current: Layout | None = None


def current() -> Layout:
    """The layout of the run in this process; before one is started, every rank is a data rank."""
    rank, world = (
        (dist.get_rank(), dist.get_world_size())
        if dist.is_available() and dist.is_initialized()
        else (0, 1)
    )
    return (
        _current
        if _current is not None and (_current.rank, _current.world) == (rank, world)
        else Layout(rank, world)
    )


def start(tensor: int, timeout_s: float) -> Layout:
    """Divide the ranks of the process group; ConfigError where they cannot be divided. Collective
    over all ranks."""
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
    """This rank's value and the others', one per data rank, on every rank. Collective."""
    return current().one_per_data_rank(all_gather_object(mine))


@dataclass(frozen=True)
class Division:
    """How a parameter is cut over a tensor-parallel group. `blocks`: along `dim` the whole is that
    many blocks, each of which is cut by itself; the q, k and v of attention are three, so that
    every rank gets the queries, keys and values of the same heads.
    """

    dim: int
    blocks: int = 1

    def part(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """What rank `rank` of `size` holds."""
        pieces = whole.chunk(self.blocks * size, self.dim)
        return torch.cat(pieces[rank::size], self.dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole, from the parts of all ranks in order."""
        pieces = [part.chunk(self.blocks, self.dim) for part in parts]
        return torch.cat(
            [piece[block] for block in range(self.blocks) for piece in pieces], self.dim
        )


def division_of(parameter: nn.Parameter) -> Division | None:
    """How a parameter is cut, None for one that every rank holds whole. The attributes are
    megatron-core's."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    return Division(getattr(parameter, "partition_dim"), getattr(parameter, "partition_stride"))  # noqa: B009 - not torch's


def gather(part: Tensor, division: Division, layout: Layout) -> Tensor:
    """The whole tensor from the parts of all ranks of a tensor-parallel group. Collective over
    it."""
    parts = [torch.empty_like(part) for _ in range(layout.tensor)]
    dist.all_gather(parts, part.contiguous(), group=layout.tensor_group)
    return division.join(parts)
