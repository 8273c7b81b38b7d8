#!/usr/bin/env python3
r"""UCF101 linear probe: a classifier is trained on the frozen backbone.

Mean of top-1, top-5 and top-10 over the three official folds.

    deepspeed finetune/ucf101_linear.py --annotations splits --media videos \
        --checkpoint base.ckpt --out runs/ucf101_linear
    … --variant 2: a single fold; --frames 8

Hardware of the published values: 256 clips per step, 50 epochs per fold, forward passes only. Time
on a GPU is not measured by us. The paper: B 81.1 / 93.8 / 95.5 with 3 frames, 82.8 / 95.1 / 96.9
with 8; B+ with separate heads 84.1 / 95.7 / 97.8; temporal average instead of rolling 77.6 / 86.4 /
90.9. The original has no configuration for UCF101: the values here are those of HMDB51. 5 % of the
training groups of each fold are held out to select the best weights. The backbone's dropout is off;
--probe-dropout trains the head with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import ucf101
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ActionOptions

BENCHMARK = Benchmark(
    name="ucf101_linear",
    description=__doc__,
    task="action_recognition",
    load=lambda folder, split, variant: ucf101.load(folder, split, fold=int(variant)),
    variants=dict.fromkeys(("mean", "1", "2", "3"), Splits("train", "held-out", "test")),
    averages_folds=True,
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=ActionOptions(probe_dropout=False),
        train=TuneConfig(global_batch=256, micro_batch=32, lr=1e-4, warmup=0.1),
    ),
    archives="UCF101.rar of UCF's site (crcv.ucf.edu): <Class>/v_<Class>_gNN_cNN.avi",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
