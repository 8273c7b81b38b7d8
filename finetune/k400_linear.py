#!/usr/bin/env python3
"""Kinetics-400 by a probe on the frozen backbone: top-1, top-5, top-10 on the official val.

    deepspeed finetune/k400_linear.py --annotations kinetics400 --media kinetics400 --checkpoint base.ckpt --out runs/k400_linear --frames 8

The official val is the test here, as in the paper; 5 % of train choose the best weights. Hardware
of the published values: 256 clips per step, 50 epochs. --probe linear trains one layer alone, where
the original trains the pooler and two layers. Time on a GPU is not measured by us. The paper
(top-1/5/10): B with 3 frames 49.8 / 79.8 / 90.7, with 8 frames 52.4 / 83.2 / 92.9; averaged in time
instead of rolled 44.3 / 75.2 / 87.3.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import kinetics
from allinone.finetune.annotations.schema import Split
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.run import main
from allinone.finetune.tasks.action_recognition import ActionOptions, ActionRecognition


def load(folder: Path, split: str, variant: str, media: Path) -> Split:
    """Archives write the class folders with spaces or with underscores: whichever lies there."""
    names = [path.name for part in ("train", "val") for path in (media / part).glob("*_*")]
    return kinetics.load(folder, split, class_folders="underscores" if names else "spaces")


BENCHMARK = Benchmark(
    name="k400_linear",
    protocol=ActionRecognition,
    load=load,
    reads_media=True,
    variants={"": Splits("train", "held-out", "val")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=ActionOptions(),
        train=TuneConfig(global_batch=256, micro_batch=16, lr=3e-4, warmup=0.1),
    ),
    archives=(
        "Kinetics-400, <split>/<class>/<id>_<start>_<end>.mp4 (for example the archive of the CVD"
        " Foundation)"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
