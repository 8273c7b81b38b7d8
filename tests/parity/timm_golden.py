"""Writes golden_timm.json: what timm computes for layer-wise learning rates, EMA and mixup targets.

    pip install timm torchvision && python -m tests.parity.timm_golden

timm is no dependency of the tests: it imports torchvision, whose builds for CUDA do not load next
to a torch for CPUs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).with_name("golden_timm.json")
DEPTH, LAYER_DECAY, WEIGHT_DECAY = 4, 0.65, 0.01
EMA_DECAY, EMA_UPDATES = 0.9, 5
CLASSES, LAM, SMOOTHING = 5, 0.7, 0.1


def ema_weights(update: int) -> Tensor:
    """The weights after an update: float32 [7], exact in binary."""
    return torch.arange(7, dtype=torch.float32) * (update + 1) / 8 - update


def mixup_inputs() -> tuple[Tensor, Tensor]:
    """Logits float32 [4, CLASSES] and classes int64 [4]."""
    logits = torch.arange(4 * CLASSES, dtype=torch.float32).reshape(4, CLASSES)
    return (logits * 7 % 11) / 4, torch.tensor([0, 3, 4, 1])


def layer_groups() -> list[dict[str, Any]]:
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    model = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=DEPTH, num_heads=2, num_classes=3
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "lr_scale": group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "params": [names[id(parameter)] for parameter in group["params"]],
        }
        for group in param_groups_layer_decay(
            model, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY
        )
    ]


def averages() -> list[list[float]]:
    """EMA after each update; a float32 is exact as a JSON number."""
    from timm.utils import ModelEmaV3

    module = nn.ParameterDict({"weight": nn.Parameter(ema_weights(0))})
    average, found = ModelEmaV3(module, decay=EMA_DECAY, foreach=True), []
    for update in range(1, EMA_UPDATES + 1):
        with torch.no_grad():
            module["weight"].copy_(ema_weights(update))
        average.update(module)
        found.append(average.module["weight"].tolist())
    return found


def mixup_losses() -> list[float]:
    """Loss of each item with mixed and smoothed targets."""
    import torch.nn.functional as F
    from timm.data.mixup import mixup_target

    logits, classes = mixup_inputs()
    target = mixup_target(classes, CLASSES, LAM, SMOOTHING)
    return (-target * F.log_softmax(logits, -1)).sum(-1).tolist()


def main() -> None:
    import timm

    content = {
        "timm": timm.__version__,
        "layer_groups": layer_groups(),
        "averages": averages(),
        "mixup_losses": mixup_losses(),
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
