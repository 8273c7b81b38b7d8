"""A page of items that a fine-tuned model got right and wrong, or of captions and their references,
next to the result: RUN/results/NAME.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from allinone.common.atomic_io import write_atomic
from allinone.common.command_line.config_file import config_from_file
from allinone.common.errors import AllInOneError, InputError
from allinone.common.html import data_uri, render
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.frames import DecodeError
from allinone.finetune import own
from allinone.finetune.annotations.common import place_in_order
from allinone.finetune.annotations.schema import (
    ChoiceItem,
    ClipChoiceItem,
    Item,
    LabelItem,
    Media,
    QAItem,
    RetrievalItem,
)
from allinone.finetune.benchmark import Benchmark
from allinone.finetune.benchmarks import load_benchmark
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.evaluation.results import (
    PREDICTIONS,
    EvaluationResult,
    read_predictions,
)
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.media_library import MediaLibrary

SHOWN = 12
"""Items of each kind, right and wrong; chosen by their ids, not by the model's success."""
_HEIGHT_PX = 120


@dataclass(frozen=True)
class Picture:
    """Frames of one clip."""

    uri: str
    caption: str
    correct: bool = False


@dataclass(frozen=True)
class ItemView:
    """One item as the page shows it."""

    title: str
    lines: list[tuple[str, bool]]
    """(text, whether it is the correct answer)."""
    pictures: list[Picture]
    right: bool


def write_items_page(file: Path, result: EvaluationResult) -> Path:
    """Write the page of a results file; returns its path.

    Args:
        file: RUN/results/NAME.json.
        result: Its content.

    Raises:
        InputError: Predictions, annotations or media of the run cannot be read.
    """
    rows = read_predictions(file.parents[1] / PREDICTIONS / f"{result.name}.jsonl")
    try:
        config, items = _items(file, result)
        written = result.protocol == "captioning"
        chosen = _first(_scored(rows), 2 * SHOWN) if written else _chosen(rows)
        used = {item.id: item for item in items}
        pictures = _Pictures(config, _benchmark(result))
        views = [_view(row, used, pictures) for row in chosen]
    except (AllInOneError, OSError) as error:
        raise InputError(f"no page of items for {file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise InputError(
            f"no page of items for {file}: its predictions are damaged ({error!r})"
        ) from error
    page = file.with_suffix(".html")
    html = render(
        "tools/reporting/templates/items.html.j2",
        title=f"{result.name}: {'captions' if written else 'right and wrong items'}",
        result=result,
        written=written,
        parts=[("Captions and references", views)]
        if written
        else [
            ("Wrong", [view for view in views if not view.right]),
            ("Right", [view for view in views if view.right]),
        ],
        counts={kind: sum(_right(row) == kind for row in _scored(rows)) for kind in (True, False)},
    )
    write_atomic(page, html)
    return page


def _benchmark(result: EvaluationResult) -> Benchmark:
    if result.benchmark == own.NAME:
        return own.BENCHMARKS[result.variant]
    return load_benchmark(result.benchmark)


def _items(file: Path, result: EvaluationResult) -> tuple[FinetuneConfig, Sequence[Item]]:
    benchmark = _benchmark(result)
    config: FinetuneConfig = config_from_file(file, benchmark.config)
    variant, names = benchmark.splits(config)
    if result.split != names.test:
        raise InputError(f"its settings evaluate {names.test}, the result is of {result.split}")
    return config, benchmark.read(config, result.split, variant).items


def _scored(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with a measure; of a retrieval, those of the texts."""
    return [row for row in rows.values() if row["measures"] and "v2t/rank" not in row["measures"]]


def _right(row: Mapping[str, Any]) -> bool:
    name, value = next(iter(row["measures"].items()))
    return bool(value == 1.0 if name.endswith("rank") else value > 0.5)


def _first(rows: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: place_in_order(row["id"]))[:number]


def _chosen(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kinds = [[row for row in _scored(rows) if _right(row) == kind] for kind in (False, True)]
    return [row for kind in kinds for row in _first(kind, SHOWN)]


class _Pictures:
    """Small pictures of media, each decoded once."""

    def __init__(self, config: FinetuneConfig, benchmark: Benchmark) -> None:
        self._library = MediaLibrary(
            config.media,
            config.cache,
            source=benchmark.archives,
            picture_rate=config.picture_rate,
        )
        clip = ClipConfig(config.frames, config.image_size or 224, config.max_text_len or 40)
        self._reader = MediaReader(self._library, clip, DataConfig(workers=0))

    def __call__(self, media: Media, *, correct: bool = False) -> Picture:
        """The frames that an evaluation shows, side by side."""
        try:
            self._library.prepare([media], quiet=True)
            (visual,) = self._reader(VisualInput(media), None)
            frames = visual.media
            assert isinstance(frames, np.ndarray)
        except (AllInOneError, DecodeError) as error:
            return Picture("", f"{media.path}: cannot be shown ({error})", correct)
        image = Image.fromarray(np.concatenate(list(frames), axis=1))
        image.thumbnail((image.width, _HEIGHT_PX))
        buffer = BytesIO()
        image.save(buffer, "webp", quality=80)
        return Picture(data_uri(buffer.getvalue(), "webp"), _name(media), correct)


def _name(media: Media) -> str:
    if media.start_s is None and media.end_s is None:
        return media.path
    end = "end" if media.end_s is None else f"{media.end_s:g} s"
    return f"{media.path}, {media.start_s or 0:g} s to {end}"


def _view(row: Mapping[str, Any], items: Mapping[str, Item], pictures: _Pictures) -> ItemView:
    right = _right(row)
    if row["id"].startswith("text:") and row.get("answer") in items:
        return _retrieval_view(row, items, pictures, right)
    item = items.get(row["id"])
    if item is None:
        raise InputError(f"item {row['id']!r} is not in the annotations: they have changed")
    clips = item.clips if isinstance(item, ClipChoiceItem) else (item.media,)
    shown = [pictures(media) for media in clips]
    prediction, score = row.get("prediction"), row.get("score")
    if prediction is None:
        return ItemView(_title(item), [("not shown to the model", False)], shown, right)
    if isinstance(item, RetrievalItem):  # a caption
        score = row["measures"]["CIDEr-D"]
        lines = [(f"CIDEr-D {score:.1f}", False), *((text, True) for text in item.captions)]
        return ItemView(f"the model: {prediction or '(nothing)'}", lines, shown, right)
    if isinstance(item, ChoiceItem):
        marks = [" ← the model" if n == prediction else "" for n in range(len(item.choices))]
        lines = [
            (f"{choice}{_scored_as(score, n)}{marks[n]}", n == item.answer)
            for n, choice in enumerate(item.choices)
        ]
    elif isinstance(item, LabelItem):
        lines = [
            (f"{label}{_scored_as(score, n)}", label == row["answer"])
            for n, label in enumerate(prediction)
        ]
    else:
        lines = [(f"the model: {prediction}{_scored_as([score], 0)}", right)]
    if not any(correct for _, correct in lines):
        answer = row.get("answer")
        answers = answer if isinstance(answer, list) else [answer]
        lines.append((f"correct: {', '.join(map(str, answers))}", True))
    return ItemView(_title(item), lines, shown, right)


def _retrieval_view(
    row: Mapping[str, Any], items: Mapping[str, Item], pictures: _Pictures, right: bool
) -> ItemView:
    found = [name for name in row["prediction"] if name in items]
    shown = found if row["answer"] in found else [*found, row["answer"]]
    rank = next(iter(row["measures"].values()))
    return ItemView(
        row["text"],
        [(f"correct clip: rank {rank:g}", right)],
        [pictures(items[name].media, correct=name == row["answer"]) for name in shown],
        right,
    )


def _title(item: Item) -> str:
    if isinstance(item, QAItem | ChoiceItem):
        return item.question or "Which text describes the clip?"
    if isinstance(item, RetrievalItem):
        return item.captions[0]
    return item.text if isinstance(item, ClipChoiceItem) else item.media.path


def _scored_as(scores: Any, number: int) -> str:
    known = isinstance(scores, list) and number < len(scores) and scores[number] is not None
    return f" ({scores[number]:.2f})" if known else ""
