"""Values shared by the paper's pre-training recipes.

By the paper and the authors' talk: 400K steps of 2,048 clips, learning rate 1e-4, AdamW (0.9,
0.98), weight decay 0.01, warm-up over the first 10 %, linear decay to 0, 3 frames of 224 px,
whole-word masking of 15 %, half of the pairs mismatched. The original starts from ImageNet ViT and
BERT weights: make them with tools/convert.py and pass them with --init-from.

The paper's numbers are targets: none has been reproduced with this code yet.
"""

from __future__ import annotations

from pathlib import Path

from allinone.data.config import DataConfig
from allinone.engine.config import TrainConfig
from allinone.pretrain.config import CoTrainOptions, ModelOptions, PretrainConfig

# The original concatenates its data sets: one sample per WebVid clip, per HowTo100M or YT-Temporal
# video, per caption of an image and per region of Visual Genome. The weights are those sizes in
# millions.
WEBVID = "prepared/webvid=2.5"
HOWTO100M = "prepared/howto100m=1.24"
YTTEMPORAL = "prepared/yttemporal=2"
CC3M = "prepared/cc3m=3.3"
CC12M = "prepared/cc12m=12.4"
COCO = "prepared/coco=0.41"
VISUAL_GENOME = "prepared/vg=5.4"


def recipe(
    name: str,
    video: tuple[str, ...],
    images: tuple[str, ...] = (),
    *,
    size: str = "base",
    frames: int = 3,
    steps: int = 400_000,
) -> PretrainConfig:
    """The run of one mixture: 2,048 clips per step, and as many images if co-trained.

    Args:
        name: Folder of the run, below runs/.
        video: Prepared video sets, DIR=WEIGHT.
        images: Prepared image sets; heads are shared and losses added.
        size: Size of the model.
        frames: Frames per clip.
        steps: Optimizer steps.
    """
    return PretrainConfig(
        out=Path("runs") / name,
        data=video,
        val=(f"{video[0].partition('=')[0]}:val",),
        model=ModelOptions(size=size, frames=frames),
        cotrain=CoTrainOptions(images=images),
        loader=DataConfig(workers=8, dali_threads=4),
        train=TrainConfig(
            steps=steps,
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
