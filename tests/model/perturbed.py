"""Models in which no weight is trivial: biases and norms of new models are zeros and ones."""

from __future__ import annotations

import torch

from allinone.model import AllInOneConfig, AllInOneForPreTraining


def perturb(model: AllInOneForPreTraining) -> AllInOneForPreTraining:
    """Add noise to all parameters; returns the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def perturbed_nano(**options: object) -> AllInOneForPreTraining:
    """nano for 64 px and 8 words, without dropout, seed 0."""
    torch.manual_seed(0)
    small = {"image_size": 64, "max_text_len": 8, "hidden_dropout": 0.0, "drop_path": 0.0}
    return perturb(AllInOneForPreTraining(AllInOneConfig.from_size("nano", **{**small, **options})))
