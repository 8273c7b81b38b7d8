#!/usr/bin/env python3
r"""TGIF-QA FrameQA: open-ended questions on GIFs with one-word answers.

Accuracy over all 13,691 test questions.

    deepspeed finetune/tgif_frameqa.py --annotations tgif-qa/dataset --media tgif/gifs \
        --checkpoint base.ckpt --out runs/tgif_frameqa

Hardware of the published values: 512 questions per step, 20 epochs (about 1,500 steps). Time on a
GPU is not measured by us. The paper (3 frames): Ti 53.9, S 64.0, B 64.2 (its notes say 64.0 on
paper and 65.0 in the log), B at 384 pixels 65.4, B+ 67.3, B+ on eight data sets 68.5. There is no
official validation split: 5 % of the training GIFs are held out (--variant clipbert reads
ClipBERT's files, which have one).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import tgif
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="tgif_frameqa",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: tgif.load(folder, split, task="frameqa", form=variant),
    variants={"": Splits("train", "held-out", "test"), "clipbert": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        head_lr_mult=10.0,
        task=QAOptions(answers=1540),
        train=TuneConfig(global_batch=512, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "the GIF archive of TGIF (raingo/TGIF-Release), <gif_name>.gif, or the same files as mp4"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
