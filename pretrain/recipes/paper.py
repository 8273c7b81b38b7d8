"""Values shared by the paper's pre-training recipes.

By the paper and the authors' talk: 400K steps of 2,048 clips, learning rate 1e-4, AdamW (0.9,
0.98), weight decay 0.01, warm-up over the first 10 %, linear decay to 0, 3 frames of 224 px,
whole-word masking of 15 %, half of the pairs mismatched.

From the original's code: no gradient clipping, random patches roll, word-patch alignment with
weight 0.1, negatives of the same data set, and frames squashed to a square. The transformer starts
from ImageNet weights (ViT-B/16 of timm for base, DeiT-Ti and distilled DeiT-S for tiny and small),
everything else, the text embeddings included, from N(0, 0.02): `allinone convert from-vit` makes
such a folder for --init-from, which these recipes require.

docs/deviations.md lists what differs from the original on purpose, and the option that restores it.
The paper's numbers are targets: none has been reproduced with this code yet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allinone.data.config import PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD, DataConfig
from allinone.engine.config import TrainConfig
from allinone.pretrain.config import CoTrainOptions, ModelOptions, PretrainConfig
from allinone.pretrain.objectives import ObjectiveConfig

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
    rand_augment: bool = False,
) -> PretrainConfig:
    """The run of one mixture: 2,048 clips per step, and as many images if co-trained.

    Args:
        name: Folder of the run, below runs/.
        video: Prepared video sets, DIR=WEIGHT.
        images: Prepared image sets; heads are shared and losses added.
        size: Size of the model.
        frames: Frames per clip.
        steps: Optimizer steps.
        rand_augment: Augment as the original's v100 back end: RandAugment, flips, squashed frames
            of 1.2 to 1.5 times the crop's side, mean 0.45 and standard deviation 0.225.
    """
    # the original crops images, and squashes what it reads with decord
    loader = DataConfig(
        workers="auto", dali_threads=4, geometry="crop" if frames == 1 else "squash"
    )
    if rand_augment:
        loader = replace(
            loader,
            augment="randaug",
            flip=0.5,
            squash_scale=(1.2, 1.5),
            mean=PYTORCHVIDEO_MEAN,
            std=PYTORCHVIDEO_STD,
        )
    return PretrainConfig(
        out=Path("runs") / name,
        data=video,
        val=(f"{video[0].partition('=')[0]}:val",),
        model=ModelOptions(size=size, frames=frames, patch_order="shuffled", init_from="required"),
        objective=ObjectiveConfig(wpa=0.1),
        cotrain=CoTrainOptions(images=images),
        loader=loader,
        train=TrainConfig(
            steps=steps,
            global_batch=2048,
            micro_batch=16,
            lr=1e-4,
            warmup=0.1,
            clip_grad=0.0,
            ds_config="zero1_bf16",
            log_every=50,
            save_every=2000,
            keep_every=50_000,
            eval_every=10_000,
        ),
    )
