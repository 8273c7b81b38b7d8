#!/usr/bin/env python3
r"""MSVD-QA: open-ended questions on short video clips (Xu et al. 2017).

Accuracy over all 13,157 test questions.

    deepspeed finetune/msvd_qa.py --annotations MSVD-QA --media YouTubeClips \
        --checkpoint base.ckpt --out runs/msvd_qa

Hardware of the published values: 512 questions per step, 20 epochs (about 1,200 steps). Time on a
GPU is not measured by us. The paper: S 41.7, B 46.5 with 3 frames (46.1 in the log), 47.9 with 3x3
(--views 3), B+ 48.2, B* 48.3. It is not known whether these exclude the questions whose answer is
not among the 1,000 of the vocabulary (8.9 % of the test split), as the original code does: compare
accuracy_answerable as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msvd
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="msvd_qa",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: msvd.load(folder, split, task="qa"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        head_lr_mult=10.0,
        task=QAOptions(answers=1000),
        train=TuneConfig(global_batch=512, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="YouTubeClips.tar of MSVD (UT Austin), 1,970 .avi files",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
