#!/usr/bin/env python3
r"""TVQA: questions on TV clips with five options (Lei et al. 2018).

Accuracy on the official validation split, as in the paper's table; chance is 20 %.

    deepspeed finetune/tvqa.py --annotations tvqa --media frames_hq --checkpoint base.ckpt \
        --out runs/tvqa
    … --variant timestamps-subtitles --max-text-len 256: with the subtitles of the time span
    … --variant whole | whole-subtitles: without the annotated time span
    … --eval-split test: hidden labels, predictions in the format of the test server

Hardware of the published values: 512 questions per step, 100 epochs (about 22,600 steps), 100
tokens. Time on a GPU is not measured by us. The paper: S 63.5, B 69.8, 71.3 with 3x3 (--views 3),
B+ 71.5, B* 72.0. The original reads the time span and no subtitles, the default here; it is not
known whether the paper's numbers use that form. 5 % of the training clips are held out to select
the best weights. Media are folders of frames at 3 per second: no videos are released.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import tvqa
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ChoiceOptions

BENCHMARK = Benchmark(
    name="tvqa",
    description=__doc__,
    task="multiple_choice",
    load=lambda folder, split, variant: tvqa.load(
        folder,
        split,
        subtitles=variant.endswith("subtitles"),
        timestamps=variant.startswith("timestamps"),
    ),
    variants=dict.fromkeys(
        ("timestamps", "timestamps-subtitles", "whole", "whole-subtitles"),
        Splits("train", "held-out", "val"),
    ),
    config=FinetuneConfig(
        max_text_len=100,
        epochs=100,
        head_lr_mult=10.0,
        task=ChoiceOptions(head="mlp"),
        train=TuneConfig(global_batch=512, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "frames_hq of TVQA (tvqa.cs.unc.edu, on request): <show>_frames/<vid_name>/00001.jpg at 3"
        " frames per second"
    ),
    submission="tvqa",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
