#!/usr/bin/env python3
r"""ActivityNet-QA: open-ended questions on complete videos (Yu et al. 2019).

Accuracy over 8,000 test questions and per type, as the official evaluator prints it.

    deepspeed finetune/activitynet_qa.py --annotations activitynet-qa/dataset \
        --media activitynet/videos --checkpoint base.ckpt --out runs/activitynet_qa

Hardware: any; time on a GPU is not measured by us. The paper reports no ActivityNet-QA and the
original code has no configuration of it: learning rate, batch and epochs are those of the other
open-ended questions, by judgement, not tuned. Accuracy is an exact match, as in the official
evaluator; results judged by a language model are another metric. The videos last minutes, of which
3 frames show little: --frames 8 --views 3.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import activitynet_qa
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="activitynet_qa",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: activitynet_qa.load(folder, split),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        head_lr_mult=10.0,
        task=QAOptions(answers=1500),
        train=TuneConfig(global_batch=512, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="the videos of ActivityNet 1.3 (v_<id>.mp4 or .mkv; form on activity-net.org)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
