"""Files of an evaluation: one JSON file of scores per benchmark and split, and one JSON line per
item with its prediction."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import AllInOneError
from allinone.common.json_text import parse_json

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
    """Lower end of the 95 % bootstrap interval over the items; None if there is none."""
    high: float | None = None
    """Upper end."""
    unit: str = "%"
    """"%" (0 to 100), "rank" (1 is best) or "" (a plain number)."""


@dataclass(frozen=True)
class MissingItem:
    """An item whose media could not be shown to the model. It counts as wrong."""

    item: str
    media: str
    reason: str


@dataclass(frozen=True)
class EvalOutput:
    """Output of one evaluation of one split."""

    scores: Mapping[str, Score]
    """By name, see evaluation/summaries.py; the headline first."""
    rows: Sequence[Mapping[str, Any]]
    """Predictions, see `write_predictions`."""
    missing: Sequence[MissingItem] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def chance_of(output: EvalOutput) -> dict[str, float]:
    """Score → its expectation for a model that guesses, where it is known."""
    details, names = output.details, output.scores.keys()
    stated = details.get("chance", {})
    found: dict[str, float] = {}
    if "classes" in details:
        found |= {f"top{k}": 100 * k / int(details["classes"]) for k in (1, 5, 10)}
    if "media" in details:
        from allinone.common.retrieval_metrics import chance_metrics  # imports torch

        # not video to text: a clip may have several captions
        known = chance_metrics(int(details["media"]))
        found |= {f"t2v/{name}": value for name, value in known.items()}
    # last: texts with several relevant media have other chances than one in all media
    found |= stated if isinstance(stated, Mapping) else {"accuracy": float(stated)}
    return {name: value for name, value in found.items() if name in names}


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one checkpoint on one split of one benchmark."""

    benchmark: str
    """Name of the entry script: msrvtt_retrieval, tgif_action, …"""
    split: str
    protocol: str
    """Name of the task: retrieval, open_ended_qa, multiple_choice, vcr or action_recognition."""
    zero_shot: bool
    """Whether no parameter was trained on this benchmark."""
    frames: int
    """Frames per view."""
    views: int
    image_size: int
    """Height and width of the model's input, pixels."""
    max_text_len: int
    """Tokens, [CLS] and [SEP] included."""
    model_size: str
    """tiny, small, base, …; "" if the checkpoint has none of the named sizes."""
    parameters: int
    """Backbone and heads that this evaluation used."""
    checkpoint: str
    checkpoint_sha256: str
    items: int
    """Scored test items, including missing ones, which count as wrong."""
    scores: Mapping[str, Score]
    """By name, the headline first. Names come from evaluation/summaries.py: t2v/R@1, accuracy,
    accuracy/what, q2ar, top1, …"""
    variant: str = ""
    """One of several protocols on the same files: 9k, 7k, 1k-b, subtitles, …"""
    pretraining: str = ""
    """Data sets of the pre-training joined by +, as in the paper (WebVid+HowTo); "" if unknown."""
    missing: Sequence[MissingItem] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further findings, as JSON: chance level, notes of the reader, cost of the re-ranking."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The complete configuration of the run, as JSON, including everything that decides
    comparability (captions, rerank, …)."""
    code: str = ""
    """Version of the code: commit, or package version."""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the evaluation ended, UTC, ISO 8601."""
    official_items: int | None = None
    """Items of the official split, see evaluation/official_counts.py; None if not known."""
    official: bool | None = None
    """Whether the items are those of the official split by name and number; None in files of
    earlier versions, which did not state it."""

    @property
    def unofficial_reason(self) -> str:
        """Why the scores are not those of the official test; empty if they are."""
        if self.official:
            return ""
        if self.official is None:
            return (
                "a results file of an earlier version, which does not state the official number of"
                " items; the same command evaluates again from its cache"
            )
        if self.official_items is None:
            return f"no official number of items is known for the split {self.split}"
        return f"the official split {self.split} has {self.official_items:,} items"

    @property
    def name(self) -> str:
        """<benchmark>[-<variant>]-<split>, the name of the file."""
        return "-".join(part for part in (self.benchmark, self.variant, self.split) if part)

    def same_measurement(self, other: EvaluationResult) -> bool:
        """Whether both measure the same; they may differ in scores, details and date."""
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
        """Nested plain data: the content of the file."""
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
    """The inverse of `as_json`; ResultError names a missing or malformed field."""
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
        # exact types: the file may come from anyone, and its numbers are formatted in reports
        result = msgspec.convert(values, EvaluationResult)
    except msgspec.ValidationError as error:
        raise ResultError(f"a field does not have the expected form ({error})") from error
    result = dataclasses.replace(result, missing=tuple(result.missing))
    numbers = [number for score in result.scores.values() for number in (score.low, score.high)]
    numbers += [score.value for score in result.scores.values()]
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ResultError("a score is not a finite number")
    sizes = [value for value in vars(result).values() if type(value) is int]
    if not all(0 <= size < 2**63 for size in sizes):
        raise ResultError("a size or count is negative or too large")
    if result.official and result.items != result.official_items:
        raise ResultError(
            f"it claims the official items, but has {result.items} of {result.official_items}"
        )
    return result


def _required(part: dataclasses.Field[Any]) -> bool:
    return part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING


def write_result(folder: Path, result: EvaluationResult) -> Path:
    """Write `folder`/results/<name>.json atomically; returns the path.

    Repeating an evaluation replaces its file. An evaluation with other settings (frames,
    checkpoint, …) first renames the existing file to <name>.1.json and so on, together with its
    predictions, so that no number is lost. Call this before `write_predictions`.

    Raises:
        ValueError: A score is not a finite number.
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
    """(file, result) of a results file, a folder of them, or a run's folder, sorted by name;
    ResultError if there is none."""
    if path.is_file():
        return [(path, _read_result(path))]
    if not path.is_dir():
        raise ResultError(f"{path} is neither a file nor a folder")
    folder = path / RESULTS if (path / RESULTS).is_dir() else path
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    if not files:
        raise ResultError(
            f"{path} contains no {RESULTS}/*.json; give the folder of a run that was evaluated"
        )
    return [(file, _read_result(file)) for file in files]


def _read_result(path: Path) -> EvaluationResult:
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ResultError("it does not hold a JSON object")
        return result_from_json(content)
    except ValueError as error:
        # ResultError, broken UTF-8 and broken JSON are ValueErrors
        raise ResultError(f"{path} is not an evaluation result or is damaged: {error}") from error


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON line per item, sorted by id, atomically. Equal rows give equal bytes in any
    order.

    Args:
        path: The file.
        rows: JSON objects with a unique text as "id". By convention also "media" (id),
            "prediction", "answer" and "measures", an object of numbers of which scores are averages
            or medians ({"accuracy": 1.0}, {"t2v/rank": 3.0}); `tools/report.py --compare` pairs
            these.

    Raises:
        ValueError: An id is missing or repeated.
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
    """Rows by id, as written by `write_predictions`; ResultError names file and line."""
    if not path.is_file():
        raise ResultError(
            f"{path} is not a file; predictions are in {PREDICTIONS}/*.jsonl of a run's folder"
        )
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ResultError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise ResultError(f"{path}:{number} has no id")
        if row["id"] in rows:
            raise ResultError(f"{path}:{number} repeats the id {row['id']!r}")
        rows[row["id"]] = row
    if not rows:
        raise ResultError(f"{path} holds no predictions")
    return rows


def rounded(value: float) -> float:
    """A score as written to predictions: six significant digits."""
    return float(f"{value:.6g}")
