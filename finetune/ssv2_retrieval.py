#!/usr/bin/env python3
r"""Something-Something v2 retrieval in Singularity's two forms (Lei et al. 2023).

174 templates ("Putting [something] on [something]"), or the labels with the names of the objects,
against 2,088 validation videos, 12 per template.

    deepspeed finetune/ssv2_retrieval.py --annotations ssv2/labels \
        --media ssv2/20bn-something-something-v2 --checkpoint base.ckpt --out runs/ssv2_template
    … --variant label: the labels

A template is one query, and each of its 12 videos is relevant: R@K says whether one of them is
among the first K, and a random order reaches R@10 5.6 %. Clips are never flipped, and clips of one
template are not negatives of each other in training. Hardware: any; time on a GPU is not measured
by us. The paper reports no Something-Something and the original code has no configuration of it:
the values are those of MSR-VTT, by judgement, not tuned.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import ssv2
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig, TuneDataConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="ssv2_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: ssv2.load_retrieval(folder, split, text=variant),
    variants=dict.fromkeys(ssv2.TEXTS, Splits("train", "held-out", "val")),
    config=FinetuneConfig(
        max_text_len=40,
        epochs=10,
        task=RetrievalOptions(),
        loader=TuneDataConfig(flip=0.0),
        train=TuneConfig(global_batch=1024, micro_batch=32, lr=3e-4, warmup=0.1),
    ),
    archives="the videos of Something-Something v2, <id>.webm (form on Qualcomm's page)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
