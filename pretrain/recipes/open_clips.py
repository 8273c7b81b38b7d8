"""Panda-70M (2M), InternVid (10M) and OpenVid-1M: video sets whose lists are still distributed.

    allinone prepare panda70m --out prepared/panda70m       # training_2m and validation, videos/
    allinone prepare internvid --out prepared/internvid
    allinone prepare openvid --out prepared/openvid
    sbatch slurm/pretrain_128gpu.sh open-clips --init-from weights/vit-base

WebVid was withdrawn in 2024; this mixture takes its place. It is not the paper's: everything but
the data is, and the data's weights are their clips in millions, by judgement.

Hardware: 128 A100, 16 clips per GPU.
Time: not measured; the plan is that of webvid-howto, with which it shares model, batch and steps.
Expected result: not measured.
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

PANDA70M = "prepared/panda70m=2.4"
INTERNVID = "prepared/internvid=10"
OPENVID = "prepared/openvid=1"

RECIPE = paper.recipe("open-clips", (PANDA70M, INTERNVID, OPENVID))
