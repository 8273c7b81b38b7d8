#!/usr/bin/env python3
r"""MSR-VTT-QA: open-ended questions on short web videos (Xu et al. 2017).

Accuracy over all test questions.

    deepspeed finetune/msrvtt_qa.py --annotations MSRVTT-QA --media MSRVTT/videos \
        --checkpoint all-in-one-base.ckpt --out runs/msrvtt_qa

Hardware of the published values: 512 questions per step, 20 epochs (about 6,200 steps). Time on a
GPU is not measured by us. The paper: S 39.5 (unsure), B 42.9 with 3 frames, 44.3
with 3x3 (--views 3), B+ 44.6, B* 46.8. It is not known whether these exclude questions whose answer
is not in the vocabulary, as the original code does: compare accuracy_answerable as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msrvtt
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="msrvtt_qa",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: msrvtt.load(folder, split, task="qa"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        head_lr_mult=10.0,
        task=QAOptions(answers=1500),
        train=TuneConfig(global_batch=512, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "train_val_videos.zip and test_videos.zip of MSR-VTT (video0.mp4 … video9999.mp4), or"
        " frozen-in-time's MSRVTT.zip"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
