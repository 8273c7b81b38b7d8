"""What fine-tuning computes and keeps, from a protocol's backbone passes: training FLOPs per item and the activations of a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from engine import ds_config
from engine.plan import Zero
from engine.planned import Activations
from finetune.config import TuneConfig
from model import AllInOneConfig
from model.activations import pass_bytes, working_bytes
from model.flops import forward_flops

Passes = Mapping[Literal["joint", "text", "video"], int]
"""Part of the backbone → passes of a training item."""


def training_flops(passes: Passes, config: AllInOneConfig, *, frozen: bool) -> float:
    """FLOPs of a step per item: all passes, forward and backward (3 x forward; a frozen backbone has no backward), FMA = 2; heads are left out."""
    forward = sum(
        number * forward_flops(config, frames=config.num_frames, text_tokens=config.max_text_len, part=part)
        for part, number in passes.items()
    )
    return float(forward if frozen else 3 * forward)


def task_activations(
    passes: Passes, config: AllInOneConfig, items: int, element: int, mask: int = 1, checkpointing: bool = False
) -> Activations:
    """Bytes that a micro-batch of `items` keeps for its backward pass, heads left out. `element`: bytes of an activation; `mask`: of a dropout mask.
    An item's passes of one kind run as one, of items x passes clips (`protocols.base.pooled`)."""
    tokens = config.max_text_len + 1 + config.num_patches
    kept, working = [0.0], 0.0
    for part, number in passes.items():
        if not number:
            continue
        clips = items * number
        one = pass_bytes(
            config,
            clips=clips,
            frames=config.num_frames,
            text_tokens=config.max_text_len,
            part=part,
            element=element,
            mask=mask,
            checkpointing=checkpointing,
        )
        rows = clips if part == "text" else clips * config.num_frames
        kept.append(one)
        working = max(working, working_bytes(config, rows, tokens, element, mask, checkpointing))
    return Activations(sum(kept), kept[-1], working)


def run_activations(passes: Passes, config: AllInOneConfig, train: TuneConfig) -> Activations:
    """The activations of a run on this machine's kind of device."""
    element = Zero.from_config(ds_config.load(train.ds_config)).element
    on_gpu = torch.cuda.is_available() and train.device != "cpu"
    return task_activations(passes, config, train.micro_batch, element, 1 if on_gpu else element, train.activation_checkpointing)
