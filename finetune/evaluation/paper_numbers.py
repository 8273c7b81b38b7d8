"""The paper's numbers as data, and which of them one of our results may stand beside.

`paper_numbers.json` holds the tables in the paper's layout: a row is a model with its pre-training,
frames and views, a column is one metric of one benchmark. A number whose reading is doubtful says
so; an illegible one is never a target.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from allinone.finetune.evaluation.results import EvaluationResult

NUMBERS = Path(__file__).with_name("paper_numbers.json")
SAME_TEST = {"7k-clipbert": "7k", "clipbert": ""}
"""Variant of a script → the one whose test it reads from ClipBERT's files: the same items. Only the
parts for training and choosing differ, which no table of the paper states."""
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
    Unknown names stay as they are."""
    parts = [part.strip() for part in re.split(r"[+,]", names) if part.strip()]
    return frozenset(_canonical(part) for part in parts)


def _canonical(name: str) -> str:
    plain = name.lower().replace("_", "").replace(" ", "")
    return next(
        (known for pattern, known in _PATTERNS.items() if re.fullmatch(pattern, plain)), name
    )


def tested_as(variant: str) -> str:
    """The variant under which the paper's tables have a result."""
    return SAME_TEST.get(variant, variant)


@dataclass(frozen=True)
class PaperRow:
    """A model as one row of a table shows it."""

    model: str
    size: str
    pretraining: Sequence[str] | str | int
    """Names of data sets; "B+" or "B*" where the table names the model only; a number where it
    names the number of sets."""
    frames: int
    views: int = 1
    image_size: int = 224
    zero_shot: bool = False
    loss: str = ""
    """contrast: no other loss was trained; joint: a loss on the joint pass as well; "" = not
    stated."""
    roll: str = ""
    """Kind of temporal interaction, where it is not the paper's token rolling."""
    highlight: str = ""
    """VCR: masks, boxes or none, how people are drawn into the picture."""
    heads: str = ""
    """shared or apart, between images and videos in co-training; "" = not stated."""
    note: str = ""

    @property
    def data(self) -> str:
        """The pre-training in words."""
        if isinstance(self.pretraining, int):
            return f"{self.pretraining} data sets"
        if isinstance(self.pretraining, str):
            return "not printed"
        return " + ".join(self.pretraining)

    @property
    def look(self) -> str:
        """Frames, with views where there are several: 3, 3×3 (views × frames)."""
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
    """Heading over several columns of one benchmark."""

    @property
    def lower_is_better(self) -> bool:
        """A rank."""
        return self.unit == "rank"


@dataclass(frozen=True)
class PaperCell:
    """One number of the paper, or its absence."""

    table: str
    row: PaperRow
    column: Column
    value: float | None = None
    certainty: str = ""
    """verified, readme, talk, unsure or illegible: the meanings are in the file; "" where there is
    no number."""
    also: Mapping[str, float] = field(default_factory=dict)
    """What other sources print for the same."""
    note: str = ""

    @property
    def target(self) -> float | None:
        """The number, if it may be compared with."""
        return None if self.certainty == "illegible" else self.value

    def measures(self, result: EvaluationResult) -> bool:
        """Whether the result is of this column's benchmark and split and has its metric."""
        column = self.column
        return (column.benchmark, column.split) == (
            result.benchmark,
            result.split,
        ) and column.metric in result.scores

    def differences(self, result: EvaluationResult) -> list[str]:
        """In what the result's setting differs from the paper's; empty where the two may stand side
        by side."""
        row = self.row
        found = []
        for name, ours, theirs in (
            ("variant", tested_as(result.variant), self.column.variant),
            ("model size", result.model_size, row.size),
            ("frames", result.frames, row.frames),
            ("views", result.views, row.views),
            ("image size", result.image_size, row.image_size),
            ("zero-shot", result.zero_shot, row.zero_shot),
        ):
            if ours != theirs:
                found.append(f"{name} {_shown(ours)}, not {_shown(theirs)}")
        if not same_pretraining(row, result.pretraining):
            paper = (
                "that of the row, which the paper does not print"
                if isinstance(row.pretraining, str)
                else row.data
            )
            found.append(
                f"pre-training {result.pretraining or 'not stated (--pretraining)'}, not {paper}"
            )
        before = _tuned_before(result)
        if before:
            found.append(f"fine-tuned on {before} before")
        roll = str(_recorded(result, "roll") or "roll")
        if roll != (row.roll or "roll"):
            found.append(f"temporal interaction {roll}, not {row.roll or 'roll'}")
        drawn = str(_task(result).get("highlight", "not recorded"))
        if row.highlight and drawn != row.highlight:
            found.append(f"highlight {drawn}, not {row.highlight}")
        if row.heads and _recorded(result, "heads") != row.heads:
            found.append(
                f"heads of images and videos {_recorded(result, 'heads') or 'not recorded'}, not"
                f" {row.heads}"
            )
        if row.loss and losses(result) != row.loss:
            found.append(f"losses {losses(result)}, not {row.loss}")
        return found


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"


def _tuned_before(result: EvaluationResult) -> str:
    """The other benchmark that the evaluated checkpoint was fine-tuned on: such a result is not
    what the paper calls zero-shot."""
    origin = _recorded(result, "fine_tuned_on") or {}
    benchmark = str(origin.get("benchmark", ""))
    if benchmark in ("", result.benchmark):
        return ""
    return " ".join(filter(None, (benchmark, str(origin.get("variant", "")))))


def _recorded(result: EvaluationResult, name: str) -> Any:
    return result.details.get(name, result.settings.get(name))


def _task(result: EvaluationResult) -> Mapping[str, Any]:
    """Options of the protocol."""
    task = result.settings.get("task")
    return task if isinstance(task, Mapping) else {}


def setting(result: EvaluationResult) -> tuple[Any, ...]:
    """Everything of a result that rows of the paper can differ by: results with the same setting
    may share a row."""
    size, look = (
        result.model_size or result.parameters,
        (result.frames, result.views, result.image_size),
    )
    told = (
        _recorded(result, "roll") or "roll",
        _recorded(result, "heads"),
        _task(result).get("highlight"),
        losses(result),
    )
    return (
        size,
        data_sets(result.pretraining),
        look,
        result.zero_shot,
        _tuned_before(result),
        *told,
    )


def losses(result: EvaluationResult) -> str:
    """Of a retrieval run: contrast, or joint where a loss on the joint pass was trained too."""
    task = _task(result)
    if not {"rank", "matching"} <= task.keys():
        return "not recorded"
    return "joint" if task["rank"] or task["matching"] else "contrast"


def same_pretraining(row: PaperRow, names: str) -> bool:
    """Whether a checkpoint pre-trained on `names` (joined by +) is what the row shows."""
    ours = data_sets(names)
    if isinstance(row.pretraining, int):
        return len(ours) == row.pretraining
    if row.pretraining == "B*":
        return "YT-Temporal" in ours and len(ours) <= 3
    if row.pretraining == "B+":
        return bool(ours & IMAGE_SETS) and "YT-Temporal" not in ours
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
    """By number of row and of column; every place has one, also where the paper prints nothing."""


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
    return content


def certainties() -> dict[str, str]:
    """Mark → what it means."""
    return dict(_content()["certainty"])


def budget() -> list[dict[str, str]]:
    """What the authors say that training and evaluation took: rows of what, value."""
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
    if isinstance(content, Mapping):
        return PaperCell(table, row, column, **content)
    return PaperCell(table, row, column, content, "" if content is None else "talk")


def paper_cells(benchmark: str, variant: str = "") -> list[PaperCell]:
    """The numbers that the paper has for a benchmark, of one variant where one is given."""
    cells = [cell for table in paper_tables() for cell in table.cells.values()]
    return [
        cell
        for cell in cells
        if cell.column.benchmark == benchmark
        and cell.certainty
        and variant in ("", cell.column.variant)
    ]
