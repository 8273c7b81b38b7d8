"""Images only, CC3M and COCO: the row that the paper's VCR table compares with MERLOT.

    sbatch slurm/pretrain_128gpu.sh cc3m-coco --init-from weights/vit-base

Hardware: 128 A100, 16 images per GPU.
Time: not published. Planned: 3.3 h on 128 A100-80G (tools/plan.py train).
Expected after fine-tuning:
    VCR Q->A val with drawn masks  60.5 (MERLOT, same data: 58.9)
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPE = paper.recipe("cc3m-coco", (paper.CC3M, paper.COCO), frames=1)
