"""Where drills run: short trainings on this machine, their histories, and comparisons."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allinone.common.paths import ROOT
from allinone.tools.cluster.rank_server import RankProcesses

STEPS, SAVE_EVERY, MICRO_BATCH = 14, 4, 4
HANG_TIMEOUT_S, PATIENT_TIMEOUT_S = 12.0, 100.0
"""--hang-timeout-s of the hang drill (or the time of two steps of the undisturbed run, on a busy
machine) and of the other drills; a real run has 1800."""
LIMIT_S = 150.0
"""A launch that neither ends nor fails within this many seconds counts as lost."""
CLIPS, SHARD_CLIPS = 56, 8
OPTIONS = (
    f"--image-size 32 --micro-batch {MICRO_BATCH} --steps {STEPS} --save-every {SAVE_EVERY}"
    " --log-every 1 --eval-every 0 --keep-last 9 --dropout 0.1 --lr 1e-3 --workers 0"
).split()


@dataclass
class DrillOutcome:
    """One row of the table."""

    name: str
    fault: str
    detected_s: float | None
    """Seconds from the fault until the run had noticed it, by ending or by naming it."""
    noticed_by: str
    steps_lost: int | None
    """Steps that had to be repeated."""
    equal: str
    """Whether losses, clips and final weights equal those of the undisturbed run."""
    wrong: list[str]
    """Expectations that were not met."""


@dataclass(frozen=True)
class DrillSite:
    """Folders and random numbers of the drills, and the undisturbed run."""

    out: Path
    data: Path
    world: int
    random: random.Random
    reference: Path
    """The undisturbed run."""
    reference_s: float = 0.0
    """Its duration, seconds."""

    def start(
        self,
        run: Path,
        bad: int | None = None,
        bad_once: int | None = None,
        hang_s: float = PATIENT_TIMEOUT_S,
    ) -> RankProcesses:
        """Start or resume a training.

        Args:
            run: Its folder.
            bad: Position of a clip whose pixels are always NaN.
            bad_once: Position of a clip whose pixels are NaN only when it is read the first time.
            hang_s: --hang-timeout-s.
        """
        number = len(list(run.parent.glob(f"{run.name}-start-*"))) + 1
        argv = ["demo", "--data", f"{self.data}:train", "--val", "none", "--out", str(run)]
        argv += ["--global-batch", str(MICRO_BATCH * self.world), *OPTIONS]
        argv += ["--hang-timeout-s", str(hang_s)]

        def rank_main(rank: int) -> int:
            """Train as one rank."""
            # fast: the parent has loaded what this imports (`preload`)
            from allinone.pretrain import train

            if bad is not None or bad_once is not None:
                _poison(bad, bad_once)
            return train.main(argv)

        return RankProcesses(self.world, run.parent / f"{run.name}-start-{number}", rank_main)

    def resume(self, run: Path, checks: Checks) -> tuple[int, str]:
        """Run the same command again to its end: (steps lost, result of `compare`)."""
        done = max(records(run), default=0)
        starts = len(events(run, "start"))
        ranks = self.start(run)
        codes = ranks.finish(LIMIT_S)
        checks.expect(not any(codes), f"the resumed run ended with {codes}; see {ranks.logs}")
        again = events(run, "start")[starts:]
        began = again[0]["step"] if again else done  # a run that is complete logs no start
        equal = "no: it did not reach the end" if any(codes) else compare(run, self.reference)
        checks.expect(equal == "yes", f"not equal: {equal}")
        lost = done - began
        text = f"{lost} steps lost, checkpoints are every {SAVE_EVERY}"
        checks.expect(lost <= SAVE_EVERY, text)
        return lost, equal


@dataclass
class Checks:
    """Collects expectations that were not met."""

    wrong: list[str] = field(default_factory=list)

    def expect(self, true: bool, otherwise: str) -> None:
        """Add `otherwise` unless `true`."""
        if not true:
            self.wrong.append(otherwise)


def _poison(bad: int | None, bad_once: int | None) -> None:
    """Replace pixels by NaN in this process: at position `bad` always, at `bad_once` once."""
    from allinone.data.loading.loader import TrainStream

    plain = TrainStream.batches
    once = {bad_once}

    # patched in the forked rank only: the parent and the other ranks keep the plain method
    def poisoned(self: TrainStream, **place: Any) -> Iterator[Any]:
        """The same batches with NaN in the pixels of the chosen clips."""
        for batch in plain(self, **place):
            for row in range(len(batch)):
                position = batch.first_position + row
                if position == bad or position in once:
                    once.discard(position)
                    batch.pixels[row] = float("nan")
            yield batch

    TrainStream.batches = poisoned  # type: ignore[method-assign]


def rows(run: Path) -> list[dict[str, Any]]:
    """Complete lines of a run's history."""
    path = run / "history.jsonl"
    # without a newline, the last line is being written, or its writer was killed
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def records(run: Path) -> dict[int, dict[str, Any]]:
    """The record of each logged step."""
    return {row["step"]: row for row in rows(run) if "metrics" in row}


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Events of some kinds, oldest first."""
    return [row for row in rows(run) if row.get("event") in kinds]


def await_step(ranks: RankProcesses, run: Path, step: int) -> None:
    """Wait until the run has logged a step.

    Args:
        ranks: The run's processes.
        run: Its folder.
        step: The step.

    Raises:
        RuntimeError: The run ended before.
    """
    while step not in records(run):
        # asked again after `running`: the last records may have been written in between
        if not ranks.running() and step not in records(run):
            raise RuntimeError(f"the run in {run} ended before step {step}; see {ranks.logs}")
        time.sleep(0.01)


def compare(run: Path, reference: Path, upto: int = STEPS) -> str:
    """Compare losses, clips and gradient norms bit by bit, and at the last step the weights.

    Args:
        run: A run.
        reference: The undisturbed run.
        upto: Last step to compare.

    Returns:
        `yes`, or the first difference.
    """
    import torch
    from safetensors.torch import load_file

    from allinone.engine.checkpoint.weights import newest_weights

    mine, theirs = records(run), records(reference)
    for step in range(1, upto + 1):
        if step not in mine:
            return f"step {step} is missing"
        for key in ("metrics", "digest", "grad_norm"):
            if mine[step][key] != theirs[step][key]:
                return f"{key} of step {step} differs"
    if upto < STEPS:
        return "yes"
    ours, others = (
        load_file(newest_weights(path) / "model.safetensors") for path in (run, reference)
    )
    different = [name for name in others if not torch.equal(ours[name], others[name])]
    return f"weights differ: {different[0]}" if different else "yes"


def prepare_clips(out: Path) -> Path:
    """Prepare a few embedded clips in several shards; returns the folder.

    This runs in a child process, so that this process has no threads when it forks ranks.
    """
    source = out / "source"
    source.mkdir()
    lines = (ROOT / "data/demo/results_demo_train.csv").read_text().splitlines()
    (source / "results_drill_train.csv").write_text("\n".join(lines[: CLIPS + 1]) + "\n")
    (source / "videos").symlink_to(ROOT / "data/demo/videos")
    made = out / "clips"

    def make(rank: int) -> int:
        """Prepare the clips; the only rank."""
        from allinone.data.prepare.pipeline import PrepareOptions, prepare

        prepare(PrepareOptions(source, made, workers=1, shard_clips=SHARD_CLIPS), progress=False)
        return 0

    child = RankProcesses(1, out / "prepare", make)
    if any(child.finish(LIMIT_S)):
        raise RuntimeError(f"the clips could not be prepared: {child.output()}")
    return made
