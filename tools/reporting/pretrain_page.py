"""A self-contained report of a pre-trained model as PNG files and one HTML page.

Loss curves, retrieval tables, retrieval examples, masked words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import duration
from allinone.common.html import data_uri, render
from allinone.engine.callbacks.reporting import evaluation_rows
from allinone.pretrain.objectives import registry
from allinone.tools.reporting.pretrain_figures import (
    History,
    MaskedWord,
    RetrievalExample,
    clip_image,
    plot_losses,
    plot_masked_words,
    plot_retrieval_examples,
    ranked_image,
)

DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}
RETRIEVAL_HEADER = ("split", "direction", "R@1 %", "R@5 %", "R@10 %", "MdR")
FILES = ("report.html", "losses.png", "gallery.png", "masked_words.png", "results.json")
"""What `write_report` writes, the page first."""


EVALUATIONS = 9
"""Evaluations in the table of the page."""


@dataclass(frozen=True)
class RunFacts:
    """What the page says about a run besides its results."""

    head: Sequence[tuple[str, str]]
    """(what, text), shown on top: model, data, date, seed, ..."""
    options: Sequence[tuple[str, str]]
    """(option, value), shown last."""
    chance: Mapping[str, float]
    """What guessing gives; see `plot_losses`."""


def retrieval_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(split, direction, R@1, R@5, R@10, MdR) as text, with a row for chance below each split."""
    rows = []
    for split, table in results.items():
        if not (isinstance(table, dict) and "text_to_video" in table):
            continue
        for direction, title in [*DIRECTIONS.items(), ("chance", "chance")]:
            metrics = table[direction]
            values = (f"{metrics[key]:.1f}" for key in ("R@1", "R@5", "R@10", "MdR"))
            rows.append((split, title, *values))
    return rows


def accuracy_texts(results: Mapping[str, Any]) -> list[str]:
    """The held-out accuracy of every objective that has one, such as "VTM accuracy: 80.9 %"."""
    texts = []
    for objective in registry.OBJECTIVES:
        value = results.get(f"{objective.name}_accuracy")
        if value is not None:
            chance = objective.chance
            guessed = "" if chance is None else f" (chance {100 * chance:g} %)"
            texts.append(f"{objective.label} accuracy: {value:.1f} %{guessed}")
    return texts


def duration_texts(results: Mapping[str, Any]) -> str:
    """How long each phase took, as one line."""
    return ", ".join(f"{name} {duration(value)}" for name, value in results["seconds"].items())


def write_report(
    folder: Path,
    results: Mapping[str, Any],
    history: History,
    retrieval: Sequence[RetrievalExample],
    masked: Sequence[MaskedWord],
    run: RunFacts,
    note: str = "",
) -> list[Path]:
    """Write the report: results.json, three PNGs, and report.html, which needs no other file.

    Args:
        folder: Created if missing.
        results: Retrieval tables by split, accuracies in percent, `train_clips`, `seconds` by
            phase.
        history: Rows of the run's history.jsonl.
        retrieval: Captions with their best clips.
        masked: Masked words with the model's guesses.
        run: What the page says about the run.
        note: A sentence on the splits.

    Returns:
        The paths of FILES, without pictures for which there are no examples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, losses, gallery, words, numbers = paths = [folder / name for name in FILES]
    plot_losses(history, losses, run.chance)
    if retrieval:
        plot_retrieval_examples(retrieval, gallery)
    if masked:
        plot_masked_words(masked, words)
    html = render(
        "tools/reporting/templates/pretraining.html.j2",
        title="All-in-one: pre-training report",
        train_clips=f"{results['train_clips']:,}",
        head=run.head,
        accuracies=accuracy_texts(results),
        header=RETRIEVAL_HEADER,
        rows=retrieval_rows(results),
        losses=data_uri(losses.read_bytes(), "png"),
        retrieval=[
            (example, [(clip, _webp(ranked_image(clip))) for clip in example.clips])
            for example in retrieval
        ],
        masked=[(example, _webp(clip_image(example.frames))) for example in masked],
        evaluations=evaluation_rows(history, run.chance, EVALUATIONS),
        options=run.options,
        note=note,
    )
    write_atomic(page, html)
    # last: where it exists, the report is complete
    write_atomic(numbers, json.dumps(results, indent=1) + "\n")
    absent = {gallery if not retrieval else None, words if not masked else None}
    return [path for path in paths if path not in absent]


def _webp(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "webp", quality=80)
    return data_uri(buffer.getvalue(), "webp")
