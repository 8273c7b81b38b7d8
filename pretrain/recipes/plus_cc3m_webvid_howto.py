"""All-in-one+: CC3M images co-trained with WebVid-2.5M and HowTo100M.

    sbatch slurm/pretrain_128gpu.sh plus-cc3m-webvid-howto --init-from weights/vit-base

Video is squashed and augmented by RandAugment, as by the original's v100 back end; needs DALI.
Hardware: 128 A100, 16 clips and 16 images per GPU.
Time: not published. Planned: 5.8 h on 128 A100-80G (tools/plan.py train); an image costs
about a third of a clip.
Expected after fine-tuning, retrieval with the contrastive loss only:
    MSR-VTT 9K R@1/5/10                  41.8 / 68.5 / 76.7
    MSR-VTT 7K R@1/5/10                  37.3 / 66.4 / 75.6
    TGIF action / transition / FrameQA   96.3 / 95.5 / 67.3
Expected of a linear probe with 8 frames, top-1 on Kinetics-400 / HMDB51 / UCF101 (the paper does
not print the data of these two rows):
    probe, heads shared                            51.4 / 53.1 / 82.0
    probe, heads apart (--image-heads separate)    53.2 / 55.2 / 84.1
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPE = paper.recipe(
    "plus-cc3m-webvid-howto",
    (paper.WEBVID, paper.HOWTO100M),
    (paper.CC3M,),
    steps=200_000,
    rand_augment=True,
)
