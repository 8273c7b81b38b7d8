"""WebVid-2.5M, HowTo100M and YT-Temporal-180M: the paper's largest video mixture (B*).

    sbatch slurm/pretrain_128gpu.sh webvid-howto-ytt --init-from weights/vit-base

Hardware: 128 A100, 16 clips per GPU.
Time: a week for 312.5 M pairs, by the authors' talk. Planned: 8.4 h for these steps on
128 A100-80G (tools/plan.py train), if the data keeps up.
Expected after fine-tuning:
    MSR-VTT-QA / MSVD-QA / TVQA val   46.8 / 48.3 / 72.0
    MSR-VTT / LSMDC choice            92.3 / 84.4

The talk defines B* as these three sets. This recipe does not fill the TGIF-QA row with YT-Temporal:
its label and its action number are illegible on the slide, and its data are printed as CC3M, WebVid
and YT-Temporal.
"""

from __future__ import annotations

from allinone.pretrain.recipes import paper

RECIPE = paper.recipe("webvid-howto-ytt", (paper.WEBVID, paper.HOWTO100M, paper.YTTEMPORAL))
