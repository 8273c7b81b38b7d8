"""Official numbers of test items, and whether a result was scored on exactly these items.

The numbers are those that the annotation readers compare their files with. A result counts as
official if it has the benchmark's split and the official number of items; items that could not be
shown count as wrong and stay in that number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from allinone.finetune.annotations import (
    activitynet,
    activitynet_qa,
    didemo,
    hmdb51,
    karpathy,
    kinetics,
    lsmdc,
    msrvtt,
    msrvtt_choice,
    msrvtt_retrieval,
    msvd,
    nextqa,
    ssv2,
    tgif,
    tvqa,
    ucf101,
    vatex,
    vcr,
    vqav2,
    youcook2,
)
from allinone.finetune.evaluation.results import EvaluationResult

SAME_TEST = {
    "7k-clipbert": "7k",
    "clipbert": "",
    "9k-joint": "9k",
    "7k-joint": "7k",
    "9k-contrast": "9k",
    "7k-contrast": "7k",
}
"""Variant → the variant with the same test items. They differ in training and validation only:
ClipBERT's files have other parts, and the joint and contrast variants other losses, which a result
states in its settings."""


@dataclass(frozen=True)
class OfficialCount:
    """Size of one official split."""

    items: int
    what: str
    """What an item is: questions, videos, images or clips."""


def tested_as(variant: str) -> str:
    """The variant with the same test items, under which counts and the paper's tables list it."""
    return SAME_TEST.get(variant, variant)


def _counts() -> dict[tuple[str, str, str], OfficialCount]:
    counts = {
        ("msrvtt_qa", "", "test"): (msrvtt.QUESTIONS["test"], "questions"),
        ("msrvtt_choice", "", "test"): (msrvtt_choice.CHOICE_TEST, "questions"),
        ("msvd_qa", "", "test"): (msvd.QUESTIONS["test"], "questions"),
        ("msvd_retrieval", "", "test"): (msvd.VIDEOS["test"], "videos"),
        ("lsmdc_choice", "", "test"): (lsmdc.CHOICE_TEST, "questions"),
        ("lsmdc_retrieval", "", "test"): (lsmdc.SENTENCES["test"], "clips"),
        ("activitynet_retrieval", "", "val_1"): (activitynet.VIDEOS["val_1"], "videos"),
        ("didemo_retrieval", "", "test"): (didemo.VIDEOS["test"][0], "videos"),
        ("vcr", "", "val"): (vcr.SIZES["val"][0], "questions"),
        ("k400_linear", "", "val"): (kinetics.VAL_ROWS, "clips"),
        ("vqav2", "val", "val"): (vqav2.QUESTIONS["val2014"], "questions"),
        ("flickr30k_retrieval", "", "test"): (karpathy.IMAGES["flickr30k"]["test"], "images"),
        ("activitynet_qa", "", "test"): (activitynet_qa.QUESTIONS["test"], "questions"),
        ("msrvtt_caption", "", "test"): (msrvtt_retrieval.VIDEOS["full", "test"], "videos"),
        ("msvd_caption", "", "test"): (msvd.VIDEOS["test"], "videos"),
        ("vatex_caption", "", "test"): (vatex.OFFICIAL_CLIPS["test"], "clips"),
        ("youcook2_caption", "", "val"): (youcook2.VAL_CLIPS["all"], "clips"),
        ("vatex_retrieval", "", "test"): (vatex.CLIPS["test"], "clips"),
        ("lsmdc_fib", "", "test"): (lsmdc.BLANKS["test"], "questions"),
        ("ssv2_linear", "", "val"): (ssv2.VIDEOS["val"], "videos"),
        ("hmdb51_linear", "mean", "test"): (3 * hmdb51.TEST, "clips of three folds"),
        ("ucf101_linear", "mean", "test"): (
            sum(test for _, test in ucf101.SIZES.values()),
            "clips of three folds",
        ),
    }
    for protocol in ("9k", "7k", "full", "1k-b"):
        videos = msrvtt_retrieval.VIDEOS[protocol, "test"]
        counts["msrvtt_retrieval", protocol, "test"] = (videos, "videos")
    for variant, split in (("", "test"), ("val", "val")):
        counts["nextqa", variant, split] = (nextqa.QUESTIONS[split], "questions")
    for protocol, clips in youcook2.VAL_CLIPS.items():
        counts["youcook2_retrieval", protocol, "val"] = (clips, "clips")
    for text in ssv2.TEXTS:
        counts["ssv2_retrieval", text, "val"] = (ssv2.RETRIEVAL_VIDEOS, "videos")
    for task in tgif.TASKS:
        counts[f"tgif_{task}", "", "test"] = (tgif.SIZES[task, "test"][0], "questions")
    for variant in ("timestamps", "timestamps-subtitles", "whole", "whole-subtitles"):
        counts["tvqa", variant, "val"] = (tvqa.SIZES["val"], "questions")
    for variant in ("5k", "1k"):  # 1k: five folds of the same images
        counts["coco_retrieval", variant, "test"] = (karpathy.IMAGES["coco"]["test"], "images")
    for fold, (_, test) in ucf101.SIZES.items():
        counts["ucf101_linear", str(fold), "test"] = (test, "clips")
        counts["hmdb51_linear", str(fold), "test"] = (hmdb51.TEST, "clips")
    return {key: OfficialCount(*count) for key, count in counts.items()}


_COUNTS = _counts()


def official_count(benchmark: str, variant: str, split: str) -> OfficialCount | None:
    """The official size of a split.

    Args:
        benchmark: Name of the entry script.
        variant: Variant of the benchmark.
        split: Name of the split, as the annotation reader knows it.

    Returns:
        None if no number is published (Ego4D multiple choice, EgoMCQ), or if no score of the paper
        is on this split.
    """
    return _COUNTS.get((benchmark, tested_as(variant), split))


def with_official_count(result: EvaluationResult) -> EvaluationResult:
    """The result with the official number of items, and whether it was scored on that number."""
    known = official_count(result.benchmark, result.variant, result.split)
    return replace(
        result,
        official_items=None if known is None else known.items,
        official=known is not None and known.items == result.items,
    )
