"""Operations of a training step: FLOPs, bytes of memory traffic and kernel launches, by kind.

They are recorded while the step's own code runs, on fake tensors if need be, so that the counts
follow the code. docs/planning.md states what each number assumes about CUDA's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Kind = Literal["GEMM", "attention", "memory-bound"]
KINDS: tuple[Kind, ...] = ("GEMM", "attention", "memory-bound")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
_ATTENTION = ("scaled_dot_product", "varlen_attn")
_NO_KERNEL = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operations without a kernel that torch does not mark as views."""
_SELECTIONS = ("index_select", "embedding", "gather")
"""Operations that read no more of their first input than they write."""
_LAUNCHES = {
    "native_layer_norm_backward": 2,  # gradient of the input; of weight and bias
    "embedding_dense_backward": 5,  # sorts the ids first
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3,  # row sums, gradients, conversion
    "_varlen_attn": 2,  # also fills the state of a random number generator
    "_varlen_attn_backward": 3,
}
"""Kernels of an operation on CUDA, where not 1."""
_REDUCES_ROWS = ("sum", "native_layer_norm_backward", "index_add", "embedding_dense_backward")
"""Operations of which a compiler makes a kernel of their own besides the one that they join: they
add up the rows of a matrix."""


@dataclass(frozen=True)
class Operation:
    """One operation, or one fused kernel."""

    kind: Kind
    flops: float
    """Of matrix products; a multiply-add is 2. 0 if memory-bound."""
    bytes: float
    """Read and written; what an operation reads twice counts once."""
    written: float
    launches: float
    """Kernels."""


@dataclass(frozen=True)
class _Access:
    """An operation and the storages that it touches."""

    kind: Kind
    name: str
    flops: float
    reads: dict[int, float]
    """Storage → bytes."""
    writes: dict[int, float]
    region: int
    """The compiled function that it is part of; 0: none."""

    def operation(self) -> Operation:
        """On its own."""
        written = sum(self.writes.values())
        read = sum(self.reads.values())
        return Operation(
            self.kind, self.flops, read + written, written, _LAUNCHES.get(self.name, 1)
        )


class OperationRecorder(TorchDispatchMode):
    """Records every operation that launches a kernel while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self._accesses: list[_Access] = []
        self._region = self._regions = 0
        # keeps the storages: an address would be used again
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        known = func.namespace in ("aten", "torch_attn")
        if known and not func.is_view and name not in _NO_KERNEL:
            self._record(func, name, args, kwargs, result)
        return result

    def _record(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        reads, writes = self._bytes((args, kwargs)), self._bytes(result)
        if name == "_unsafe_view":
            return
        if name in _SELECTIONS:
            source = args[0].untyped_storage()._cdata
            reads[source] = min(reads[source], sum(writes.values()))
        kind: Kind = "memory-bound"
        flops = 0.0
        if any(part in name for part in _ATTENTION):
            kind = "attention"
            if "varlen" in name:
                flops = _varlen_flops(args, "backward" in name)
            elif "backward" in name:
                gradient, q, k, v = (tensor.shape for tensor in args[:4])
                flops = sdpa_backward_flop_count(gradient, q, k, v)
            else:
                flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif name in _PRODUCTS:
            kind = "GEMM"
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        self._accesses.append(_Access(kind, name, flops, reads, writes, self._region))

    def _bytes(self, values: Any) -> dict[int, float]:
        parts: dict[int, dict[Any, int]] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
                # queries, keys and values are parts of one storage; a tensor given twice is not
                part = tensor.storage_offset(), tensor.shape, tensor.stride()
                parts.setdefault(storage._cdata, {})[part] = tensor.numel() * tensor.element_size()
        # an expanded tensor has more elements than its storage
        return {
            storage: float(min(sum(sizes.values()), self._storages[storage].nbytes()))
            for storage, sizes in parts.items()
        }

    def compiled_form(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function, of which `compiled` makes fused kernels, forward and backward.

        Args:
            function: Its third argument is the tensor whose gradient ends its backward pass, as in
                `rolled_block`.
        """

        def run(*args: Any) -> Tensor:
            with self._in_region():
                result = function(*args)
            number = 0

            def enter(_: Tensor) -> None:
                nonlocal number
                self._regions += 1
                number = self._region = self._regions

            def leave(_: Tensor) -> None:
                # the gradient of one block's input is that of the output of the block before it,
                # whose hook may have run first
                if self._region == number:
                    self._region = 0

            if result.requires_grad:
                result.register_hook(enter)
                args[2].register_hook(leave)
            return result

        return run

    @contextmanager
    def _in_region(self) -> Iterator[None]:
        before = self._region
        self._regions += 1
        self._region = self._regions
        try:
            yield
        finally:  # also where recomputation stops in the middle of a block
            self._region = before

    def eager(self) -> list[Operation]:
        """Every operation as one kernel or as those of _LAUNCHES."""
        return [access.operation() for access in self._accesses]

    def compiled(self, everything: bool = False) -> list[Operation]:
        """The operations as a compiler would fuse those of compiled functions.

        Memory-bound operations between two matrix products become one kernel, which reads what it
        does not make itself and writes what a later kernel reads. Sums over the rows of a matrix
        take a kernel of their own in addition.

        Args:
            everything: The step is one compiled function, not only what went through
                `compiled_form`.
        """
        last_read = {
            storage: place
            for place, access in enumerate(self._accesses)
            for storage in access.reads
        }
        fused: list[Operation] = []
        start = 0
        while start < len(self._accesses):
            first, end = self._accesses[start], start + 1
            if first.kind != "memory-bound" or not (first.region or everything):
                fused.append(first.operation())
                start = end
                continue
            while end < len(self._accesses) and (
                self._accesses[end].kind == "memory-bound"
                and (everything or self._accesses[end].region == first.region)
            ):
                end += 1
            fused.append(_fuse(self._accesses[start:end], end, last_read))
            start = end
        return fused


def _varlen_flops(args: Any, backward: bool) -> float:
    """FLOPs of attention inside sequences of different length, [W, H, C/H] each.

    The lengths are numbers on the device, so all are taken to be equal. Where they differ, the
    products are more by the variance of the lengths over the square of their mean: 0.1 % for texts
    of 16 +- 6 tokens before 197 visual ones.

    Args:
        args: Of torch's operator.
        backward: It is the one of the backward pass.
    """
    q, k = args[1:3] if backward else args[:2]
    starts = args[7] if backward else args[4]
    sequences = starts.shape[0] - 1
    products = 5 if backward else 2  # the weights are computed again
    return products * 2 * q.shape[0] * (k.shape[0] / sequences) * q.shape[1] * q.shape[2]


def _fuse(group: Sequence[_Access], end: int, last_read: dict[int, int]) -> Operation:
    """One kernel of neighbouring operations.

    Args:
        group: The operations.
        end: Number of the first operation after them.
        last_read: Storage → the last operation that reads it.
    """
    made: dict[int, float] = {}
    read = 0.0
    seen: set[int] = set()
    for access in group:
        for storage, size in access.reads.items():
            if storage not in made and storage not in seen:
                seen.add(storage)
                read += size
        for storage, size in access.writes.items():
            made[storage] = max(made.get(storage, 0.0), size)
    # what nobody reads is a result of the step: a gradient, a metric
    written = sum(size for storage, size in made.items() if last_read.get(storage, end) >= end)
    launches = 1 + sum(access.name in _REDUCES_ROWS for access in group)
    return Operation("memory-bound", 0.0, read + written, written, launches)


@dataclass(frozen=True)
class Total:
    """Sums of one kind."""

    flops: float
    bytes: float
    written: float
    launches: float


def totals(operations: Iterable[Operation]) -> dict[Kind, Total]:
    """Sum operations by kind."""
    listed = list(operations)
    return {
        kind: Total(
            *(
                sum(getattr(each, name) for each in listed if each.kind == kind)
                for name in ("flops", "bytes", "written", "launches")
            )
        )
        for kind in KINDS
    }


def interpolate(
    few: Sequence[Operation], many: Sequence[Operation], share: float
) -> list[Operation]:
    """The operations of a third size, linear in the size.

    Args:
        few: Operations of the smaller size.
        many: The same operations of the larger size.
        share: Where between the two sizes; below 0 and above 1 extrapolates.
    """
    return [
        Operation(
            one.kind,
            one.flops + share * (other.flops - one.flops),
            one.bytes + share * (other.bytes - one.bytes),
            one.written + share * (other.written - one.written),
            one.launches,
        )
        for one, other in zip(few, many, strict=True)
    ]
