"""Streams of a GPU imitated on a CPU, to find races between them.

Operators run in order, as always on a CPU. What is recorded is which order a GPU would guarantee:
operators of one stream are ordered, those of two streams only by a wait of one for the other
(vector clocks: Mattern, "Virtual time and global states of distributed systems", 1989). A race is
an operator that reads what another stream has written, or writes what another stream has read or
written, without an order between the two.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeStream:
    """A stream: what it has done itself, and what of other streams it has waited for."""

    number = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        FakeStream.number += 1
        self.name = f"stream {FakeStream.number}"
        self.seen: Counter[str] = Counter()

    def tick(self) -> int:
        self.seen[self.name] += 1
        return self.seen[self.name]

    def wait_stream(self, other: FakeStream) -> None:
        self.seen |= other.seen


class Races(TorchDispatchMode):
    """Records the accesses to every storage, and the pairs of them that have no order."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device
        self.found: list[str] = []
        self._writes: dict[int, tuple[str, int]] = {}
        self._reads: dict[int, dict[str, int]] = {}
        self._kept: list[Any] = []
        """Every storage: one that was freed would give its number to another."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        stream = self.device.current
        now = stream.tick()
        inputs, outputs = self._storages((args, kwargs)), self._storages(result)
        # collectives return their work, and change the tensors that they are given
        mutated = func._schema.is_mutable or str(func).startswith("c10d.")
        written = inputs | outputs if mutated else outputs - inputs
        for storage in inputs | outputs:
            before = [self._writes[storage]] if storage in self._writes else []
            if storage in written:
                before += self._reads.get(storage, {}).items()
            for other, tick in before:
                if stream.seen[other] < tick:
                    self.found.append(f"{func} on {stream.name} races with {other}")
        for storage in written:
            self._writes[storage], self._reads[storage] = (stream.name, now), {}
        for storage in inputs - written:
            self._reads.setdefault(storage, {})[stream.name] = now
        return result

    def _storages(self, values: Any) -> set[int]:
        storages = [v.untyped_storage() for v in tree_leaves(values) if isinstance(v, Tensor)]
        self._kept += storages
        return {storage._cdata for storage in storages}


class FakeDevice:
    """Makes DeepSpeed's CPU accelerator look like one with streams.

    Args:
        ordered: False: a wait of one stream for another has no effect.
    """

    def __init__(self, ordered: bool = True) -> None:
        from deepspeed.accelerator import get_accelerator

        self.current = FakeStream()
        self.waits = 0
        """How often the host has waited for the device."""
        accelerator = get_accelerator()
        accelerator.__class__ = type(
            "WithStreams",
            (type(accelerator),),
            {
                "Stream": FakeStream,
                "is_synchronized_device": lambda _: False,
                "resolves_data_dependency": lambda _: False,
                "current_stream": lambda *_: self.current,
                "stream": lambda _, stream: self._on(stream),
                "synchronize": lambda *_: self._wait(),
            },
        )
        Tensor.record_stream = lambda tensor, stream: None  # type: ignore[method-assign]
        if not ordered:
            FakeStream.wait_stream = lambda *_: None  # type: ignore[method-assign]

    def _wait(self) -> None:
        self.waits += 1

    @contextlib.contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before
