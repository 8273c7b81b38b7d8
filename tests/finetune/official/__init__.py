"""Tiny made-up data sets in the exact official format of every benchmark, with tiny media.

    sample = WRITERS["tvqa"](tmp_path)
    tvqa.load(sample.annotations, "val")

Writers include traps such as broken rows, odd spellings and hidden labels; their docstrings name
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.finetune.official.actions import hmdb51, kinetics, ucf101
from tests.finetune.official.common import MadeUpBenchmark
from tests.finetune.official.ego_4d import ego4d, egomcq
from tests.finetune.official.images import coco, flickr30k, vqav2
from tests.finetune.official.movies import activitynet, didemo, lsmdc
from tests.finetune.official.msr_vtt import msrvtt, msrvtt_caption
from tests.finetune.official.newer import activitynet_qa, nextqa, ssv2, vatex, youcook2
from tests.finetune.official.questions import (
    MSVD_CLIPS,
    msvd,
    tgif,
    tgif_clipbert,
    tvqa,
    tvqa_subtitle_lines,
    vcr,
)

__all__ = [
    "MSVD_CLIPS",
    "WRITERS",
    "MadeUpBenchmark",
    "hmdb51",
    "msrvtt",
    "msrvtt_caption",
    "msvd",
    "tgif_clipbert",
    "tvqa",
    "tvqa_subtitle_lines",
    "vcr",
]

WRITERS: dict[str, Callable[[Path], MadeUpBenchmark]] = {
    "msrvtt": msrvtt,
    "msvd": msvd,
    "tgif": tgif,
    "tvqa": tvqa,
    "lsmdc": lsmdc,
    "activitynet": activitynet,
    "didemo": didemo,
    "vcr": vcr,
    "kinetics": kinetics,
    "hmdb51": hmdb51,
    "ucf101": ucf101,
    "vqav2": vqav2,
    "coco": coco,
    "flickr30k": flickr30k,
    "ego4d": ego4d,
    "egomcq": egomcq,
    "activitynet_qa": activitynet_qa,
    "nextqa": nextqa,
    "vatex": vatex,
    "youcook2": youcook2,
    "ssv2": ssv2,
}
