"""Cost of fine-tuning, from the backbone passes of a task: training FLOPs per item and activation
memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from allinone.engine.config import TrainConfig
from allinone.engine.planning.estimate import Activations, element_sizes
from allinone.model import AllInOneConfig
from allinone.model.activations import mlm_head_bytes, pass_bytes, pass_shape, working_bytes
from allinone.model.flops import (
    CLASS_TOKEN,
    LastBlock,
    Part,
    forward_flops,
    mlm_flops,
    pooler_flops,
)

BackbonePasses = Sequence[tuple[Part | Literal["caption"], int]]
"""(part of the backbone, clips of one training item that pass through it at once), in the order of
the forward pass. "caption" is a joint pass with a [MASK] for each word, and the MLM head."""


def _caption_tokens(config: AllInOneConfig) -> tuple[int, LastBlock]:
    """Text tokens of a caption's pass, padding included, and what its last block computes."""
    words = config.max_text_len - 1
    return 2 * words, LastBlock(queries=2 * words, rows=words)


def training_flops(
    passes: BackbonePasses,
    config: AllInOneConfig,
    *,
    frozen: bool,
    text_tokens: float | None = None,
) -> float:
    """Training FLOPs per item, FMA = 2, heads excluded but for the MLM head of captions.

    Args:
        passes: Backbone passes of the task.
        config: Shape of the model.
        frozen: The backbone is frozen and has no backward pass; otherwise backward = 2 x forward.
        text_tokens: Tokens per text that the model computes, on average; None: max_text_len.
    """
    forward = 0
    for part, clips in passes:
        if part == "caption":
            tokens, last = _caption_tokens(config)
            words = round((text_tokens or config.max_text_len) - 1)
            one = forward_flops(
                config, frames=config.num_frames, text_tokens=tokens, last=last
            ) - pooler_flops(config)
            one += mlm_flops(config, words)
        else:
            one = forward_flops(
                config,
                frames=config.num_frames,
                text_tokens=text_tokens or config.max_text_len,
                part=part,
                last=CLASS_TOKEN,
            )
        forward += clips * one
    # the backward pass computes gradients of inputs and of weights: two products for one
    return float(forward if frozen else 3 * forward)


def task_activations(
    passes: BackbonePasses,
    config: AllInOneConfig,
    items: int,
    element: int,
    mask: int = 1,
    checkpointing: bool = False,
) -> Activations:
    """Activation memory that a micro-batch keeps for its backward pass, heads excluded but for the
    MLM head of captions.

    Args:
        passes: Backbone passes of the task. Each copies its pixels, as passes of several texts per
            clip do.
        config: Shape of the model.
        items: Size of the micro-batch.
        element: Bytes of one activation.
        mask: Bytes of one element of a dropout mask.
        checkpointing: Blocks are recomputed in the backward pass.
    """
    kept = [0.0]
    working = 0.0
    for part, clips in ((part, items * number) for part, number in passes):
        tokens, last, head = config.max_text_len, CLASS_TOKEN, 0.0
        if part == "caption":
            tokens, last = _caption_tokens(config)
            head = mlm_head_bytes(config, clips * (config.max_text_len - 1), element)
        shape: dict[str, Any] = {
            "clips": clips,
            "frames": config.num_frames,
            "text_tokens": tokens,
            "part": "joint" if part == "caption" else part,
        }
        # every pass keeps its activations until the one backward pass of the step
        kept.append(
            pass_bytes(
                config,
                **shape,
                element=element,
                mask=mask,
                checkpointing=checkpointing,
                last=last,
            )
            + head
        )
        working = max(
            working,
            working_bytes(config, *pass_shape(config, **shape), element, mask, checkpointing),
        )
    return Activations(sum(kept), kept[-1], working)


def run_activations(
    passes: BackbonePasses, config: AllInOneConfig, train: TrainConfig
) -> Activations:
    """Activation memory of a run, with the element sizes of its precision and device.

    Args:
        passes: Backbone passes of the task.
        config: Shape of the model.
        train: Gives micro-batch, precision, device and activation checkpointing.
    """
    return task_activations(
        passes, config, train.micro_batch, *element_sizes(train), train.activation_checkpointing
    )
