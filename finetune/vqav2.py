#!/usr/bin/env python3
"""VQAv2: open questions on COCO images with ten answers each, the official accuracy (images are
clips of one frame).

    deepspeed finetune/vqav2.py --annotations vqav2 --media coco --checkpoint base.ckpt --out runs/vqav2
    … --variant val: train on train2014 alone, scored on val2014 here instead of on the test server

Hardware of the published values: 256 questions per step, 10 epochs (about 25,500 steps). Time on a
GPU is not measured by us. The paper configures VQAv2 and reports no figure. As in ViLT, training is
on train2014 and val2014 but for about 1,000 images of val2014 that choose the best weights;
test-dev has hidden labels, its predictions are written in the form of the test server.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import vqav2
from allinone.finetune.annotations.schema import Split
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.evaluation import submissions
from allinone.finetune.run import main
from allinone.finetune.tasks.base import EvalOutput
from allinone.finetune.tasks.open_ended_qa import OpenEndedQA, QAOptions


def answers(path: Path, split: Split, outcome: EvalOutput) -> None:
    """The file of the test server."""
    ids, given = (
        [str(row["id"]) for row in outcome.rows],
        [row["prediction"] for row in outcome.rows],
    )
    submissions.vqav2_json(path, ids, given, expected=[item.id for item in split.items])


BENCHMARK = Benchmark(
    name="vqav2",
    protocol=OpenEndedQA,
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
    submission=("vqav2_submission.json", answers),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
