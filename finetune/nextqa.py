#!/usr/bin/env python3
r"""NExT-QA: why, how and when, five options (Xiao et al. 2021).

Accuracy over all, causal, temporal and descriptive questions, and per type; chance is 20 %.

    deepspeed finetune/nextqa.py --annotations NExT-QA/dataset/nextqa --media NExTVideo \
        --checkpoint base.ckpt --out runs/nextqa
    … --variant val: tested on the validation split; 5 % of train then select the weights

A model that reads the questions and options without the video reaches 43.8 % (README of the
benchmark), so that 20 % is not the number to compare with. Media are at the paths of
map_vid_vidorID.json, or without that file all in one folder. Hardware: any; time on a GPU is not
measured by us. The paper reports no NExT-QA and the original code has no configuration of it: the
values are those of TVQA, by judgement, not tuned.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import nextqa
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ChoiceOptions

BENCHMARK = Benchmark(
    name="nextqa",
    description=__doc__,
    task="multiple_choice",
    load=lambda folder, split, variant: nextqa.load(folder, split),
    variants={
        "": Splits("train-full", "val", "test"),
        "val": Splits("train", "held-out", "val"),
    },
    config=FinetuneConfig(
        max_text_len=100,
        epochs=20,
        head_lr_mult=10.0,
        task=ChoiceOptions(head="mlp"),
        train=TuneConfig(global_batch=512, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives="the videos of NExT-QA (VidOR), linked by the README of doc-doc/NExT-QA",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
