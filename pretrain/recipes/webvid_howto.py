"""The paper's pre-training on WebVid-2.5M and HowTo100M, sizes tiny, small and base.

    sbatch slurm/pretrain_128gpu.sh webvid-howto --init-from weights/vit-base

Hardware: 128 A100, 16 clips per GPU.
Time: 2 days for 132.5 M pairs, by the authors' talk. Planned: base 8.4 h, small 3.0 h, tiny 1.2 h
on 128 A100-80G (tools/plan.py train), if the data keeps up.
Expected after fine-tuning:
    base   MSR-VTT 9K R@1/5/10                  37.1 / 66.7 / 75.9 (contrast and rank)
           MSR-VTT-QA / MSVD-QA / TVQA val      42.9 / 46.5 / 69.8
           LSMDC choice, zero-shot              56.3
           TGIF action / transition / FrameQA   92.7 (unsure) / 94.3 / 64.2
    small  MSR-VTT-QA                           39.5 (unsure)
           TGIF action / transition / FrameQA   91.2 / 92.7 / 64.0
    tiny   TGIF action / transition / FrameQA   80.6 / 83.5 / 53.9
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPES = {
    size: paper.recipe(f"webvid-howto-{size}", (paper.WEBVID, paper.HOWTO100M), size=size)
    for size in ("tiny", "small", "base")
}
