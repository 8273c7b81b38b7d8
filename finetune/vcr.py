#!/usr/bin/env python3
"""Visual commonsense reasoning: Q→A, QA→R, Q→AR on movie stills (Zellers et al. 2019); chance 25,
25, 6.25.

    deepspeed finetune/vcr.py --annotations vcr1annots --media vcr1images --checkpoint cc3m_coco --out runs/vcr
    … --highlight none: without the coloured persons; --eval-split test: the 20 columns for the server, predictions/vcr.csv

The official val is the test here, as in the paper; 5 % of train (whole movies) choose the best
weights. Hardware of the published values: 256 questions per step, 200 epochs. Time on a GPU is not
measured by us. The original cuts texts at 40 tokens and loses rationales; here 160 are read (MERLOT
reads 184). The paper (Q→A on val): CC3M+COCO with highlighting 60.5; HowTo100M without 65.2, with
68.4. QA→R and Q→AR are not given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import vcr
from allinone.finetune.annotations.schema import Split
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.evaluation import submissions
from allinone.finetune.run import main
from allinone.finetune.tasks.base import EvalOutput
from allinone.finetune.tasks.vcr import VCR, VCROptions


def columns(path: Path, split: Split, outcome: EvalOutput) -> None:
    """The file of the test server."""
    shown = [row for row in outcome.rows if row["prediction"] is not None]
    ids: Sequence[str] = [str(row["id"]) for row in shown]
    answers, rationales = (
        np.array([row[name] for row in shown], np.float32)
        for name in ("answer_scores", "rationale_scores")
    )
    expected = [item.id for item in split.items]
    submissions.vcr_csv(
        path,
        ids,
        answers,
        rationales,
        expected=expected,
        missing=[item.item for item in outcome.missing],
    )


BENCHMARK = Benchmark(
    name="vcr",
    protocol=VCR,
    load=lambda folder, split, variant, media: vcr.load(folder, split, images=media),
    reads_media=True,
    variants={"": Splits("train", "held-out", "val")},
    config=FinetuneConfig(
        frames=1,
        max_text_len=160,
        epochs=200,
        task=VCROptions(),
        train=TuneConfig(global_batch=256, micro_batch=2, lr=1e-4, warmup=0.1),
    ),
    archives="vcr1images.zip of visualcommonsense.com",
    submission=("vcr.csv", columns),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
