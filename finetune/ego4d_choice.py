#!/usr/bin/env python3
r"""Ego4D multiple choice as defined by the paper, zero-shot. This is not EgoMCQ.

Which of four narrations belongs to the clip; chance is 25 %.

    deepspeed finetune/ego4d_choice.py --annotations ego4d --media ego4d/videos \
        --checkpoint base.ckpt --out runs/ego4d --eval-only

Hardware: one GPU; time is not measured by us. The paper: zero-shot B 36.5. The number of its items
is not published. There is no training split: the original is configured for 256 items per step and
10 epochs, but its training list is its pre-training set.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import ego4d
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ChoiceOptions

BENCHMARK = Benchmark(
    name="ego4d_choice",
    description=__doc__,
    task="multiple_choice",
    load=lambda folder, split, variant: ego4d.load(folder, split),
    variants={"": Splits("", "", "val")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=10,
        task=ChoiceOptions(),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "the full-scale videos of Ego4D (<uid>.mp4; licence agreement with the Ego4D consortium)"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
