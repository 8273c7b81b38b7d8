#!/usr/bin/env python3
r"""DiDeMo, paragraph-to-video retrieval.

All descriptions of a video form one query: 1,004 against 1,004, first 30 seconds.

    deepspeed finetune/didemo_retrieval.py --annotations LocalizingMoments/data \
        --media didemo/videos --checkpoint base.ckpt --out runs/didemo

Hardware of the published values: 1,024 videos per step, 200 epochs (about 1,600 steps), contrast
only, 80 tokens. Time on a GPU is not measured by us. The paper (R@1/5/10 and MdR of text to video):
B 31.2 / 60.5 / 72.1, 3; with 3x3 (--views 3) 32.7 / 61.4 / 73.5, 3.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import didemo
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="didemo_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: didemo.load(folder, split),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=80,
        epochs=200,
        task=RetrievalOptions(),
        train=TuneConfig(global_batch=1024, micro_batch=32, lr=6e-4, warmup=0.1),
    ),
    archives="DiDeMo's videos (Flickr; LisaAnne/LocalizingMoments names mirrors), with any suffix",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
