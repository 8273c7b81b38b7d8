"""webvid-howto with video-text contrast, so that search works without fine-tuning; not the paper's.

    sbatch slurm/pretrain_128gpu.sh webvid-howto-vtc --init-from weights/vit-base
    allinone index ~/videos --checkpoint runs/webvid-howto-vtc --out index
    allinone search "a man plays the guitar" --index index

The paper's pre-training has no contrastive loss: its projections are first trained by fine-tuning.
Here VTC has weight 1, as in ALBEF. All other values are those of webvid-howto.
--vtm-negatives hard then costs no further pass.
Hardware: 128 A100, 16 clips per GPU, 2,048 candidates.
Time: planned 12.4 h on 128 A100-80G (tools/plan.py train), 8.7 h for webvid-howto-base, if the
data keeps up.
Expected zero-shot retrieval: unknown, this recipe was never run at this size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allinone.pretrain.recipes import webvid_howto

_PAPER = webvid_howto.RECIPES["base"]
RECIPE = replace(
    _PAPER,
    out=Path("runs/webvid-howto-vtc"),
    objective=replace(_PAPER.objective, vtc=1.0),
)
