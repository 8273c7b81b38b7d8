"""What an evaluation leaves behind: one JSON file of scores per benchmark and split, and one line
per item that says what was predicted."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import AllInOneError

FORMAT = 1
RESULTS, PREDICTIONS = "results", "predictions"
"""Folders inside a run's folder."""


class ResultError(AllInOneError, ValueError):
    """A results or predictions file is missing, damaged, or of another format; the message names
    it."""


@dataclass(frozen=True)
class Score:
    """A number with its confidence interval."""

    value: float
    low: float | None = None
    """Lower end of the 95 % bootstrap interval over the items; None where there is none."""
    high: float | None = None
    unit: str = "%"
    """"%" (0 to 100), "rank" (1 is best) or "" (a plain number)."""


@dataclass(frozen=True)
class Missing:
    """An item that could not be shown to the model. It counts as wrong."""

    item: str
    media: str
    reason: str


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one checkpoint on one split of one benchmark."""

    benchmark: str
    """Name of the entry script: msrvtt_retrieval, tgif_action, …"""
    split: str
    protocol: str
    """retrieval, open_ended_qa, multiple_choice, vcr or action_recognition."""
    zero_shot: bool
    """Whether no parameter was trained on this benchmark."""
    frames: int
    """Frames per view."""
    views: int
    image_size: int
    """Pixels of the square that the model sees."""
    max_text_len: int
    """Tokens, [CLS] and [SEP] included."""
    model_size: str
    """tiny, small, base, …; "" where the checkpoint fits none of the named sizes."""
    parameters: int
    """Backbone and heads that this evaluation used."""
    checkpoint: str
    checkpoint_sha256: str
    items: int
    """Test items, the missing ones included."""
    scores: Mapping[str, Score]
    """By name, the headline first. Names are those of `finetune.metrics`: t2v/R@1, accuracy,
    accuracy/what, q2ar, top1, …"""
    variant: str = ""
    """Which of several protocols on the same files: 9k, 7k, 1k-b, subtitles, …"""
    pretraining: str = ""
    """Data sets of the pre-training joined by +, as the paper writes them (WebVid+HowTo); "" = not
    known."""
    missing: Sequence[Missing] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that was found, as JSON: chance level, notes of the reader, cost of the
    re-ranking."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration of the run, as JSON; what decides comparability (captions, rerank, …)
    belongs in here."""
    code: str = ""
    """Version of the code: commit, or package version."""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the evaluation ended, UTC, ISO 8601."""

    @property
    def name(self) -> str:
        """<benchmark>[-<variant>]-<split>, the name of the file."""
        return "-".join(part for part in (self.benchmark, self.variant, self.split) if part)

    def same_measurement(self, other: EvaluationResult) -> bool:
        """Whether the two differ in nothing but what was found and when."""
        names = (
            "name",
            "zero_shot",
            "frames",
            "views",
            "image_size",
            "max_text_len",
            "checkpoint_sha256",
            "pretraining",
            "settings",
        )
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def as_json(self) -> dict[str, Any]:
        """Nested plain data, the file's content."""
        plain = dataclasses.asdict(dataclasses.replace(self, scores={}, details={}, settings={}))
        scores = {name: dataclasses.asdict(score) for name, score in self.scores.items()}
        return {
            "format": FORMAT,
            **plain,
            "scores": scores,
            "details": dict(self.details),
            "settings": dict(self.settings),
        }


def result_from_json(content: Mapping[str, Any]) -> EvaluationResult:
    """The inverse of `as_json`. Raises ResultError that names the field."""
    if content.get("format") != FORMAT:
        raise ResultError(
            f"format {content.get('format')!r}, this version reads {FORMAT}; evaluate again"
        )
    known = {part.name: part for part in dataclasses.fields(EvaluationResult)}
    values = {name: value for name, value in content.items() if name in known}
    absent = [name for name, part in known.items() if name not in values and _required(part)]
    if absent:
        raise ResultError(f"no field {', '.join(absent)}")
    try:
        scores = {name: Score(**score) for name, score in values["scores"].items()}
        values |= {
            "scores": scores,
            "missing": tuple(Missing(**item) for item in values.get("missing", ())),
        }
        return EvaluationResult(**values)
    except (TypeError, AttributeError) as error:
        raise ResultError(f"a field does not have the expected form ({error})") from error


def _required(part: dataclasses.Field[Any]) -> bool:
    return part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING


def write_result(folder: Path, result: EvaluationResult) -> Path:
    """Write `folder`/results/<name>.json, whole or not at all; returns the path.

    The same evaluation done again replaces its file. One with other settings (frames, checkpoint,
    …) moves the file that it finds aside, to <name>.1.json and so on, and its predictions with it:
    no number is lost. Call it before `write_predictions`. ValueError for a score that is no finite
    number.
    """
    broken = [name for name, score in result.scores.items() if not math.isfinite(score.value)]
    if broken:
        raise ValueError(f"{result.name}: score {', '.join(broken)} is not a finite number")
    path = folder / RESULTS / f"{result.name}.json"
    content = json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n"
    if path.exists() and not _replaces(path, json.loads(content)):
        number = next(
            number
            for number in range(1, 10_000)
            if not path.with_suffix(f".{number}.json").exists()
        )
        path.rename(path.with_suffix(f".{number}.json"))
        predictions = folder / PREDICTIONS / f"{result.name}.jsonl"
        if predictions.exists():
            predictions.rename(predictions.with_suffix(f".{number}.jsonl"))
    write_atomic(path, content)
    return path


def _replaces(path: Path, content: Mapping[str, Any]) -> bool:
    try:
        return result_from_json(content).same_measurement(_read_result(path))
    except ResultError:
        return False


def read_results(path: Path) -> list[tuple[Path, EvaluationResult]]:
    """(file, result) of a results file, of a folder of them, or of a run's folder, in order of
    name. Raises ResultError where there is none."""
    if path.is_file():
        return [(path, _read_result(path))]
    if not path.is_dir():
        raise ResultError(f"{path} is neither a file nor a folder")
    folder = path / RESULTS if (path / RESULTS).is_dir() else path
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    if not files:
        raise ResultError(
            f"{path} holds no results: no {RESULTS}/*.json in it. Give the folder of a run that was"
            " evaluated"
        )
    return [(file, _read_result(file)) for file in files]


def _read_result(path: Path) -> EvaluationResult:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ResultError("no JSON object")
        return result_from_json(content)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ResultError, broken UTF-8 and broken JSON are ValueErrors
        raise ResultError(f"{path} is no evaluation result or is damaged: {error}") from error


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON line per item, sorted by "id", whole or not at all: equal rows give equal bytes, in
    whatever order they arrive.

    A row is any JSON object with "id" (text, unique). By convention: "media" (id), "prediction",
    "answer" and "measures", an object of numbers per item from which scores are averages or medians
    ({"accuracy": 1.0}, {"t2v/rank": 3.0}); `tools/report.py --compare` pairs these.
    """
    lines: dict[str, str] = {}
    for row in rows:
        name = row.get("id")
        if not isinstance(name, str):
            raise ValueError(f"a prediction needs a text as its id, got {name!r}")
        if name in lines:
            raise ValueError(
                f"two predictions for item {name!r}: every item must be evaluated exactly once"
            )
        lines[name] = json.dumps(dict(row), ensure_ascii=False, allow_nan=False, sort_keys=True)
    write_atomic(path, "".join(f"{lines[name]}\n" for name in sorted(lines)))


def read_predictions(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by id, as `write_predictions` wrote them. Raises ResultError that names file and
    line."""
    if not path.is_file():
        raise ResultError(
            f"{path} is no file; predictions are in {PREDICTIONS}/*.jsonl of a run's folder"
        )
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ResultError(f"{path}:{number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise ResultError(f"{path}:{number} has no id")
        if row["id"] in rows:
            raise ResultError(f"{path}:{number} repeats the id {row['id']!r}")
        rows[row["id"]] = row
    if not rows:
        raise ResultError(f"{path} holds no predictions")
    return rows
