"""All-in-one+ on three video sets and four image sets.

Videos: WebVid-2.5M, HowTo100M, YT-Temporal-180M. Images: CC3M, CC12M, COCO, Visual Genome.

    sbatch slurm/pretrain_128gpu.sh plus-seven --init-from weights/vit-base

Video is squashed and augmented by RandAugment, as by the original's v100 back end; needs DALI.
Hardware: 128 A100, 16 clips and 16 images per GPU.
Time: not published. Planned: 5.8 h on 128 A100-80G (tools/plan.py train).
Expected after fine-tuning: no row of the paper has these seven sets. The original's README states
for eight, SBU included:
    MSR-VTT 9K R@5/10        70.3 / 79.2
    TGIF action / FrameQA    96.3 / 68.5

About half of Visual Genome's images are COCO images, test images among them. Leave it out before
COCO retrieval or VQAv2.
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPE = paper.recipe(
    "plus-seven",
    (paper.WEBVID, paper.HOWTO100M, paper.YTTEMPORAL),
    (paper.CC3M, paper.CC12M, paper.COCO, paper.VISUAL_GENOME),
    steps=200_000,
    rand_augment=True,
)
