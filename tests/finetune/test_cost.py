"""Planned cost of fine-tuning."""

from __future__ import annotations

import gc

import pytest
import torch

from allinone.finetune.cost import task_activations
from allinone.finetune.task_model.heads import pooled
from allinone.finetune.task_model.model import TaskModel
from allinone.model import AllInOneConfig


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
