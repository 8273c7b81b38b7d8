#!/usr/bin/env python3
"""`make demo`: prepare the embedded clips → pre-train nano → evaluate on held-out clips → pictures
and a page.

Every step is the tool that a real run uses. A second call resumes where the first one stopped, or
says that it is done; --fresh starts over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import duration

SPLITS = ("val", "val_unseen")


class Clock:
    """Seconds per phase, kept on disk so that a resumed demo reports the whole time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, phase: str, start: float) -> None:
        """Add the time since `start` (time.monotonic) to a phase and save."""
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - start, 1)
        write_atomic(self._path, json.dumps(self.seconds) + "\n")


def _run(command: Sequence[str]) -> None:
    shown = ["python", *command[1:]]
    print(f"\n$ {' '.join(shown)}", flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def _phase(clock: Clock, name: str, command: Sequence[str]) -> None:
    start = time.monotonic()
    try:
        _run([sys.executable, *command])
    finally:
        clock.add(name, start)


def evaluate_and_report(out: Path, clock: Clock) -> tuple[dict[str, Any], list[Path]]:
    """Evaluate the newest checkpoint of the run in `out`/train and write the report into `out`."""
    import torch

    from allinone.data import EvalSet
    from allinone.data.config import DatasetSpec
    from allinone.engine import newest_weights
    from allinone.model import parameters_by_part
    from allinone.pretrain.evaluation import embed, retrieval_table
    from allinone.pretrain.recipes import demo
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.reporting.pretrain_examples import gallery, masked_words
    from allinone.tools.reporting.pretrain_page import write_report

    start = time.monotonic()
    weights = newest_weights(out / "train")
    model = load_checkpoint(weights, "cpu").model
    recipe = demo.RECIPE
    clip = recipe.clip(model.config)
    device = torch.device("cpu")
    sets = {
        split: EvalSet(DatasetSpec(out / "data", split), clip, recipe.loader) for split in SPLITS
    }
    embedded = {split: embed(model, dataset, device) for split, dataset in sets.items()}
    results: dict[str, Any] = {split: retrieval_table(value) for split, value in embedded.items()}
    results["mlm_accuracy"] = embedded["val"].mlm_accuracy
    results["vtm_accuracy"] = embedded["val"].vtm_accuracy
    results["items"] = {split: len(value.items) for split, value in embedded.items()}
    results["missing"] = {
        split: [vars(clip) for clip in value.bad] for split, value in embedded.items()
    }
    results["train_clips"] = len(EvalSet(DatasetSpec(out / "data", "train"), clip, recipe.loader))
    results["parameters"] = sum(parameters_by_part(model).values())
    shown = EvalSet(DatasetSpec(out / "data", "val"), replace(clip, image_size=128), recipe.loader)
    queries = gallery(embedded["val"], shown)
    words = masked_words(model, sets["val"], shown)
    clock.add("evaluate", start)
    results["seconds"] = {
        name: clock.seconds.get(name, 0.0) for name in ("prepare", "train", "evaluate")
    }
    history = [
        json.loads(line) for line in (out / "train" / "history.jsonl").read_text().splitlines()
    ]
    facts = [
        f"weights: {weights}",
        f"parameters: {results['parameters']:,}",
        *(f"{part}: {number:,}" for part, number in parameters_by_part(model).items()),
        f"recipe: {json.dumps(recipe.as_json())}",
    ]
    return results, write_report(out, results, history, queries, words, facts)


def print_results(results: dict[str, Any], paths: Sequence[Path], out: Path) -> None:
    """The result table and the paths: the demo's last lines."""
    from allinone.tools.reporting.pretrain_page import retrieval_rows

    print(f"\n{'split':<12}{'direction':<16}{'R@1 %':>8}{'R@5 %':>8}{'R@10 %':>8}{'MdR':>8}")
    for row in retrieval_rows(results):
        print(f"{row[0]:<12}{row[1]:<16}" + "".join(f"{cell:>8}" for cell in row[2:]))
    times = ", ".join(f"{name} {duration(value)}" for name, value in results["seconds"].items())
    print(
        f"masked words right: {results['mlm_accuracy']:.1f} %   pairs told right:"
        f" {results['vtm_accuracy']:.1f} % (chance 50)"
    )
    print(f"time: {times}\n")
    for path in paths:
        print(f"  {path}")
    print(f"  TensorBoard: tensorboard --logdir {out / 'train'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="folder of the demo (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the folder of an earlier demo and start over"
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps (default: the recipe's)"
    )
    args = parser.parse_args(argv)
    out = args.out if args.out.is_absolute() else ROOT / args.out
    marker = out / ".allinone-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        print(
            f"error: {out} holds something that is not a demo; give another --out", file=sys.stderr
        )
        return 2
    if args.fresh and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    steps = [] if args.steps is None else ["--steps", str(args.steps)]
    shown = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    finished = out / "results.json"
    if finished.exists():
        print(f"the demo in {shown} is done; `make demo ARGS=--fresh` starts over")
    else:
        clock = Clock(out / "seconds.json")
        _phase(clock, "prepare", ["tools/prepare.py", "data/demo", "--out", str(shown / "data")])
        data = ["--data", f"{shown / 'data'}:train", "--val", f"{shown / 'data'}:val"]
        _phase(
            clock,
            "train",
            ["pretrain/train.py", "demo", "--out", str(shown / "train"), *data, *steps],
        )
        evaluate_and_report(out, clock)
    names = ("report.html", "losses.png", "gallery.png", "masked_words.png", "results.json")
    print_results(json.loads(finished.read_text()), [shown / name for name in names], shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
