"""Counts the operations of a pre-training step from the options alone, on tensors without data."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from allinone.data.loading.batch import Batch
from allinone.engine.objective import StepModule
from allinone.engine.planning.operations import (
    Operation,
    OperationRecorder,
    interpolate,
)
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import MASK_PROB, masked_tokens
from allinone.pretrain.objectives.combined import PretrainObjective
from allinone.pretrain.objectives.config import ObjectiveConfig

SIZES = (8, 32)
"""Micro-batches that are recorded. Between them and beyond, all counts are linear but those of the
products with VTM's and VTC's B x B matrices, a few ten-thousandths of the FLOPs."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pass:
    """What the operations of a micro-batch depend on, besides its size."""

    model: AllInOneConfig
    objective: ObjectiveConfig
    frames: int
    precision: str = "bf16"
    """fp32, bf16 or fp16."""
    checkpointing: bool = False
    """Blocks are recomputed in the backward pass."""
    mask_prob: float = MASK_PROB
    """Share of the word pieces that MLM masks."""

    def operations(self, clips: int, compiled: bool = False) -> list[Operation]:
        """Forward and backward pass of one micro-batch on a GPU.

        Args:
            clips: Clips of the micro-batch.
            compiled: As torch.compile would fuse them.
        """
        return _operations(self._key, clips, compiled)

    @property
    def _key(self) -> Key:
        # a transformers config has no hash
        model = self.model.to_json_string(use_diff=False)
        rest = (self.frames, self.precision, self.checkpointing, self.mask_prob)
        return (model, self.objective, *rest)


Key = tuple[str, ObjectiveConfig, int, str, bool, float]
"""The fields of Pass, the model as JSON."""


@functools.lru_cache(256)
def _operations(key: Key, clips: int, compiled: bool) -> list[Operation]:
    few, many = (_recorded(key, size)[compiled] for size in SIZES)
    return interpolate(few, many, (clips - SIZES[0]) / (SIZES[1] - SIZES[0]))


@functools.lru_cache(64)
def _recorded(key: Key, clips: int) -> tuple[list[Operation], list[Operation]]:
    """Eager and compiled operations."""
    model = AllInOneConfig.from_dict(json.loads(key[0]))
    recorder = record(Pass(model, *key[1:]), clips)
    return recorder.eager(), recorder.compiled()


def record(step: Pass, clips: int) -> OperationRecorder:
    """Run forward and backward pass of one micro-batch on fake tensors, without data or memory.

    Args:
        step: Model, objectives and options.
        clips: Clips of the micro-batch.
    """
    with FakeTensorMode(), _default_dtype(DTYPES[step.precision]):
        model = AllInOneForPreTraining(step.model).train()
        for dropout in model.modules():
            if isinstance(dropout, nn.Dropout):  # on a CPU, torch composes it of three kernels
                dropout.__dict__["forward"] = functools.partial(_cuda_dropout, rate=dropout.p)
        if step.checkpointing:
            model.gradient_checkpointing_enable()
        batch = _batch(step, clips)
        module = StepModule(model, PretrainObjective(step.objective))
        with OperationRecorder() as recorder:
            module(batch)[0].backward()
    return recorder


def _cuda_dropout(x: Tensor, rate: float) -> Tensor:
    return torch.native_dropout(x, rate, True)[0] if rate else x


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _batch(step: Pass, clips: int) -> Batch:
    """Full captions; the values do not matter."""
    config, length = step.model, step.model.max_text_len
    ids = torch.zeros(clips, length, dtype=torch.long)
    masked = masked_tokens(config, clips, step.mask_prob)
    side = config.image_size
    names = ("",) * clips
    return Batch(
        pixels=torch.zeros(clips, step.frames, 3, side, side, dtype=torch.float32),
        text_ids=ids,
        text_mask=ids,
        mlm_ids=ids,
        mlm_labels=ids,
        mlm_positions=torch.zeros(masked, dtype=torch.long),
        dataset_ids=torch.zeros(clips, dtype=torch.long),
        dataset_names=("",),
        clips=names,
        captions=names,
        first_position=0,
    )
