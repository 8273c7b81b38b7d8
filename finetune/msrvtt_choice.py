#!/usr/bin/env python3
"""MSR-VTT multiple choice (JSFusion): five captions for each of 2,990 test videos, accuracy; chance
20.

    deepspeed finetune/msrvtt_choice.py --annotations MSRVTT --media MSRVTT/videos --checkpoint base.ckpt --out runs/msrvtt_choice
    … --eval-only: without training, by the VTM head

There are no training questions: a caption of a training video among those of four others is one.
The training videos are the 7,010 of the official train and val; those of the 9k protocol hold 1,990
of the test videos. Hardware of the published values: 256 clips per step, 10 epochs. Time on a GPU
is not measured by us. The paper: B+ 91.9 (README), zero-shot B 80.3 (77.5 in its EVAL.md), B+ 82.2.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msrvtt
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.run import main
from allinone.finetune.tasks.multiple_choice import ChoiceOptions, MultipleChoice

BENCHMARK = Benchmark(
    name="msrvtt_choice",
    protocol=MultipleChoice,
    load=lambda folder, split, variant: msrvtt.load(folder, split, task="choice"),
    variants={"": Splits("train", "held-out", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=10,
        task=ChoiceOptions(head="rank", false_texts=4),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "train_val_videos.zip and test_videos.zip of MSR-VTT (video0.mp4 … video9999.mp4), or"
        " frozen-in-time's MSRVTT.zip"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
