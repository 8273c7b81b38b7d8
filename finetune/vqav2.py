#!/usr/bin/env python3
r"""VQAv2: open-ended questions on COCO images with ten answers each.

The official accuracy. Images are clips of one frame.

    deepspeed finetune/vqav2.py --annotations vqav2 --media coco --checkpoint base.ckpt \
        --out runs/vqav2
    … --variant val: train on train2014 only, score val2014 here instead of on the test server

Hardware of the published values: 256 questions per step, 10 epochs (about 25,500 steps). Time on a
GPU is not measured by us. The paper configures VQAv2 but reports no number. As in ViLT, training
uses train2014 and val2014 except about 1,000 images of val2014 that select the best weights.
test-dev has hidden labels: its predictions are written in the format of the test server.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import vqav2
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import QAOptions

BENCHMARK = Benchmark(
    name="vqav2",
    description=__doc__,
    task="open_ended_qa",
    load=lambda folder, split, variant: vqav2.load(folder, split),
    variants={
        "test-dev": Splits("train+val", "held-out", "test-dev"),
        "val": Splits("train", "", "val"),
    },
    config=FinetuneConfig(
        frames=1,
        max_text_len=40,
        epochs=10,
        head_lr_mult=10.0,
        task=QAOptions(answers=0, loss="bce"),
        train=TuneConfig(global_batch=256, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="train2014.zip, val2014.zip and test2015.zip of COCO (images.cocodataset.org)",
    submission="vqav2",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
