"""Exponential moving average of the weights (EMA; Polyak & Juditsky 1992), in fp32.

average = decay x average + (1 - decay) x weights after every optimizer step, from the initial
weights on. Each rank averages the fp32 tensors that its optimizer updates, so ZeRO 1, 2 and 3
divide the average as they divide the optimizer state, and offload to the host keeps it there. A
checkpoint holds it by parameter name in ema/, a model folder like weights/. The average of an
element depends on nothing else, so it is bit-equal at any layout at which the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from allinone.engine import deepspeed_adapter as adapter
from allinone.engine.checkpoint.layout import EMA, CheckpointError
from allinone.engine.checkpoint.reshard import fill_slices
from allinone.engine.distributed import topology


class WeightAverage:
    """The average of a run's weights; frozen parameters, which do not change, are left out.

    Args:
        optimizer: `engine.optimizer` of DeepSpeed.
        module: The model inside the engine.
        decay: Weight of the former average, in (0, 1).
        stage: ZeRO stage.
    """

    def __init__(self, optimizer: Any, module: nn.Module, decay: float, stage: int) -> None:
        self._optimizer, self._module, self._stage = optimizer, module, stage
        self._average = get_ema_multi_avg_fn(decay)
        layout = topology.current()
        masters = adapter.fp32_masters(optimizer)
        parts = adapter.flat_partitions(optimizer, stage, layout.data_rank, layout.data_world)
        found = [(masters.get(flat, flat), slices) for flat, slices in parts]  # type: ignore[call-overload]
        self._weights: list[Tensor] = [flat for flat, _ in found]
        self._slices = [slices for _, slices in found]
        self._averages = [flat.detach().clone() for flat in self._weights]

    def update(self) -> None:
        """Average the weights of a finished step. A skipped step, whose weights are those of the
        step before, counts like any other."""
        self._average(self._averages, self._weights, 0)  # the count is not used

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights; collective, on entry and on exit."""
        self._exchange()
        yield
        # not in a finally block: after an error on one rank the others do not enter this collective
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
        adapter.copy_fp32_to_model(self._optimizer, self._stage)

    def load(self, folder: Path) -> None:
        """Restore this rank's part of the average from a verified checkpoint of any layout.

        Raises:
            CheckpointError: The checkpoint has no average.
        """
        files = sorted((folder / EMA).glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder} has no {EMA}/: it was written without --ema")
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
            places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no dict

            def saved(name: str) -> Tensor:
                return places[name].get_tensor(name)

            for average, slices in zip(self._averages, self._slices, strict=True):
                average.copy_(fill_slices(average, slices, names, saved))


def describe_average(decay: float, steps: int) -> str:
    """What a run averages, for the log: with a decay too close to 1, mostly its initial weights."""
    left = decay**steps
    return (
        f"EMA of the weights: decay {decay:g}, about the last {1 / (1 - decay):,.0f} steps; at the"
        f" end the initial weights still count {100 * left:.1f} %"
        + (": choose a smaller --ema" if left > 0.1 else "")
    )
