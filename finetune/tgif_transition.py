#!/usr/bin/env python3
r"""TGIF-QA transition: what happens before or after, five options.

Accuracy over 6,232 test questions; chance is 20 %.

    deepspeed finetune/tgif_transition.py --annotations tgif-qa/dataset --media tgif/gifs \
        --checkpoint base.ckpt --out runs/tgif_transition

Hardware of the published values: 512 questions per step, 100 epochs (about 9,800 steps). Time on a
GPU is not measured by us. The paper (3 frames): Ti 83.5, S 92.7, B 94.3, B at 384 pixels 95.1, B+
95.5. There is no official validation split: 5 % of the training GIFs are held out (--variant
clipbert reads ClipBERT's files, which have one). A model that sees the five options and no video
exceeds 90 % here, so high scores prove little about video. See tgif_action.py about the archive.
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
from allinone.finetune.tasks.options import ChoiceOptions

BENCHMARK = Benchmark(
    name="tgif_transition",
    description=__doc__,
    task="multiple_choice",
    load=lambda folder, split, variant: tgif.load(folder, split, task="transition", form=variant),
    variants={"": Splits("train", "held-out", "test"), "clipbert": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=100,
        head_lr_mult=10.0,
        task=ChoiceOptions(head="mlp"),
        train=TuneConfig(global_batch=512, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "the GIF archive of TGIF (raingo/TGIF-Release), <gif_name>.gif, or the same files as mp4"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
