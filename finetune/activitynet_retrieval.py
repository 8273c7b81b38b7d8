#!/usr/bin/env python3
r"""ActivityNet Captions, paragraph-to-video retrieval.

4,917 paragraphs against 4,917 videos of val_1.

    deepspeed finetune/activitynet_retrieval.py --annotations activitynet \
        --media activitynet/videos --checkpoint base.ckpt --out runs/activitynet

Hardware of the published values: 1,024 videos per step, 200 epochs (about 1,900 steps), contrast
only. Time on a GPU is not measured by us. The paper (R@1/5/10 and MdR of text to video): B 21.5 /
50.3 / 65.5, 6; with 3x3 (--views 3) 22.4 / 53.7 / 67.7, 5. The original cuts paragraphs at 40
tokens, which loses most of nearly every paragraph; 100 are read here, and --max-text-len 40 does
the same as the original. val_1 is the test split, so 5 % of the training videos are held out to
select the best weights; val_2 has other captions of the same videos and must not be used for it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import activitynet
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="activitynet_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: activitynet.load(folder, split),
    variants={"": Splits("train", "held-out", "val_1")},
    config=FinetuneConfig(
        max_text_len=100,
        epochs=200,
        task=RetrievalOptions(),
        train=TuneConfig(global_batch=1024, micro_batch=32, lr=3e-4, warmup=0.1),
    ),
    archives=(
        "the videos of ActivityNet 1.3 (v_<id>.mp4, .mkv or .webm; the owners give a full copy by a"
        " form, many links are dead)"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
