#!/usr/bin/env python3
"""`make demo`: prepare the embedded clips, pre-train the nano model, evaluate it on held-out clips,
and write a report.

Every step runs the command that a real run uses. A second call resumes where the first one stopped,
or shows the results of a finished demo.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.atomic_io import write_atomic
from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.paths import ROOT

SPLITS = ("val", "val_unseen")
SPLITS_NOTE = (
    "val: name and skin tone occurred in training, but never together. val_unseen: the name never"
    " occurred in training."
)
CLIPS = ROOT / "data" / "demo"


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    out: Path = Path("runs/demo")
    """Folder of the demo; relative paths start at the root of the source tree."""
    fresh: bool = False
    """Delete the folder of an earlier demo and start over."""
    steps: int | None = None
    """Training steps (default: the recipe's)."""

    def __post_init__(self) -> None:
        check_steps(self.steps)


def check_steps(steps: int | None) -> None:
    """InputError for --steps below 1."""
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}")


class PhaseTimer:
    """Seconds per phase, kept in a file so that a resumed demo reports the time of all calls."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase, also if the block fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - start
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + elapsed, 1)
            write_atomic(self._path, json.dumps(self.seconds) + "\n")


def run_python(*arguments: str) -> None:
    """Run a command of the source tree.

    Args:
        *arguments: A script below ROOT and its options.

    Raises:
        SystemExit: The command failed and has printed why; with its exit code, or 128 + N after
            signal N.
    """
    # flushed, or the child's output would come first where stdout is a file
    print(f"\n$ {' '.join(('python', *arguments))}", flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
    if code:
        # subprocess reports signal N as -N, shells as 128 + N
        raise SystemExit(code if code > 0 else 128 - code)


def require_embedded_clips() -> None:
    """InputError where the package is installed without the clips of the source tree."""
    if not (CLIPS / "attributes.csv").is_file():
        raise InputError(
            "the demo needs the embedded clips (data/demo), which are only in the source tree, not"
            " in the installed package; clone the repository and run `make demo` there"
        )


def prepare_folder(out: Path, marker: str, *, fresh: bool) -> tuple[Path, Path]:
    """Create the folder of a demo, or open that of an earlier call.

    Args:
        out: As given on the command line; relative to ROOT.
        marker: Name of an empty file that identifies the demo's own folder.
        fresh: Delete an earlier demo in it.

    Returns:
        The folder's absolute path, and its path as seen from ROOT.

    Raises:
        InputError: The folder holds anything else.
    """
    folder = out if out.is_absolute() else ROOT / out
    if folder.exists() and any(folder.iterdir()) and not (folder / marker).exists():
        raise InputError(f"{folder} holds something that is not this demo; give another --out")
    # the marker proves that --fresh deletes a demo, and not what --out names by mistake
    if fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()
    return folder, folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def evaluate_and_report(out: Path, timer: PhaseTimer) -> None:
    """Evaluate the newest checkpoint of the run in `out`/train and write the report into `out`."""
    from allinone.common.command_line.config_file import config_from_file
    from allinone.data.config import DatasetSpec
    from allinone.engine import newest_weights
    from allinone.engine.checkpoint.layout import RUN
    from allinone.pretrain.config import PretrainConfig
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.reporting.run_report import evaluate_run, write_run_page

    train = DatasetSpec(out / "data", "train")
    config: PretrainConfig = config_from_file(out / "train" / RUN, PretrainConfig)
    with timer.measure("evaluate"):
        sets = {split: replace(train, split=split) for split in SPLITS}
        loaded = load_checkpoint(newest_weights(out / "train"), "cpu")
        evaluation = evaluate_run(loaded.model, loaded.weights, config, sets, train)
    seconds = {name: timer.seconds.get(name, 0.0) for name in ("prepare", "train", "evaluate")}
    history = out / "train" / "history.jsonl"
    write_run_page(out, evaluation, config, history, seconds, note=SPLITS_NOTE)


def print_results(results: Mapping[str, Any], out: Path) -> None:
    """The result table and the paths of the report in `out`."""
    from allinone.common.tables import plain_table
    from allinone.tools.reporting.pretrain_page import (
        FILES,
        RETRIEVAL_HEADER,
        accuracy_texts,
        duration_texts,
        retrieval_rows,
    )

    print(f"\n{plain_table([RETRIEVAL_HEADER, *retrieval_rows(results)], left_aligned=2)}")
    print("   ".join(accuracy_texts(results)))
    print(f"time: {duration_texts(results)}\n")
    for name in FILES:
        print(f"  {out / name}")
    print(f"  TensorBoard: tensorboard --logdir {out / 'train'}")


def run_demo(options: DemoOptions) -> None:
    """Prepare, train, evaluate and report; finished steps are not repeated."""
    require_embedded_clips()
    out, shown = prepare_folder(options.out, ".allinone-demo", fresh=options.fresh)
    finished = out / "results.json"
    if finished.exists():
        print(f"the demo in {shown} is done; `make demo ARGS=--fresh` starts over")
    else:
        timer = PhaseTimer(out / "seconds.json")
        data = shown / "data"
        with timer.measure("prepare"):
            run_python("tools/prepare.py", "data/demo", "--out", str(data))
        steps = [] if options.steps is None else ["--steps", str(options.steps)]
        command = ["pretrain/train.py", "demo", "--out", str(shown / "train")]
        with timer.measure("train"):
            run_python(*command, "--data", f"{data}:train", "--val", f"{data}:val", *steps)
        evaluate_and_report(out, timer)
    print_results(json.loads(finished.read_text()), shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(
        lambda: run_demo(parse(DemoOptions, words, prog="examples/demo.py", description=__doc__))
    )


if __name__ == "__main__":
    sys.exit(main())
