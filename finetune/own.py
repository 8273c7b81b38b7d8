#!/usr/bin/env python3
r"""Fine-tune on videos or images of your own: retrieval, captions, questions, choices or labels.

    python finetune/own.py --task qa --annotations my.csv --media DIR \
        --checkpoint runs/mine --out runs/my-qa
    allinone finetune own --task labels …
    allinone report runs/my-qa           # the result, and pages of right and wrong items

| --task | columns of the table |
| --- | --- |
| retrieval | path, caption |
| caption | path, caption; a clip may have several rows |
| qa | path, question, answer |
| choice | path, question, option_1, option_2, …, answer (an option's text or number, from 1) |
| labels | path, label |

Optional columns are split (train, val, test), start_s and end_s (seconds), and id. The table is
CSV, TSV, JSON lines or Parquet; paths are relative to --media. Without a column split, 10 % of the
media become val, which selects the weights, and 10 % test, which is scored at the end. Classes and
answers are those of train; they are saved with the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import run_command
from allinone.common.command_line.completion import is_completing
from allinone.common.errors import ConfigError
from allinone.common.options import CONTENT, option
from allinone.common.validation import SHARE, require
from allinone.finetune.annotations.own import AnswerIs, ReadOptions, read_splits, texts_of_items
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, QAItem, Split
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main as run_command_line
from allinone.finetune.config import REQUIRED, FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import (
    ActionOptions,
    CaptionOptions,
    ChoiceOptions,
    QAOptions,
    RetrievalOptions,
    TaskOptions,
)

NAME = "own"
TaskName = Literal["retrieval", "caption", "qa", "choice", "labels"]
_COUNTED_TEXTS = 20_000
"""Texts of a split whose tokens are counted."""


@dataclass(frozen=True)
class OwnRetrieval(RetrievalOptions):
    """Retrieval by captions of your own."""

    task: TaskName = "retrieval"
    """What is learned: retrieval, caption, qa, choice or labels. It decides about the other
    options."""


@dataclass(frozen=True)
class OwnCaption(CaptionOptions):
    """Captions of your own."""

    task: TaskName = "caption"
    """What is learned: retrieval, caption, qa, choice or labels. It decides about the other
    options."""


@dataclass(frozen=True)
class OwnQA(QAOptions):
    """Questions of your own."""

    task: TaskName = "qa"
    """What is learned: retrieval, caption, qa, choice or labels. It decides about the other
    options."""


@dataclass(frozen=True)
class OwnChoice(ChoiceOptions):
    """Multiple choice of your own."""

    task: TaskName = "choice"
    """What is learned: retrieval, caption, qa, choice or labels. It decides about the other
    options."""


@dataclass(frozen=True)
class OwnLabels(ActionOptions):
    """Labels of your own."""

    task: TaskName = "labels"
    """What is learned: retrieval, caption, qa, choice or labels. It decides about the other
    options."""


@dataclass(frozen=True)
class OwnConfig(FinetuneConfig):
    """Options of a run on annotations of your own."""

    annotations: Path = field(default=REQUIRED, metadata=CONTENT)
    """Your table: CSV, TSV, JSON lines or Parquet."""
    val_share: float = 0.1
    """Share of the media of train that becomes val, if no row has that split. A medium's place
    depends on its path alone, so adding rows moves no other."""
    test_share: float = 0.1
    """The same for test. Weights are selected on val, so its scores would flatter the model."""
    by_segment: bool = False
    """Let parts (start_s, end_s) of one file be in different splits, for example with a single long
    video. Parts of one video look alike, so scores are too high for new videos."""
    answer_is: AnswerIs = "either"
    """Column answer of --task choice: the text of an option, its number from 1, or either; a row
    where both are possible and disagree is left out."""
    max_bad_rows: float = option(0.1, resume="may_change")
    """Share of unusable rows above which the table is refused, if it has at least 20 rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, SHARE, ("val_share", "test_share", "max_bad_rows"))


@dataclass(frozen=True)
class OwnBenchmark(Benchmark):
    """A task on a table of a user's own."""

    def read(self, config: FinetuneConfig, split: str, variant: str) -> Split:
        """Read one split; arguments and errors as in `Benchmark.read`."""
        assert isinstance(config, OwnConfig)
        _, names = self.splits(config)
        found = read_splits(
            config.annotations,
            ReadOptions(
                variant,
                config.media.absolute(),
                config.val_share,
                config.test_share,
                tuple(name for name in ("val", "test") if name in (names.val, names.test)),
                config.by_segment,
                config.answer_is,
                config.max_bad_rows,
            ),
        )
        if split not in found:
            sizes = ", ".join(f"{name} ({len(one.items):,} items)" for name, one in found.items())
            raise AnnotationError(
                f"{config.annotations} has no rows of split {split!r}; splits: {sizes}."
                " --train-split, --val-split and --eval-split choose among them"
            )
        _refuse_one_answer(found[split], split == names.train)
        return _with_cut_texts(found[split], config.max_text_len)


def _refuse_one_answer(split: Split, trains: bool) -> None:
    answers = set(split.classes)
    if isinstance(split.items[0], QAItem):
        answers = {
            text for item in split.items if isinstance(item, QAItem) for text in item.answers
        }
    elif not isinstance(split.items[0], LabelItem):
        return
    if trains and len(answers) == 1:
        raise AnnotationError(
            f"{', '.join(split.files)}: all rows of split {split.name!r} have the same answer,"
            f" {answers.pop()!r}; there is nothing to learn"
        )


def _with_cut_texts(split: Split, limit: int | None) -> Split:
    """The split with a note on texts that are longer than the model's limit."""
    from allinone.data.text import Tokenizer  # imports transformers

    tokenizer = Tokenizer()
    texts = islice(texts_of_items(iter(split.items)), _COUNTED_TEXTS)
    lengths = sorted(len(tokenizer.ids(text)) + 2 for text in texts)
    cut = sum(length > (limit or 0) for length in lengths)
    if not limit or not cut:
        return split
    longest = lengths[-1]
    note = (
        f"{cut:,} of {len(lengths):,} texts have more than --max-text-len {limit} tokens and are"
        f" cut; the longest has {longest:,}"
    )
    return replace(split, notes=(*split.notes, note))


def _not_called(*arguments: object) -> Split:
    raise NotImplementedError("OwnBenchmark.read reads the table")


def _benchmark(task: TaskName, module: str, options: TaskOptions) -> OwnBenchmark:
    return OwnBenchmark(
        name=NAME,
        description=__doc__ or "",
        task=module,
        load=_not_called,
        variants={task: Splits("train", "val", "test")},
        config=OwnConfig(
            max_text_len=40,
            epochs=20,
            head_lr_mult=10.0,
            task=options,
            train=TuneConfig(global_batch=32, micro_batch=8, lr=1e-4, warmup=0.1),
        ),
        archives="your own files; paths of the table are relative to --media",
    )


BENCHMARKS: dict[str, OwnBenchmark] = {
    "retrieval": _benchmark("retrieval", "retrieval", OwnRetrieval()),
    "caption": _benchmark("caption", "captioning", OwnCaption()),
    "qa": _benchmark("qa", "open_ended_qa", OwnQA()),
    "choice": _benchmark("choice", "multiple_choice", OwnChoice()),
    "labels": _benchmark(
        "labels", "action_recognition", OwnLabels(probe="full", probe_dropout=False)
    ),
}
"""--task → what runs."""


def chosen_task(argv: Sequence[str]) -> str:
    """The value of --task, or that of the file that --config names; empty if there is none."""
    values = {}
    for flag in ("--task", "--config"):
        for word, following in zip(argv, [*argv, ""][1:], strict=True):
            if word == flag or word.startswith(f"{flag}="):
                values[flag] = word.partition("=")[2] or following
    if "--task" in values or "--config" not in values:
        return values.get("--task", "")
    import yaml

    try:
        content = yaml.safe_load(Path(values["--config"]).read_text(encoding="utf-8"))
        content = content.get("run") or content.get("settings") or content
        return str(content["task"]["task"])
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return ""  # without a task, `main` says what is missing


def main(argv: Sequence[str] | None = None, prog: str = "finetune/own.py") -> int:
    """Command line entry; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    task = chosen_task(arguments)
    asks = is_completing() or not {"-h", "--help", "--version"}.isdisjoint(arguments)
    if task in BENCHMARKS or asks:
        return run_command_line(BENCHMARKS.get(task, BENCHMARKS["qa"]), arguments, prog)

    def refuse() -> int:
        given = f"--task {task} is none of them" if task else "--task is missing"
        raise ConfigError(f"{given}: give --task {', '.join(BENCHMARKS)}")

    return run_command(refuse)


if __name__ == "__main__":
    sys.exit(main())
