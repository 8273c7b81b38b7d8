"""All-in-one+: CC3M images co-trained with WebVid-2.5M.

    sbatch slurm/pretrain_128gpu.sh plus-cc3m-webvid --init-from weights/vit-base

Video is squashed and augmented by RandAugment, as by the original's v100 back end; needs DALI.
Hardware: 128 A100, 16 clips and 16 images per GPU.
Time: not published. Planned: 5.8 h on 128 A100-80G (tools/plan.py train); an image costs
about a third of a clip.
Expected after fine-tuning:
    MSR-VTT 9K R@1/5/10                  39.7 / 67.8 / 76.1
    MSR-VTT 7K R@1/5/10                  35.9 / 66.1 / 75.1
    TGIF action / transition / FrameQA   94.4 / 94.5 / 66.4
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPE = paper.recipe(
    "plus-cc3m-webvid", (paper.WEBVID,), (paper.CC3M,), steps=200_000, rand_augment=True
)
