"""Counts the operations of a pre-training step from the options alone, on tensors without data."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from allinone.data.loading.batch import Batch
from allinone.engine.objective import StepModule
from allinone.engine.planning.operations import Operation, OperationRecorder, interpolate
from allinone.engine.planning.step_time import CountedSteps
from allinone.model import AllInOneConfig, AllInOneForPreTraining, all_in_one
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import (
    MASK_PROB,
    Lengths,
    SampleCost,
    computed_text_tokens,
    masked_tokens,
)
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
    text_tokens: float | None = None
    """Tokens per text that are computed, on average; None: max_text_len."""
    texts: Texts = "padded"
    """flash: no padding, and FlashAttention for sequences of different length. packed: no padding
    but in attention, where FlashAttention does not run."""

    def operations(self, clips: int, mode: Mode = "eager") -> list[Operation]:
        """Forward and backward pass of one micro-batch on a GPU.

        Args:
            clips: Clips of the micro-batch.
            mode: eager; compiled: the blocks as torch.compile would fuse them; everything: the
                embeddings, heads and losses as well.
        """
        # a transformers config has no hash
        model = self.model.to_json_string(use_diff=False)
        rest = tuple(getattr(self, each.name) for each in fields(self)[1:])
        return _operations((model, *rest), clips, mode)


Texts = Literal["padded", "packed", "flash"]
Mode = Literal["eager", "compiled", "everything"]


@functools.lru_cache(256)
def _operations(key: tuple[Any, ...], clips: int, mode: Mode) -> list[Operation]:
    if clips in SIZES:
        return _recorded(key, clips, mode)
    few, many = (_recorded(key, size, mode) for size in SIZES)
    return interpolate(few, many, (clips - SIZES[0]) / (SIZES[1] - SIZES[0]))


@functools.lru_cache(64)
def _recorded(key: tuple[Any, ...], clips: int, mode: Mode) -> list[Operation]:
    """Operations of a Pass, of which `key` has the fields, the model as JSON."""
    step = Pass(AllInOneConfig.from_dict(json.loads(key[0])), *key[1:])
    recorder = record(step, clips, compiled=mode != "eager")
    return recorder.eager() if mode == "eager" else recorder.compiled(mode == "everything")


def record(step: Pass, clips: int, compiled: bool = False) -> OperationRecorder:
    """Run forward and backward pass of one micro-batch on fake tensors, without data or memory.

    Args:
        step: Model, objectives and options.
        clips: Clips of the micro-batch.
        compiled: As the model runs with compiled blocks.
    """
    with (
        FakeTensorMode(),
        _default_dtype(DTYPES[step.precision]),
        _flash_attention(step.texts == "flash"),
    ):
        model = AllInOneForPreTraining(step.model).train()
        for dropout in model.modules():
            if isinstance(dropout, nn.Dropout):  # on a CPU, torch composes it of three kernels
                dropout.__dict__["forward"] = functools.partial(_cuda_dropout, rate=dropout.p)
        if step.checkpointing:
            model.gradient_checkpointing_enable()
        batch = _fake_batch(step, clips)
        module = StepModule(model, PretrainObjective(step.objective))
        with OperationRecorder() as recorder:
            if compiled:
                blocks = recorder.compiled_form(all_in_one.rolled_block)
                model.backbone.encoder.compiled_block = blocks
            module(batch)[0].backward()
    return recorder


@contextmanager
def _flash_attention(on: bool) -> Iterator[None]:
    """Let the model choose FlashAttention although its tensors are on a CPU."""
    if not on:
        yield
        return
    # here: it imports torch's compiler, which takes seconds
    from torch.nn.attention.varlen import varlen_attn

    before = all_in_one.flash_attention
    all_in_one.flash_attention = lambda device, dtype: varlen_attn
    try:
        yield
    finally:
        all_in_one.flash_attention = before


class _Lengths:
    """Lengths of texts as the model reads them: concatenated, and their sum on the host, which a
    fake tensor does not have."""

    def __init__(self, words: int) -> None:
        self._words = words

    def sum(self) -> int:
        """Tokens of all texts."""
        return self._words

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.cat, func
        return cls(sum(lengths.sum() for lengths in args[0]))


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


def _fake_batch(step: Pass, clips: int) -> Batch:
    """The values do not matter."""
    config = step.model
    tokens, length = step.text_tokens or config.max_text_len, config.max_text_len
    lengths: Any = None
    if step.texts != "padded":
        lengths = _Lengths(round(clips * tokens))
    elif step.text_tokens:
        length = round(tokens)
    ids = torch.zeros(clips, length, dtype=torch.long)
    masked = masked_tokens(config, clips, step.mask_prob, step.text_tokens)
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
        text_lengths=lengths,
    )


@dataclass(frozen=True)
class StepPasses:
    """What the micro-batches of a run consist of.

    Args:
        config: The run.
        precision: fp32, bf16 or fp16.
        flash: FlashAttention runs on sequences of different length: on Ampere and newer, in 16
            bits.
        lengths: As in `training_cost`.
    """

    config: PretrainConfig
    precision: str
    flash: bool
    lengths: Lengths = ()

    def video(self, *, kept: bool = False, checkpointing: bool = False) -> Pass:
        """The pass of the clips.

        Args:
            kept: Of the steps with --patch-keep; False: of those with all patches.
            checkpointing: Blocks are recomputed.
        """
        config, model, padding = self.config, self.config.model_config(), self._padding
        packed: Texts = "flash" if self.flash and self.precision != "fp32" else "packed"
        return Pass(
            model,
            config.objective if kept else replace(config.objective, patch_keep=1.0),
            model.num_frames,
            self.precision,
            checkpointing,
            config.loader.mask_prob,
            None if padding == "full" else self.text_tokens(),
            packed if padding == "packed" else "padded",
        )

    def images(self, *, kept: bool = False, checkpointing: bool = False) -> Pass:
        """The pass of co-trained images; the arguments are those of `video`."""
        video, model = (
            self.video(kept=kept, checkpointing=checkpointing),
            self.config.model_config(),
        )
        tokens = computed_text_tokens(self.config, model.max_text_len, self._lengths(1))
        return replace(video, frames=1, text_tokens=None if self._padding == "full" else tokens)

    def operations(
        self, clips: int, mode: Mode, *, kept: bool = False, checkpointing: bool = False
    ) -> list[tuple[float, list[Operation]]]:
        """Kinds of steps: (share of the steps, operations of one micro-batch).

        Args:
            clips: Clips of a micro-batch.
            mode: As in Pass.operations.
            kept: As in `video`.
            checkpointing: As in `video`.
        """
        cotrain, options = self.config.cotrain, {"kept": kept, "checkpointing": checkpointing}
        video = self.video(**options).operations(clips, mode)
        if not cotrain.images:
            return [(1.0, video)]
        images_per_clip = cotrain.image_batch / self.config.train.global_batch
        images = self.images(**options).operations(max(1, round(clips * images_per_clip)), mode)
        if cotrain.image_mode == "joint":
            return [(1.0, video + images)]
        return [(1 - cotrain.image_share, video), (cotrain.image_share, images)]

    def text_tokens(self) -> float:
        """Tokens per caption of a video that are computed, on average."""
        limit = self.config.model_config().max_text_len
        return computed_text_tokens(self.config, limit, self._lengths(0))

    @property
    def _padding(self) -> str:
        return self.config.loader.text_padding

    def _lengths(self, number: int) -> NDArray[np.int64] | None:
        return self.lengths[number] if number < len(self.lengths) else None


def reduce_window(config: PretrainConfig, cost: SampleCost) -> float:
    """TrainingJob.reduce_window of a run.

    Args:
        config: The run.
        cost: Its FLOPs.
    """
    # MLM and VTM are halves of one pass if they share it
    first = next(iter(cost.video))
    together = ("mlm", "vtm") if config.objective.joint_pass else (first,)
    shared = sum(cost.video[name] for name in together) / sum(cost.video.values())
    # backward is 2/3 of a pass; gradients become final in that of the first one
    return 2 / 3 * shared


def counted_steps(config: PretrainConfig, cost: SampleCost, lengths: Lengths) -> CountedSteps:
    """What the plan of a run needs to know of its steps; nothing is counted yet.

    Args:
        config: The run.
        cost: Its FLOPs.
        lengths: As in `training_cost`.
    """

    def operations(
        precision: str, compiled: bool, flash: bool
    ) -> list[tuple[float, list[Operation]]]:
        passes, train = StepPasses(config, precision, flash, lengths), config.train
        found = []
        for kept, share in ((True, cost.kept_share), (False, 1 - cost.kept_share)):
            if share:
                kinds = passes.operations(
                    train.micro_batch,
                    "compiled" if compiled else "eager",
                    kept=kept,
                    checkpointing=train.activation_checkpointing,
                )
                found += [(share * part, each) for part, each in kinds]
        return found

    return CountedSteps(operations, reduce_window(config, cost))
