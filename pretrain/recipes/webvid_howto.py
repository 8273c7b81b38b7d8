"""The paper's pre-training on WebVid-2.5M and HowTo100M.

    deepspeed pretrain/train.py webvid-howto-base --data prepared/webvid=1 prepared/howto100m=1

Hardware: 128 A100, 16 clips per GPU. Schedule (the authors' talk): 400K steps of 2,048 clips, about a week for 312.5 M pairs. Values:
learning rate 1e-4,
AdamW (0.9, 0.98), weight decay 0.01, warm-up over the first 10 %, linear decay to 0, 3 frames of 224 px, whole-word masking of 15 %, half of the
pairs mismatched. The original starts from ImageNet ViT weights: give them with --init-from. Expected, fine-tuned (base): MSR-VTT 9K text-to-video
R@1 37.1, TGIF FrameQA 64.2, MSR-VTT-QA 42.9. None of these has been reproduced with this code yet.
"""

from __future__ import annotations

from pathlib import Path

from data.config import DataConfig
from engine.config import TrainConfig
from pretrain.config import ModelOptions, PretrainConfig


def recipe(size: str) -> PretrainConfig:
    """The run of one size: tiny, small or base."""
    return PretrainConfig(
        out=Path(f"runs/webvid-howto-{size}"),
        data=("prepared/webvid", "prepared/howto100m"),
        val=("prepared/webvid:val",),
        model=ModelOptions(size=size),
        loader=DataConfig(workers=8, dali_threads=4),
        train=TrainConfig(
            steps=400_000,
            global_batch=2048,
            micro_batch=16,
            lr=1e-4,
            warmup=0.1,
            ds_config="zero1_bf16",
            log_every=50,
            save_every=2000,
            keep_every=50_000,
            eval_every=10_000,
        ),
    )
