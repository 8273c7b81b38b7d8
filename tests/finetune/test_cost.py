"""Planned cost of fine-tuning."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allinone.finetune.cost import task_activations, training_flops
from allinone.finetune.task_model.heads import pooled
from allinone.finetune.task_model.model import TaskModel
from allinone.model import AllInOneConfig
from allinone.model.captioning import caption_features


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_activations_equal_what_autograd_keeps(checkpointing: bool) -> None:
    config = AllInOneConfig.from_size("nano", num_frames=3, max_text_len=16)
    model = TaskModel(config, None)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(5, 1000, (2, 5, 16))
    pixels = torch.randn(2, 1, 3, 3, config.image_size, config.image_size)
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        kept = pooled(model, pixels, ids, torch.ones_like(ids))
    measured = sum(
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    del kept
    if checkpointing:  # each one also keeps the CPU generator's state
        measured -= config.num_hidden_layers * torch.get_rng_state().numel()
    assert task_activations([("joint", 5)], config, 2, 4, 4, checkpointing).total == pytest.approx(
        measured, rel=0.05
    )


def test_planned_activations_of_captions_are_what_is_kept() -> None:
    config = AllInOneConfig.from_size("nano", num_frames=3, max_text_len=16)
    model = TaskModel(config, None, words=True)
    ids = torch.randint(5, 1000, (2, 15))
    pixels = torch.randn(2, 3, 3, config.image_size, config.image_size)
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        logits = model.mlm_head(caption_features(model.backbone, pixels, ids))
        kept = torch.nn.functional.cross_entropy(logits, ids.flatten())
    measured = sum(
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    # the decoder's output is freed once its log-probabilities, of the same size, are kept
    measured -= logits.numel() * 4
    del kept, logits
    planned = task_activations([("caption", 1)], config, 2, 4, 4).total
    assert planned == pytest.approx(measured, rel=0.05)


def test_caption_flops_are_those_that_torch_counts() -> None:
    config = AllInOneConfig.from_size("nano", num_frames=3, max_text_len=16)
    model = TaskModel(config, None, words=True).eval()
    ids = torch.randint(5, 1000, (1, 15))
    pixels = torch.randn(1, 3, 3, config.image_size, config.image_size)
    # the counter knows no products of the CPU's fused attention
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        model.mlm_head(caption_features(model.backbone, pixels, ids))
    counted = counter.get_total_flops()
    planned = training_flops([("caption", 1)], config, frozen=True)
    assert planned == pytest.approx(counted, rel=0.002)
