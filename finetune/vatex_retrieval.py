#!/usr/bin/env python3
r"""VATEX retrieval: ten English captions of 1,500 test clips are queries (15,000).

Text to video and video to text, with the split of HGR (Chen et al. 2020).

    deepspeed finetune/vatex_retrieval.py --annotations VATEX --media VATEX/clips \
        --checkpoint base.ckpt --out runs/vatex_retrieval

Hardware: any; time on a GPU is not measured by us. The paper reports no VATEX and the original code
has no configuration of it: the values are those of MSR-VTT, by judgement, not tuned. Papers differ
in the test: 1,500 clips of HGR, as here, or others of VATEX's own splits. Clips come from
Kinetics-600: a checkpoint that saw Kinetics' videos is not zero-shot.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import vatex
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="vatex_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: vatex.load(folder, split),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=50,
        task=RetrievalOptions(),
        train=TuneConfig(global_batch=1024, micro_batch=32, lr=3e-4, warmup=0.1),
    ),
    archives="the clips of VATEX, <videoID>.mp4 (YouTube; eric-xw.github.io/vatex-website)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
