#!/usr/bin/env python3
r"""LSMDC retrieval: 1,000 test clips with one sentence each.

Text to video and video to text.

    deepspeed finetune/lsmdc_retrieval.py --annotations LSMDC --media LSMDC/clips \
        --checkpoint base.ckpt --out runs/lsmdc_retrieval

Hardware of the published values: 1,024 clips per step, 50 epochs (about 4,900 steps), the sum of
both contrast directions and the rank loss, 80 tokens. Time on a GPU is not measured by us. The
paper reports no LSMDC retrieval: the original code reads the clip's id instead of its sentence.
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
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="lsmdc_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: lsmdc.load(folder, split, task="retrieval"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=80,
        epochs=50,
        task=RetrievalOptions(contrast=2.0, rank=1.0),
        train=TuneConfig(global_batch=1024, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives="the clips of LSMDC 2016 (<movie>/<clip>.avi; signed form to MPI for Informatics)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
