#!/usr/bin/env python3
r"""EgoMCQ: which of five clips belongs to the narration (Lin et al. 2022).

Clips of other videos (inter) or of the same video (intra); chance is 20 %.

    deepspeed finetune/egomcq.py --annotations EgoVLP --media ego4d/videos \
        --checkpoint base.ckpt --out runs/egomcq --eval-only
    … --variant chunks: videos cut into chunks of 600 seconds, <uid>/<number>.mp4, as EgoVLP does

Hardware: one GPU; time is not measured by us. The paper reports no EgoMCQ. EgoVLP's released metric
prints inter and intra under each other's name; the higher number is inter. There is no training
split.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import egomcq
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import ChoiceOptions

BENCHMARK = Benchmark(
    name="egomcq",
    description=__doc__,
    task="multiple_choice",
    load=lambda folder, split, variant: egomcq.load(
        folder, split, chunk_s=600.0 if variant == "chunks" else None
    ),
    variants=dict.fromkeys(("whole", "chunks"), Splits("", "", "test")),
    config=FinetuneConfig(
        max_text_len=40,
        epochs=10,
        task=ChoiceOptions(),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "the full-scale videos of Ego4D (<uid>.mp4; licence agreement with the Ego4D consortium)"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
