#!/usr/bin/env python3
r"""MSVD retrieval: all captions of 670 test clips are queries (about 27,800).

Text to video and video to text.

    deepspeed finetune/msvd_retrieval.py --annotations msvd_data --media YouTubeClips \
        --checkpoint base.ckpt --out runs/msvd_retrieval

Hardware of the published values: 256 clips per step, 50 epochs (about 230 steps), the sum of both
contrast directions and the rank loss with 10 negatives. Time on a GPU is not measured by us. The
paper reports no MSVD retrieval (its code is configured for it). This is not the split of MSVD-QA:
never mix the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msvd
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="msvd_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: msvd.load(folder, split, task="retrieval"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=RetrievalOptions(contrast=2.0, rank=1.0, negatives=10),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=1e-4, warmup=0.1),
    ),
    archives="YouTubeClips.tar of MSVD (UT Austin), 1,970 .avi files",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
