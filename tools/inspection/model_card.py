"""The model card of an exported folder, README.md, made from the run that trained the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allinone.common.formatting import printable
from allinone.common.html import markdown_text
from allinone.engine.monitoring.history import HISTORY, read_history
from allinone.finetune.evaluation.results import EvaluationResult, ResultError, Score, read_results
from allinone.finetune.task_model.source import SourceCheckpoint, size_name
from allinone.model import AllInOneConfig
from allinone.version import __version__

_PIPELINES = {
    "AllInOneForVideoClassification": "video-classification",
    "AllInOneForQuestionAnswering": "visual-question-answering",
}
_RECIPE = (
    ("recipe", "steps", "train.steps"),
    ("recipe", "global batch", "train.global_batch"),
    ("recipe", "learning rate", "train.lr"),
    ("recipe", "DeepSpeed configuration", "train.ds_config"),
    ("recipe", "seed", "train.seed"),
    ("data", "annotations", "annotations"),
    ("data", "media", "media"),
    ("data", "pre-trained weights", "checkpoint"),
    ("data", "initial weights", "model.init_from"),
)
"""(section, title, option of run.json)."""
_SHOWN_LABELS = 10


def model_card(
    name: str, config: AllInOneConfig, source: SourceCheckpoint, run: Path | None
) -> str:
    """Markdown with transformers' metadata.

    Args:
        name: Title.
        config: Of the exported folder.
        source: The weights, and the options of the run that trained them.
        run: The run's folder, with its results; None if it is not known.
    """
    model = str((config.architectures or [""])[0])
    if not re.fullmatch(r"[A-Za-z]\w*", model, re.ASCII):
        model = "AllInOneForPreTraining"
    results = _results(run)
    parts = [
        _metadata(model),
        f"# {_plain(name)}",
        f"`{model}`, {_size(config)}: one transformer over raw video frames and words (Wang et al.,"
        " [All in One](https://arxiv.org/abs/2203.07303), CVPR 2023). Written by allinone"
        f" {__version__} from {_plain(_origin(source, run))}.",
        _usage(name, model, config),
        "## Training",
        _training(source),
        "## Scores",
        _scores(results, run),
        "## Limits",
        _limits(config, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(source: SourceCheckpoint, run: Path | None) -> str:
    """What the weights are, without the path: a card is published, and folders name people."""
    if run is not None:
        return source.what.replace(str(run), run.name)
    return Path(source.what or str(source.path)).name


def _metadata(model: str) -> str:
    lines = ["---", "library_name: transformers", "tags:", "- all-in-one", "- video-text"]
    if model in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[model]}")
    return "\n".join([*lines, "---"])


def _size(config: AllInOneConfig) -> str:
    size = size_name(config)
    shape = f"{config.num_hidden_layers} blocks of width {config.hidden_size}"
    return f"size {size} ({shape})" if size else shape


def _usage(name: str, model: str, config: AllInOneConfig) -> str:
    auto = {
        "AllInOneForCaptioning": "AutoModelForImageTextToText",
        "AllInOneForVideoClassification": "AutoModelForVideoClassification",
        "AllInOneForQuestionAnswering": "AutoModelForVisualQuestionAnswering",
        "AllInOneForMultipleChoice": "AutoModelForMultipleChoice",
        "AllInOneForRetrieval": "AutoModelForZeroShotImageClassification",
    }.get(model, "AutoModelForPreTraining")
    text = printable(json.dumps(config.task.get("prompt", "a text"), ensure_ascii=False))
    call = "model(**inputs)"
    if model == "AllInOneForMultipleChoice":
        text = '["one text", "another"]'
        call = 'model(inputs["pixels"][:1], inputs["text_ids"][None], inputs["text_mask"][None])'
    inputs = f'processor(videos="clip.mp4", text={text}, return_tensors="pt")'
    if model == "AllInOneForCaptioning":
        inputs = 'processor(videos="clip.mp4", return_tensors="pt")'
        call = (
            "processor.batch_decode(\n    model.generate(**inputs, num_beams=4),"
            " skip_special_tokens=True\n)"
        )
    return f"""```python
from transformers import AutoProcessor, {auto}

model = {auto}.from_pretrained({name!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({name!r}, trust_remote_code=True)
inputs = {inputs}
output = {call}
```

`trust_remote_code` runs the Python files of this folder; with the package `allinone` installed and
imported it is not needed. The processor needs Pillow, and PyAV (`pip install av`) to read files."""


def _training(source: SourceCheckpoint) -> str:
    rows = []
    for _, title, option in _RECIPE:
        value: Any = source.run
        for key in option.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value not in (None, ""):
            # not the path, see _origin
            rows.append((title, Path(str(value)).name if "/" in str(value) else value))
    data = source.run.get("data") or ()
    if data:
        rows.insert(0, ("data sets", ", ".join(Path(str(text)).name for text in data)))
    known = {**source.pretrained_on, **{k: source.task.get(k) for k in ("benchmark", "variant")}}
    rows = [*((k, v) for k, v in known.items() if v), *rows]
    if not rows:
        return "Nothing is recorded about the training of these weights."
    lines = ["| | |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {_plain(k)} | {_plain(v)} |" for k, v in rows)])


def _results(run: Path | None) -> list[EvaluationResult]:
    try:
        return [result for _, result in read_results(run)] if run else []
    except ResultError:
        return []


def _scores(results: list[EvaluationResult], run: Path | None) -> str:
    if results:
        lines = ["| split | score | value | 95 % interval |", "| --- | --- | --- | --- |"]
        for result in results:
            items = f"{result.name}, {result.items:,} items"
            lines += [
                f"| {_plain(items)} | {_plain(name)} | {score.value:.2f} {_plain(score.unit)} |"
                f" {_interval(score)} |"
                for name, score in result.scores.items()
            ]
        note = "; ".join(sorted({r.unofficial_reason for r in results if r.unofficial_reason}))
        lines += ["", "Intervals are bootstrap intervals over the items."]
        return "\n".join(lines) + (f" Not the official test: {_plain(note)}." if note else "")
    last = _last_evaluation(run)
    if last is None:
        return "No evaluation is recorded."
    lines = [
        f"The evaluation of step {_plain(last.get('step'))} during training; no intervals were"
        " computed.",
        "",
    ]
    lines += ["| score | value |", "| --- | --- |"]
    lines += [
        f"| {_plain(name)} | {value:.4g} |"
        for name, value in last["evaluation"].items()
        if isinstance(value, (int, float))
    ]
    return "\n".join(lines)


def _last_evaluation(run: Path | None) -> dict[str, Any] | None:
    try:
        rows = read_history(run / HISTORY) if run else []
    except OSError:
        return None
    return next((row for row in reversed(rows) if isinstance(row.get("evaluation"), dict)), None)


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return "none"
    return f"{score.low:.2f} to {score.high:.2f}"


def _limits(config: AllInOneConfig, results: list[EvaluationResult]) -> str:
    lines = [
        f"- It sees {config.num_frames} frames of {config.image_size} x {config.image_size} pixels"
        " of a clip, and no sound; what happens between them is lost.",
        f"- Texts are lower-cased English and cut at {config.max_text_len} tokens.",
        "- It repeats what its training data contains, biases included. Scores say nothing about"
        " other data.",
    ]
    if config.task.get("labels"):
        labels = config.task["labels"]
        shown = ", ".join(map(_plain, labels[:_SHOWN_LABELS]))
        more = " …" if len(labels) > _SHOWN_LABELS else ""
        lines.append(
            f"- It answers with one of {len(labels):,} labels only, also where none is right:"
            f" {shown}{more}"
        )
    if missing := sum(len(result.missing) for result in results):
        lines.append(f"- {missing:,} test items could not be read, and count as wrong.")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A value inside Markdown: one line, without HTML and without cells of a table."""
    return markdown_text(str(value))
