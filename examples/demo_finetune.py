#!/usr/bin/env python3
"""`make demo-finetune`: take the demo's checkpoint through one benchmark of every protocol and
compare with chance.

The data are made from the embedded clips in the benchmarks' official formats
(examples/demo_tasks.py); every row of the table comes from the script that a real run uses. A
second call resumes where the first one stopped, or says that it is done; --fresh starts over.
Without a demo checkpoint, the program of `make demo` is run first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.atomic_io import write_atomic
from allinone.common.command import at_least_one
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.common.formatting import duration
from allinone.examples import demo_tasks
from allinone.examples.demo import Clock, _phase, _run
from allinone.finetune.annotations import kinetics, msrvtt
from allinone.finetune.annotations.schema import QAItem
from allinone.finetune.evaluation.results import RESULTS, EvaluationResult, read_results
from allinone.tools.report import main as report

COMMON = (
    "--workers",
    "1",
    "--dali-threads",
    "1",
    "--ds-config",
    "zero1_fp32",
    "--log-every",
    "25",
    "--val-items",
    "300",
    "--patience",
    "0",
    "--crop-scale",
    "0.8",
    "1.0",
)
"""For two CPU cores; crops as in the demo's pre-training: its model has not seen smaller ones."""
DEMO = Path("runs/demo/train")


@dataclass(frozen=True)
class DemoTask:
    """One benchmark of the demo."""

    script: str
    data: str
    """Folder of examples/demo_tasks.py."""
    options: tuple[str, ...]
    chance: Callable[[Path], dict[str, float]]
    """Annotations → score → what guessing gives, %."""
    zero_shot: bool = False
    """Whether the checkpoint has a meaning before training."""


def _retrieval_chance(annotations: Path) -> dict[str, float]:
    size = len(msrvtt.load(annotations, "test", task="retrieval", protocol="7k").items)
    return {f"t2v/R@{k}": 100 * k / size for k in (1, 5, 10)}


def _blind(annotations: Path) -> dict[str, float]:
    """The best that a question can be answered without the video: by the most frequent training
    answer to the same question."""
    train, test = (msrvtt.load(annotations, split, task="qa") for split in ("train", "test"))
    said: dict[str, Counter[str]] = {}
    for item in train.items:
        if isinstance(item, QAItem):
            said.setdefault(item.question, Counter()).update(item.answers)
    hits = [
        item.question in said and said[item.question].most_common(1)[0][0] in item.answers
        for item in test.items
        if isinstance(item, QAItem)
    ]
    return {"accuracy": 100 * sum(hits) / len(hits)}


def _class_chance(annotations: Path) -> dict[str, float]:
    classes = len(kinetics.load(annotations, "val").classes)
    return {f"top{k}": 100 * k / classes for k in (1, 5)}


SHORT = ("--max-text-len", "16")
"""The checkpoint's own text length, which holds the demo's captions and questions."""
TASKS = (
    DemoTask(
        "msrvtt_retrieval",
        "msrvtt",
        (
            "--variant",
            "7k",
            *SHORT,
            "--steps",
            "70",
            "--eval-every",
            "35",
            "--global-batch",
            "64",
            "--micro-batch",
            "64",
            "--lr",
            "5e-4",
        ),
        _retrieval_chance,
        zero_shot=True,
    ),
    DemoTask(
        "msrvtt_qa",
        "msrvtt",
        (
            *SHORT,
            "--steps",
            "120",
            "--eval-every",
            "60",
            "--global-batch",
            "32",
            "--micro-batch",
            "32",
            "--lr",
            "5e-4",
        ),
        _blind,
    ),
    DemoTask(
        "msrvtt_choice",
        "msrvtt",
        (
            *SHORT,
            "--steps",
            "20",
            "--eval-every",
            "10",
            "--global-batch",
            "16",
            "--micro-batch",
            "16",
            "--lr",
            "5e-5",
        ),
        lambda _: {"accuracy": 20.0},
        zero_shot=True,
    ),
    DemoTask(
        "vcr",
        "vcr",
        (
            "--image-size",
            "128",
            "--max-text-len",
            "32",
            "--steps",
            "40",
            "--eval-every",
            "20",
            "--global-batch",
            "16",
            "--micro-batch",
            "16",
            "--lr",
            "5e-5",
        ),
        lambda _: {"q2a": 25.0, "qa2r": 25.0, "q2ar": 6.25},
        zero_shot=True,
    ),
    DemoTask(
        "k400_linear",
        "kinetics",
        (
            *SHORT,
            "--steps",
            "150",
            "--eval-every",
            "75",
            "--global-batch",
            "64",
            "--micro-batch",
            "64",
            "--lr",
            "5e-3",
        ),
        _class_chance,
    ),
)


def run_task(
    task: DemoTask,
    checkpoint: Path,
    out: Path,
    clock: Clock,
    more: Sequence[str] = (),
    *,
    zero_shot: bool,
) -> EvaluationResult:
    """The result of a task, by its script unless it is there already. `more` options come last and
    win."""
    folder = out / (f"{task.script}-zero-shot" if zero_shot else task.script)
    if not (folder / RESULTS).is_dir():
        data = out / "data" / task.data
        command = [
            f"finetune/{task.script}.py",
            "--annotations",
            str(data / "annotations"),
            "--media",
            str(data / "media"),
        ]
        command += [
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(folder),
            "--cache",
            str(out / "cache"),
            *COMMON,
        ]
        command += [*_with(task.options, more)]
        _phase(clock, folder.name, [*command, *(["--eval-only"] if zero_shot else [])])
    return read_results(folder)[0][1]


def _with(options: Sequence[str], more: Sequence[str]) -> list[str]:
    """Options by name, those of `more` in place of the same ones."""
    merged = dict(zip(options[::2], options[1::2], strict=True)) | dict(
        zip(more[::2], more[1::2], strict=True)
    )
    return [text for option in merged.items() for text in option]


def rows_of(
    task: DemoTask, annotations: Path, trained: EvaluationResult, before: EvaluationResult | None
) -> list[list[str]]:
    """Per score: what guessing gives, what the checkpoint gives before any training, and what
    fine-tuning gives with its 95 % interval."""
    rows = []
    for name, chance in task.chance(annotations).items():
        score = trained.scores[name]
        interval = (
            f"[{score.low:.1f}, {score.high:.1f}]"
            if score.low is not None and score.high is not None
            else ""
        )
        untrained = f"{before.scores[name].value:.1f}" if before else "–"
        rows.append(
            [
                task.script,
                name,
                f"{trained.items:,}",
                f"{chance:.1f}",
                untrained,
                f"{score.value:.1f}",
                interval,
            ]
        )
    return rows


HEADER = ["benchmark", "score", "items", "chance %", "zero-shot %", "fine-tuned %", "95 % interval"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column > 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [rows[0], ["---"] * 2 + ["---:"] * (len(rows[0]) - 2), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint to start from; without one of the demo, `make demo` is run first."""
    if given is not None:
        if not given.exists():
            raise InputError(f"--checkpoint {given} is not there")
        return given
    if not (ROOT / DEMO.parent / "results.json").is_file():
        print("there is no demo checkpoint yet: `make demo` comes first", flush=True)
        _run([sys.executable, "examples/demo.py"])
    return DEMO


def demo(out: Path, checkpoint: Path, names: Sequence[str], more: Sequence[str] = ()) -> None:
    """Data, runs, table; what is there already stays."""
    clock = Clock(out / "seconds.json")
    tasks = [task for task in TASKS if not names or task.script in names]
    start = time.monotonic()
    demo_tasks.write(
        ROOT / "data" / "demo", out / "data", list(dict.fromkeys(task.data for task in tasks))
    )
    if "data" not in clock.seconds:
        clock.add("data", start)
    rows = [HEADER]
    for task in tasks:
        before = (
            run_task(task, checkpoint, out, clock, more, zero_shot=True) if task.zero_shot else None
        )
        trained = run_task(task, checkpoint, out, clock, more, zero_shot=False)
        rows += rows_of(task, out / "data" / task.data / "annotations", trained, before)
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in clock.seconds.items())
    total = f"time: {duration(sum(clock.seconds.values()))} ({times})"
    write_atomic(out / "table.md", f"{markdown(rows)}\n{total}\n")
    print(f"\n{table(rows)}\n{total}\n")
    print(
        "chance of msrvtt_qa: the most frequent training answer to the same question, without"
        " looking at the video"
    )
    report(
        [str(out / path.name) for path in sorted(out.iterdir()) if (path / RESULTS).is_dir()]
        + ["--out", str(out / "report")]
    )
    print(f"  {out / 'table.md'}\n  TensorBoard: tensorboard --logdir {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo-finetune"),
        help="folder of the demo (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help=f"what to fine-tune (default: {DEMO}, of `make demo`)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the folder of an earlier call and start over"
    )
    names = [task.script for task in TASKS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=[], help="some of the benchmarks"
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        help="training steps of every benchmark (default: each its own)",
    )
    args = parser.parse_args(argv)
    more = [] if args.steps is None else ["--steps", str(args.steps)]
    out = args.out if args.out.is_absolute() else ROOT / args.out
    marker = out / ".allinone-demo-finetune"

    def tool() -> None:
        if out.exists() and any(out.iterdir()) and not marker.exists():
            raise InputError(f"{out} holds something that is not this demo; give another --out")
        if args.fresh and out.exists():
            shutil.rmtree(out)
        checkpoint = find_checkpoint(args.checkpoint)
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
        demo(
            out.relative_to(ROOT) if out.is_relative_to(ROOT) else out, checkpoint, args.only, more
        )

    return run_command(tool)


if __name__ == "__main__":
    sys.exit(main())
