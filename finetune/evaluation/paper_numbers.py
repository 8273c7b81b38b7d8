"""The paper's numbers as data, and which of them a result of ours is comparable with.

`paper_numbers.json` holds the tables in the paper's layout: a row is a model with its pre-training,
frames and views; a column is one metric of one benchmark. Each number has a source and a certainty;
an illegible one is never compared with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from allinone.finetune.evaluation.official_counts import tested_as
from allinone.finetune.evaluation.results import EvaluationResult

NUMBERS = Path(__file__).with_name("paper_numbers.json")
IMAGE_SETS = frozenset({"CC3M", "CC12M", "COCO", "SBU", "VisualGenome"})
_PATTERNS = {
    r"webvid.*": "WebVid",
    r"(howto|ht).*": "HowTo100M",
    r"(ytt|yt-?temporal|yttemporal).*": "YT-Temporal",
    r"cc(3m)?": "CC3M",
    r"cc12m": "CC12M",
    r"coco.*": "COCO",
    r"sbu.*": "SBU",
    r"(vg|visualgenome)": "VisualGenome",
}


def data_sets(names: str) -> frozenset[str]:
    """Canonical names of data sets joined by + or commas: webvid2m+howto100m → {WebVid, HowTo100M}.
    Unknown names are kept as they are."""
    parts = [part.strip() for part in re.split(r"[+,]", names) if part.strip()]
    return frozenset(_canonical(part) for part in parts)


def _canonical(name: str) -> str:
    plain = name.lower().replace("_", "").replace(" ", "")
    return next(
        (known for pattern, known in _PATTERNS.items() if re.fullmatch(pattern, plain)), name
    )


@dataclass(frozen=True)
class PaperRow:
    """A model, as one row of a table."""

    model: str
    size: str
    pretraining: Sequence[str] | str | int
    """Names of data sets; "B+" if the table names only the model; a number if it names only the
    number of data sets."""
    frames: int
    views: int = 1
    image_size: int = 224
    zero_shot: bool = False
    loss: str = ""
    """contrast: the only loss; joint: a loss on the joint pass was trained as well; "" = not
    stated."""
    roll: str = ""
    """Kind of temporal interaction, if it is not the paper's token rolling."""
    highlight: str = ""
    """VCR: how people are drawn into the picture: masks (or boxes), or none."""
    heads: str = ""
    """shared or apart: heads of images and videos in co-training; "" = not stated."""
    note: str = ""
    source: str = ""
    """Key of `sources`, for cells that name no other source."""
    line: str = ""
    """The line of the slides' recognised text that holds the row."""
    recipe: Sequence[str] = ()
    """Recipes of pretrain/recipes whose weights fill the row."""
    no_recipe: str = ""
    """Why no recipe does."""

    @property
    def data(self) -> str:
        """The pre-training data as text."""
        if isinstance(self.pretraining, int):
            return f"{self.pretraining} data sets"
        if isinstance(self.pretraining, str):
            return "not printed"
        return " + ".join(self.pretraining)

    @property
    def look(self) -> str:
        """Frames, with views if there are several: 3, 3×3 (views × frames)."""
        return str(self.frames) if self.views == 1 else f"{self.views}×{self.frames}"


@dataclass(frozen=True)
class Column:
    """One metric of one benchmark."""

    head: str
    benchmark: str
    split: str
    metric: str
    """Name of a score in `EvaluationResult.scores`."""
    variant: str = ""
    unit: str = "%"
    group: str = ""
    """Heading above several columns of one benchmark."""

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a rank."""
        return self.unit == "rank"


@dataclass(frozen=True)
class PaperCell:
    """One number of the paper, or an empty cell."""

    table: str
    row: PaperRow
    column: Column
    value: float | None = None
    certainty: str = ""
    """sure, unsure or illegible, explained in the file; "" if the paper prints nothing."""
    source: str = ""
    """Key of `sources`: slide N, README or EVAL paper."""
    read: str = ""
    """Characters of the slide's recognised text, where they need an interpretation."""
    gain: tuple[float, float] | None = None
    """(baseline, difference): the slide prints the number together with this gain."""
    also: Mapping[str, float] = field(default_factory=dict)
    """Numbers that other sources give for the same cell."""
    note: str = ""

    @property
    def target(self) -> float | None:
        """The number, if it may be used for comparison."""
        return None if self.certainty == "illegible" else self.value

    @property
    def confirmation(self) -> str:
        """gain: the printed gain agrees; notes: the number is (also) that of README or EVAL.md;
        else the certainty."""
        if self.certainty != "sure":
            return self.certainty
        if self.gain is not None:
            return "gain"
        notes = _content()["sources"][self.source]["evidence"] == "notes"
        return "notes" if notes or self.value in self.also.values() else self.certainty

    def measures(self, result: EvaluationResult) -> bool:
        """Whether the result has this column's benchmark, split and metric."""
        column = self.column
        same = (column.benchmark, column.split) == (result.benchmark, result.split)
        return same and column.metric in result.scores

    def differences(self, result: EvaluationResult) -> list[str]:
        """How the result's setting differs from the paper's; empty if the two are comparable."""
        row = self.row
        roll = str(_recorded(result, "roll") or "roll")
        highlight = str(_task(result).get("highlight", "not recorded"))
        if highlight == "boxes":
            # the slides call the drawing a mask, and the original's code draws boxes: either counts
            highlight = "masks"
        heads = str(_recorded(result, "heads") or "not recorded")
        compared = [
            ("variant", tested_as(result.variant), self.column.variant),
            ("model size", result.model_size, row.size),
            ("frames", result.frames, row.frames),
            ("views", result.views, row.views),
            ("image size", result.image_size, row.image_size),
            ("zero-shot", result.zero_shot, row.zero_shot),
            ("zero-shot score", zero_shot_score(result), "match" if result.zero_shot else ""),
            ("temporal interaction", roll, row.roll or "roll"),
            ("re-ranked candidates", str(_task(result).get("rerank", "0")), "0"),
            # the paper does not state these everywhere
            ("highlight", highlight, row.highlight or highlight),
            ("heads of images and videos", heads, row.heads or heads),
            ("losses", losses(result), row.loss or losses(result)),
        ]
        found = [
            f"{name} {_shown(ours)}, not {_shown(theirs)}"
            for name, ours, theirs in compared
            if ours != theirs
        ]
        if not same_pretraining(row, result.pretraining):
            not_printed = "that of the row, which the paper does not print"
            paper = not_printed if isinstance(row.pretraining, str) else row.data
            ours = result.pretraining or "not stated (--pretraining)"
            found.append(f"pre-training {ours}, not {paper}")
        if before := _tuned_before(result):
            found.append(f"fine-tuned on {before} before")
        return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "none"


def _tuned_before(result: EvaluationResult) -> str:
    """The other benchmark that the evaluated checkpoint was fine-tuned on: such a result is not
    what the paper calls zero-shot."""
    recorded = _recorded(result, "fine_tuned_on")
    tuned_on = recorded if isinstance(recorded, Mapping) else {}
    benchmark = str(tuned_on.get("benchmark", ""))
    if benchmark in ("", result.benchmark):
        return ""
    return " ".join(filter(None, (benchmark, str(tuned_on.get("variant", "")))))


def _recorded(result: EvaluationResult, name: str) -> Any:
    return result.details.get(name, result.settings.get(name))


def _task(result: EvaluationResult) -> Mapping[str, Any]:
    """Options of the task."""
    task = result.settings.get("task")
    return task if isinstance(task, Mapping) else {}


def setting(result: EvaluationResult) -> tuple[Any, ...]:
    """Everything in which rows of the paper can differ: results with the same setting may share a
    row."""
    return (
        result.model_size or result.parameters,
        data_sets(result.pretraining),
        (result.frames, result.views, result.image_size),
        result.zero_shot,
        zero_shot_score(result),
        _tuned_before(result),
        # as text: a foreign file may hold anything, and this is a key
        str(_recorded(result, "roll") or "roll"),
        str(_recorded(result, "heads")),
        str(_task(result).get("highlight")),
        str(_task(result).get("rerank", "0")),
        losses(result),
    )


def zero_shot_score(result: EvaluationResult) -> str:
    """What scored the options of a zero-shot multiple choice; the paper's rows have match."""
    if not result.zero_shot:
        return ""
    if result.protocol != "multiple_choice":
        return "match"
    # version 0.2 had no such option, and always took the log-odds
    return str(_task(result).get("zero_shot_score", "log-odds"))


def losses(result: EvaluationResult) -> str:
    """Losses of a retrieval run: contrast, or joint if a loss on the joint pass was trained too."""
    task = _task(result)
    if not {"rank", "matching"} <= task.keys():
        return "not recorded"
    return "joint" if task["rank"] or task["matching"] else "contrast"


def same_pretraining(row: PaperRow, names: str) -> bool:
    """Whether a checkpoint pre-trained on `names` (joined by +) matches the row."""
    ours = data_sets(names)
    if isinstance(row.pretraining, int):
        return len(ours) == row.pretraining
    if row.pretraining == "B+":
        return bool(ours & IMAGE_SETS) and "WebVid" in ours and "YT-Temporal" not in ours
    return ours == data_sets("+".join(row.pretraining))


@dataclass(frozen=True)
class Table:
    """One table in the paper's layout."""

    id: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[PaperRow]
    cells: Mapping[tuple[int, int], PaperCell]
    """By row and column number; cells in which the paper prints nothing are included."""


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
    return content


def certainties() -> dict[str, str]:
    """Certainty → its meaning."""
    return dict(_content()["certainty"])


def sources() -> dict[str, dict[str, str]]:
    """Source → `what` it is and the `evidence` for its numbers: text, in the recognised text of
    the slides, or notes, known only from our notes about the original repository."""
    return dict(_content()["sources"])


def budget() -> list[dict[str, str]]:
    """The authors' statements about the cost of training and evaluation: rows of what, value,
    source and, on a slide, line."""
    return list(_content()["budget"])


@lru_cache(maxsize=1)
def paper_tables() -> tuple[Table, ...]:
    """All tables, in the paper's order."""
    return tuple(_table(table) for table in _content()["tables"])


def _table(content: Mapping[str, Any]) -> Table:
    columns = [Column(**column) for column in content["columns"]]
    rows = [
        PaperRow(**{name: value for name, value in row.items() if name != "cells"})
        for row in content["rows"]
    ]
    cells = {
        (i, j): _cell(content["id"], rows[i], column, row["cells"][j])
        for i, row in enumerate(content["rows"])
        for j, column in enumerate(columns)
    }
    return Table(content["id"], content["title"], content.get("note", ""), columns, rows, cells)


def _cell(table: str, row: PaperRow, column: Column, content: Any) -> PaperCell:
    if content is None:
        return PaperCell(table, row, column)
    given = dict(content) if isinstance(content, Mapping) else {"value": content}
    if "gain" in given:
        given["gain"] = tuple(given["gain"])
    return PaperCell(table, row, column, **{"certainty": "sure", "source": row.source} | given)


def paper_cells(benchmark: str, variant: str = "") -> list[PaperCell]:
    """The paper's numbers for a benchmark, or for one of its variants."""
    cells = [cell for table in paper_tables() for cell in table.cells.values()]
    return [
        cell
        for cell in cells
        if cell.column.benchmark == benchmark
        and cell.certainty
        and variant in ("", cell.column.variant)
    ]
