#!/usr/bin/env python3
r"""LSMDC fill in the blank: the missing word of a film's audio description.

Accuracy over 30,349 gaps of the public test; a word outside the vocabulary counts as wrong.

    deepspeed finetune/lsmdc_fib.py --annotations LSMDC --media LSMDC/clips --checkpoint base.ckpt \
        --out runs/lsmdc_fib

The gap is [MASK] in the text, and the answer is classified among the --answers most frequent words
of train: coverage says how many test questions that leaves answerable. Hardware: any; time on a GPU
is not measured by us. The paper reports no fill in the blank and the original code has no
configuration of it: the values are those of other open-ended questions, by judgement, not tuned.
The files also hold the complete sentence; it is not read.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import lsmdc
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="lsmdc_fib",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: lsmdc.load(folder, split, task="blank"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=80,
        epochs=10,
        head_lr_mult=10.0,
        task=QAOptions(answers=10_000),
        train=TuneConfig(global_batch=512, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="the clips of LSMDC 2016 (<movie>/<clip>.avi; signed form to MPI for Informatics)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
