#!/usr/bin/env python3
"""`make demo-finetune`: fine-tune the demo's checkpoint on one benchmark of every task and compare
with chance.

The data sets are made from the embedded clips in the benchmarks' official formats
(examples/demo_tasks.py). Every row of the table comes from the script that a real run uses. A
second call resumes where the first one stopped, or shows the results of a finished demo. If there
is no demo checkpoint yet, `make demo` runs first.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, get_args

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.atomic_io import write_atomic
from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.formatting import duration
from allinone.common.hub import is_hub_id
from allinone.common.paths import ROOT
from allinone.common.tables import markdown_table, plain_table
from allinone.examples import demo_tasks
from allinone.examples.demo import (
    CLIPS,
    PhaseTimer,
    check_steps,
    prepare_folder,
    require_embedded_clips,
    run_python,
)
from allinone.finetune.annotations import kinetics, msrvtt
from allinone.finetune.annotations.schema import QAItem, RetrievalItem
from allinone.finetune.evaluation.results import RESULTS, EvaluationResult, read_results
from allinone.tools.report import write_report

Script = Literal[
    "msrvtt_retrieval", "msrvtt_qa", "msrvtt_choice", "vcr", "k400_linear", "msrvtt_caption"
]
CAPTIONS = "msrvtt_caption"
COMMON = (
    *("--workers", "1", "--dali-threads", "1", "--ds-config", "zero1_fp32"),
    *("--log-every", "25", "--val-items", "300", "--crop-scale", "0.8", "1.0"),
)
"""Options for two CPU cores. Crops are those of the demo's pre-training, because the model has not
seen smaller ones."""
TEXT_LENGTH = {"--max-text-len": "16"}
"""The checkpoint's own text length, which is enough for the demo's captions and questions."""
CHECKPOINT = Path("runs/demo/train")
HEADER = ["benchmark", "score", "items", "chance %", "zero-shot %", "fine-tuned %", "95 % interval"]


@dataclass(frozen=True)
class DemoFinetuneOptions:
    """Options of the fine-tuning demo."""

    out: Path = Path("runs/demo-finetune")
    """Folder of the demo; relative paths start at the root of the source tree."""
    checkpoint: Path | None = None
    """Checkpoint to fine-tune (default: that of `make demo`)."""
    fresh: bool = False
    """Delete the folder of an earlier call and start over."""
    only: Annotated[tuple[Script, ...], tyro.conf.arg(metavar="BENCHMARK ...")] = ()
    """Some of the benchmarks: msrvtt_retrieval, msrvtt_qa, msrvtt_choice, vcr, k400_linear,
    msrvtt_caption (default: all; captions only if the package that scores them is installed)."""
    steps: int | None = None
    """Training steps of every benchmark (default: each benchmark's own number)."""

    def __post_init__(self) -> None:
        check_steps(self.steps)


@dataclass(frozen=True)
class DemoTask:
    """One benchmark of the demo."""

    script: Script
    data: str
    """Data set of examples/demo_tasks.py."""
    options: dict[str, str]
    """Options of the script."""
    chance: Callable[[Path], dict[str, float]]
    """Annotations folder → score name → percent without looking at the video."""
    zero_shot: bool = False
    """Whether the pre-trained checkpoint can be evaluated as it is."""


def retrieval_chance(annotations: Path) -> dict[str, float]:
    """R@K of a random order."""
    size = len(msrvtt.load(annotations, "test", task="retrieval", protocol="7k").items)
    return {f"t2v/R@{k}": 100 * k / size for k in (1, 5, 10)}


def text_only_accuracy(annotations: Path) -> dict[str, float]:
    """Accuracy of answering each question with its most frequent answer in training."""
    train, test = (msrvtt.load(annotations, split, task="qa") for split in ("train", "test"))
    answers: dict[str, Counter[str]] = {}
    for item in train.items:
        if isinstance(item, QAItem):
            answers.setdefault(item.question, Counter()).update(item.answers)
    hits = [
        item.question in answers and answers[item.question].most_common(1)[0][0] in item.answers
        for item in test.items
        if isinstance(item, QAItem)
    ]
    return {"accuracy": 100 * sum(hits) / len(hits)}


def class_chance(annotations: Path) -> dict[str, float]:
    """Top-1 and top-5 accuracy of a random class."""
    classes = len(kinetics.load(annotations, "val").classes)
    return {f"top{k}": 100 * k / classes for k in (1, 5)}


def common_caption_scores(annotations: Path) -> dict[str, float]:
    """Scores of one caption for every clip: that of training whose words are the most frequent.

    Hardly any caption of the demo occurs twice.
    """
    from allinone.finetune.evaluation.caption_metrics import caption_scores  # imports torch

    train, test = (
        msrvtt.load(annotations, split, task="retrieval", protocol="full")
        for split in ("train", "test")
    )
    items = [item for item in test.items if isinstance(item, RetrievalItem)]
    captions = [
        text for item in train.items if isinstance(item, RetrievalItem) for text in item.captions
    ]
    counts = Counter(word for text in captions for word in set(text.split()))

    def frequency(text: str) -> float:
        words = text.split()
        return sum(counts[word] for word in words) / len(words)

    found = caption_scores(
        [max(captions, key=frequency)] * len(items),
        [item.captions for item in items],
        [item.id for item in items],
    )
    return {name: score.value for name, score in found.scores.items()}


def _schedule(steps: int, batch: int, lr: str) -> dict[str, str]:
    """Training options: two evaluations, no gradient accumulation."""
    return {
        "--steps": str(steps),
        "--eval-every": str(steps // 2),
        "--global-batch": str(batch),
        "--micro-batch": str(batch),
        "--lr": lr,
    }


TASKS = (
    DemoTask(
        "msrvtt_retrieval",
        "msrvtt",
        {"--variant": "7k", **TEXT_LENGTH, **_schedule(70, 64, "5e-4")},
        retrieval_chance,
        zero_shot=True,
    ),
    DemoTask(
        "msrvtt_qa", "msrvtt", {**TEXT_LENGTH, **_schedule(120, 32, "5e-4")}, text_only_accuracy
    ),
    DemoTask(
        "msrvtt_choice",
        "msrvtt",
        # log-odds and, below, no dropout: the figures in docs/demo.md were made with them
        {"--zero-shot-score": "log-odds", **TEXT_LENGTH, **_schedule(20, 16, "5e-5")},
        lambda _: {"accuracy": 20.0},  # five options
        zero_shot=True,
    ),
    DemoTask(
        "vcr",
        "vcr",
        {"--image-size": "128", "--max-text-len": "32", **_schedule(40, 16, "5e-5")},
        lambda _: {"q2a": 25.0, "qa2r": 25.0, "q2ar": 6.25},  # four options each; both: 1/16
        zero_shot=True,
    ),
    DemoTask(
        "k400_linear",
        "kinetics",
        {"--probe-dropout": "False", **TEXT_LENGTH, **_schedule(150, 64, "5e-3")},
        class_chance,
    ),
    DemoTask(
        "msrvtt_caption",
        "msrvtt",
        {**TEXT_LENGTH, **_schedule(200, 32, "5e-4")},
        common_caption_scores,
        zero_shot=True,
    ),
)
assert tuple(task.script for task in TASKS) == get_args(Script)


@dataclass(frozen=True)
class Demo:
    """What all benchmarks of one call share."""

    out: Path
    """The demo's folder as seen from ROOT."""
    checkpoint: Path
    timer: PhaseTimer
    overrides: dict[str, str]
    """Options that replace those of every task."""

    def evaluate(self, task: DemoTask, *, zero_shot: bool) -> EvaluationResult:
        """The result of a task; runs its script unless an earlier call has.

        Args:
            task: What to run.
            zero_shot: Evaluate the checkpoint without training.
        """
        folder = self.out / (f"{task.script}-zero-shot" if zero_shot else task.script)
        if not (ROOT / folder / RESULTS).is_dir():
            data = self.out / "data" / task.data
            options = {
                "--annotations": str(data / "annotations"),
                "--media": str(data / "media"),
                "--checkpoint": str(self.checkpoint),
                "--out": str(folder),
                "--cache": str(self.out / "cache"),
                **task.options,
                **self.overrides,
            }
            words = [word for option in options.items() for word in option]
            if zero_shot:
                words.append("--eval-only")
            with self.timer.measure(folder.name):
                run_python(f"finetune/{task.script}.py", *words, *COMMON)
        return read_results(ROOT / folder)[0][1]


def rows_of(
    task: DemoTask, annotations: Path, trained: EvaluationResult, before: EvaluationResult | None
) -> list[list[str]]:
    """One table row per score, in the columns of HEADER.

    Args:
        task: The benchmark.
        annotations: Its annotations, from which chance is computed.
        trained: The result after fine-tuning.
        before: The result of the checkpoint as it is, where the task has one.
    """
    rows = []
    for name, chance in task.chance(annotations).items():
        score = trained.scores[name]
        known = score.low is not None and score.high is not None
        rows.append(
            [
                task.script,
                name,
                f"{trained.items:,}",
                f"{chance:.1f}",
                f"{before.scores[name].value:.1f}" if before else "–",
                f"{score.value:.1f}",
                f"[{score.low:.1f}, {score.high:.1f}]" if known else "",
            ]
        )
    return rows


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint to start from; runs `make demo` first if it is needed."""
    if given is not None:
        if is_hub_id(given):
            return given
        if not given.exists():
            raise InputError(f"--checkpoint {given} does not exist")
        return given.absolute()  # the scripts run in ROOT
    if not (ROOT / CHECKPOINT.parent / "results.json").is_file():
        print("there is no demo checkpoint yet: running `make demo` first", flush=True)
        run_python("examples/demo.py")
    return CHECKPOINT


def _caption_page(run: Path) -> Path:
    """Write the page of a run's captions; the run's options hold paths that begin at ROOT."""
    from allinone.tools.reporting.items_page import write_items_page  # imports torch

    with chdir(ROOT):
        return write_items_page(*read_results(run)[0])


def run_demo(options: DemoFinetuneOptions) -> None:
    """Make the data sets, run the benchmarks, print the table; finished steps are not repeated."""
    require_embedded_clips()
    if options.checkpoint is not None:  # before --fresh deletes anything
        find_checkpoint(options.checkpoint)
    out, shown = prepare_folder(options.out, ".allinone-demo-finetune", fresh=options.fresh)
    checkpoint = find_checkpoint(options.checkpoint)
    timer = PhaseTimer(out / "seconds.json")
    tasks = [task for task in TASKS if not options.only or task.script in options.only]
    if not options.only and find_spec("pycocoevalcap") is None:
        tasks = [task for task in tasks if task.script != CAPTIONS]
        print(f"{CAPTIONS} is left out: its scores need pip install pycocoevalcap")
    names = list(dict.fromkeys(task.data for task in tasks))
    # a second call finds the data: its time is not added to that of writing them
    with nullcontext() if "data" in timer.seconds else timer.measure("data"):
        demo_tasks.write(CLIPS, out / "data", names)
    # --steps replaces each benchmark's own number; the interval of evaluations stays
    overrides = {} if options.steps is None else {"--steps": str(options.steps)}
    demo = Demo(shown, checkpoint, timer, overrides)
    rows, pages = [HEADER], list[Path]()
    for task in tasks:
        before = demo.evaluate(task, zero_shot=True) if task.zero_shot else None
        trained = demo.evaluate(task, zero_shot=False)
        rows += rows_of(task, out / "data" / task.data / "annotations", trained, before)
        if task.script == CAPTIONS:
            pages.append(_caption_page(shown / CAPTIONS))
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in timer.seconds.items())
    total = f"time: {duration(sum(timer.seconds.values()))} ({times})"
    write_atomic(out / "table.md", f"{markdown_table(rows, left_aligned=2)}\n\n{total}\n")
    print(f"\n{plain_table(rows, left_aligned=2)}\n{total}\n")
    print(
        "chance of msrvtt_qa and msrvtt_caption: the most frequent training answer to each"
        " question, and the training caption of the most frequent words, without the video"
    )
    evaluated = [str(path) for path in sorted(out.iterdir()) if (path / RESULTS).is_dir()]
    write_report(evaluated, out / "report")
    for page in pages:
        print(f"  {page}: captions of held-out clips")
    print(f"  {shown / 'table.md'}\n  TensorBoard: tensorboard --logdir {shown}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words, prog = sys.argv[1:] if argv is None else argv, "examples/demo_finetune.py"
    return run_command(
        lambda: run_demo(parse(DemoFinetuneOptions, words, prog=prog, description=__doc__))
    )


if __name__ == "__main__":
    sys.exit(main())
