#!/usr/bin/env python3
r"""HMDB51 linear probe: a classifier is trained on the frozen backbone.

Mean of top-1, top-5 and top-10 over the three official folds.

    deepspeed finetune/hmdb51_linear.py --annotations splits --media videos \
        --checkpoint base.ckpt --out runs/hmdb51_linear
    … --variant 2: a single fold; --frames 8

Hardware of the published values: 256 clips per step, 50 epochs per fold, forward passes only. Time
on a GPU is not measured by us. The paper: B 51.9 / 84.1 / 93.4 with 3 frames (its notes: 50.8 on
paper, 51.2 in the log), 54.7 / 88.2 / 95.2 with 8; B+ with separate heads 55.2 / 89.1 / 95.8;
temporal average instead of rolling 43.1 / 75.5 / 90.5. The original evaluates fold 1 only:
--variant 1. 5 % of the training films of each fold are held out to select the best weights. The
backbone's dropout is off; --probe-dropout trains the head with it, as the original does.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import hmdb51
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ActionOptions

BENCHMARK = Benchmark(
    name="hmdb51_linear",
    description=__doc__,
    task="action_recognition",
    load=lambda folder, split, variant: hmdb51.load(folder, split, fold=int(variant)),
    variants=dict.fromkeys(("mean", "1", "2", "3"), Splits("train", "held-out", "test")),
    averages_folds=True,
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=ActionOptions(probe_dropout=False),
        train=TuneConfig(global_batch=256, micro_batch=32, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "hmdb51_org.rar of HMDB51 (serre-lab.clps.brown.edu), its 51 inner archives unpacked:"
        " <class>/<file>.avi"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
