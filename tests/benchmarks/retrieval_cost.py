#!/usr/bin/env python3
"""Cost of re-ranking against scoring every pair, on a 1,000 x 1,000 test: joint passes and time.

    python tests/benchmarks/retrieval_cost.py [--steps 250] [--candidates 32] [--texts 1000]

A thousand pictures of three coloured bands, each with its caption, and a very small model that
learns them with the contrastive and the rank loss: this measures cost and agreement, not
generalisation. The same weights are then evaluated twice, re-ranking the first candidates of the
contrastive order, and scoring every pair. Time is measured inside forward passes; that of the
re-ranking includes the embeddings. Reading and decoding the pictures is the same for both and is
excluded. Exit code 1 if the re-ranking costs 4 % of the full scoring or more, or if a text whose
full winner is in its shortlist gets another R@1. If the full winner is outside the shortlist, the
two cannot agree; these texts are counted.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from PIL import Image

from allinone.common.command_line import parse, run_command
from allinone.data.config import DataConfig
from allinone.engine.checkpoint.weights import best_weights
from allinone.finetune.annotations.schema import Media, RetrievalItem, Split
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.evaluation.rerank import RerankedScores
from allinone.finetune.run import fine_tune
from allinone.finetune.tasks import retrieval
from allinone.finetune.tasks.options import RetrievalOptions
from allinone.model import AllInOneConfig, AllInOneForPreTraining

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "orange": (250, 140, 20),
    "purple": (130, 40, 160),
    "pink": (250, 160, 200),
    "grey": (128, 128, 128),
}
SIDE, PATCH = 24, 8
LIMIT = 0.04


def pictures(folder: Path, number: int) -> list[RetrievalItem]:
    """The first `number` of the thousand colour combinations, as files."""
    names = list(COLOURS)
    items = []
    for code in range(number):
        chosen = [names[code // 100 % 10], names[code // 10 % 10], names[code % 10]]
        bands = np.repeat(np.array([COLOURS[name] for name in chosen], np.uint8), SIDE // 3, axis=0)
        Image.fromarray(np.repeat(bands[:, None], SIDE, axis=1)).save(folder / f"{code}.png")
        items.append(RetrievalItem(str(code), Media(str(code), f"{code}.png"), (" ".join(chosen),)))
    return items


@dataclass(frozen=True)
class Evaluated:
    """One evaluation."""

    cost: dict[str, float]
    similarity: np.ndarray
    """Contrastive, [texts, pictures]."""
    scores: np.ndarray
    """After the joint pass, [texts, pictures]."""


@dataclass(frozen=True)
class RetrievalCostOptions:
    """Options of the measurement."""

    steps: int = 250
    """Training steps."""
    candidates: int = 32
    """Candidates per text."""
    texts: int = 1000
    """Number of texts, and of pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate twice, compare; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        lambda: measure(parse(RetrievalCostOptions, arguments, prog="retrieval_cost.py"))
    )


def measure(options: RetrievalCostOptions) -> int:
    """Exit code of the measurement."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "media").mkdir()
        items = pictures(root / "media", options.texts)
        copies = [replace(item, media=replace(item.media, id=f"train-{item.id}")) for item in items]
        benchmark = Benchmark(
            name="coloured_bands",
            task="retrieval",
            load=lambda folder, split, variant: Split(
                split, copies if split == "train" else items, ("made up",)
            ),
            variants={"": Splits("train", "", "test")},
            config=FinetuneConfig(),
            archives="made by this script",
        )
        return compare(benchmark, root, options.steps, options.candidates)


def compare(benchmark: Benchmark, root: Path, steps: int, candidates: int) -> int:
    """Exit code of the comparison."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "hidden_dropout": 0.0,
    }
    model_config = AllInOneConfig(
        **shape, image_size=SIDE, patch_size=PATCH, num_frames=1, max_text_len=6, drop_path=0.0
    )
    AllInOneForPreTraining(model_config).save_pretrained(root / "model")
    train = TuneConfig(
        steps=steps,
        global_batch=64,
        micro_batch=64,
        lr=4e-3,
        ds_config="zero1_fp32",
        save_every=steps,
        log_every=100,
    )
    config = FinetuneConfig(
        annotations=root,
        media=root / "media",
        checkpoint=root / "model",
        out=root / "run",
        frames=1,
        eval_batch=64,
        cache=root / "cache",
        task=RetrievalOptions(contrast=1.0, rank=1.0, negatives=7, pair_batch=1024),
        loader=DataConfig(workers=0, dali_threads=1, crop_scale=(0.9, 1.0)),
        train=train,
    )
    fine_tune(benchmark, config)
    found = []
    for rerank in (str(candidates), "all"):
        task = replace(config.task, rerank=rerank)  # type: ignore[type-var]
        run = replace(
            config,
            checkpoint=best_weights(config.out),
            out=root / f"eval-{rerank}",
            eval_only=True,
            task=task,
        )
        with kept_scores() as kept:
            result = fine_tune(benchmark, run)
        found.append(Evaluated(result.details["rerank"], *kept[0]))
    return report(*found, candidates)


@contextlib.contextmanager
def kept_scores() -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """(similarity, scores after the joint pass) of the evaluations in the body, which keep only
    ranks."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    original = retrieval.rerank

    def rerank(*args: Any, **options: Any) -> RerankedScores:
        found = original(*args, **options)
        kept.append((args[4], found.by_text))
        return found

    retrieval.rerank = rerank  # type: ignore[assignment]
    try:
        yield kept
    finally:
        retrieval.rerank = original


def report(short: Evaluated, full: Evaluated, candidates: int) -> int:
    """Print the comparison; 1 if a limit is exceeded."""
    texts = np.arange(len(short.similarity))
    order = np.argsort(-short.similarity, axis=1)
    places = np.argsort(order, axis=1)  # of every picture in a text's contrastive order
    winners = {
        "contrastive": order[:, 0],
        "re-ranked": short.scores.argmax(1),
        "every pair": full.scores.argmax(1),
    }
    hits = {name: winner == texts for name, winner in winners.items()}
    listed = places[texts, texts] < candidates
    shown = places[texts, winners["every pair"]] < candidates
    differ = listed & (hits["re-ranked"] != hits["every pair"])
    spent = short.cost["seconds_in_passes"] + short.cost["seconds_in_embedding_passes"]
    full_s = full.cost["seconds_in_passes"]
    pairs, seconds = short.cost["pairs"] / full.cost["pairs"], spent / full_s
    print(
        f"\n{len(texts):,} texts x {len(texts):,} pictures, {candidates} candidates; the picture is"
        f" in the shortlist of {listed.sum():,} texts"
    )
    print(f"contrastive  R@1 {100 * hits['contrastive'].mean():5.1f} %")
    print(
        f"re-ranked    R@1 {100 * hits['re-ranked'].mean():5.1f} %  {short.cost['pairs']:>9,} pairs"
        f" {spent:8.2f} s in passes, embeddings included"
    )
    print(
        f"every pair   R@1 {100 * hits['every pair'].mean():5.1f} %  {full.cost['pairs']:>9,} pairs"
        f" {full_s:8.2f} s in passes"
    )
    print(
        f"re-ranking: {100 * pairs:.2f} % of the joint passes, {100 * seconds:.2f} % of the time in"
        f" passes (limit {100 * LIMIT:g} %)"
    )
    print(
        f"in the shortlist, but another R@1: {differ.sum():,} texts; of these"
        f" {(differ & ~shown).sum():,} had the full winner outside"
    )
    return int(pairs >= LIMIT or seconds >= LIMIT or bool((differ & shown).any()))


if __name__ == "__main__":
    sys.exit(main())
