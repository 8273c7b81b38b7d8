"""What fine-tuning computes and keeps, from a protocol's backbone passes: training FLOPs per item
and the activations of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allinone.engine.config import TrainConfig
from allinone.engine.planning.estimate import Activations, element_sizes
from allinone.model import AllInOneConfig
from allinone.model.activations import pass_bytes, pass_shape, working_bytes
from allinone.model.flops import Part, forward_flops

Passes = Sequence[tuple[Part, int]]
"""Part of the backbone and clips of a training item that run through it at once, in the order of
the forward pass."""


def training_flops(passes: Passes, config: AllInOneConfig, *, frozen: bool) -> float:
    """FLOPs of a step per item: all passes, forward and backward (3 x forward; a frozen backbone
    has no backward), FMA = 2; heads are left out."""
    forward = sum(
        number
        * forward_flops(
            config, frames=config.num_frames, text_tokens=config.max_text_len, part=part
        )
        for part, number in passes
    )
    return float(forward if frozen else 3 * forward)


def task_activations(
    passes: Passes,
    config: AllInOneConfig,
    items: int,
    element: int,
    mask: int = 1,
    checkpointing: bool = False,
) -> Activations:
    """Bytes that a micro-batch of `items` keeps for its backward pass, heads left out. `element`:
    bytes of an activation; `mask`: of a dropout mask. Every pass is taken to copy its pixels, as
    those of several texts per clip do."""
    kept, working = [0.0], 0.0
    for part, clips in ((part, items * number) for part, number in passes):
        shape: dict[str, Any] = {
            "clips": clips,
            "frames": config.num_frames,
            "text_tokens": config.max_text_len,
            "part": part,
        }
        kept.append(
            pass_bytes(config, **shape, element=element, mask=mask, checkpointing=checkpointing)
        )
        working = max(
            working,
            working_bytes(config, *pass_shape(config, **shape), element, mask, checkpointing),
        )
    return Activations(sum(kept), kept[-1], working)


def run_activations(passes: Passes, config: AllInOneConfig, train: TrainConfig) -> Activations:
    """The activations of a run on this machine's kind of device."""
    return task_activations(
        passes, config, train.micro_batch, *element_sizes(train), train.activation_checkpointing
    )
