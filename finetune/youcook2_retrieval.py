#!/usr/bin/env python3
r"""YouCook2 retrieval: steps of recipes, one sentence and one clip each.

Text to video and video to text on validation clips, whose test labels are hidden.

    deepspeed finetune/youcook2_retrieval.py --annotations youcook2 --media youcook2/raw_videos \
        --checkpoint base.ckpt --out runs/youcook2_retrieval
    … --variant all: all 3,492 validation clips, instead of the 3,350 that papers test on

Hardware: any; time on a GPU is not measured by us. The paper reports no YouCook2 and the original
code has no configuration of it: the values are those of MSR-VTT, by judgement, not tuned. The 3,350
clips are those whose videos are not in HowTo100M: with --variant all, a checkpoint pre-trained on
HowTo100M has seen test videos. 5 % of the training videos select the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import youcook2
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="youcook2_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant, media: youcook2.load(
        folder, split, protocol=variant, videos=media
    ),
    reads_media=True,
    variants=dict.fromkeys(youcook2.PROTOCOLS, Splits("train", "held-out", "val")),
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=RetrievalOptions(),
        train=TuneConfig(global_batch=1024, micro_batch=32, lr=3e-4, warmup=0.1),
    ),
    archives=(
        "YouCook2's videos, <subset>/<recipe type>/<id>.mp4 (youcook2.eecs.umich.edu), or all of"
        " them in one folder"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
