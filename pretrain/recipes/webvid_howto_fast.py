"""webvid-howto on half of the patches of each frame: a fast recipe that is not the paper's.

    sbatch slurm/pretrain_128gpu.sh webvid-howto-fast --init-from weights/vit-base

The first 95 % of the steps use 98 of the 196 patches, the others all (docs/fast-recipe.md). All
other values are those of webvid-howto.
Hardware: 128 A100, 16 clips per GPU.
Time: planned 4.9 h on 128 A100-80G (tools/plan.py train), 8.4 h for webvid-howto-base,
if the data keeps up.
Expected after fine-tuning: unknown, this recipe was never run at this size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allinone.pretrain.recipes import webvid_howto

_PAPER = webvid_howto.RECIPES["base"]
RECIPE = replace(
    _PAPER,
    out=Path("runs/webvid-howto-fast"),
    objective=replace(_PAPER.objective, patch_keep=0.5),
)
