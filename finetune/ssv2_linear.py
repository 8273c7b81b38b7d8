#!/usr/bin/env python3
r"""Something-Something v2 by a probe on the frozen backbone: top-1, top-5 and top-10.

    deepspeed finetune/ssv2_linear.py --annotations ssv2/labels \
        --media ssv2/20bn-something-something-v2 --checkpoint base.ckpt --out runs/ssv2_linear \
        --frames 8

The official validation split is the test split here, as in all papers, because the labels of test
are hidden; 5 % of train select the best weights. Clips are never flipped: classes name left and
right. Hardware: any; time on a GPU is not measured by us. The paper reports no Something-Something
and the original code has no configuration of it: the values are those of Kinetics-400, by
judgement, not tuned. --probe full trains all parameters.
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
from allinone.finetune.tasks.options import ActionOptions

BENCHMARK = Benchmark(
    name="ssv2_linear",
    description=__doc__,
    task="action_recognition",
    load=lambda folder, split, variant: ssv2.load(folder, split),
    variants={"": Splits("train", "held-out", "val")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=ActionOptions(),
        loader=TuneDataConfig(flip=0.0),
        train=TuneConfig(global_batch=256, micro_batch=16, lr=3e-4, warmup=0.1),
    ),
    archives="the videos of Something-Something v2, <id>.webm (form on Qualcomm's page)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
