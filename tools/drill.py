#!/usr/bin/env python3
"""Faults as a command: short real trainings in which one thing goes wrong, beside one in which
nothing does.

    python tools/drill.py [--only kill hang] [--ranks 2] [--out DIR] [--json] [--markdown]

Each drill runs pretrain/train.py (nano, 32 pixels, 14 steps of embedded clips) on this machine's
CPU with two ranks, makes its fault, starts the same command again where it ended, and compares
losses, clips and final weights with the undisturbed run, bit by bit. Exit code 0 only if every
drill went as it must. About 3 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.common.formatting import duration
from allinone.engine.distributed.launch import EXIT_DISK, EXIT_PEER, EXIT_REQUEUE, EXIT_USER
from allinone.engine.distributed.watchdog import EXIT_HANG
from allinone.tools.cluster.rank_server import RankProcesses, preload

STEPS, SAVE_EVERY, MICRO_BATCH = 14, 4, 4
HANG_TIMEOUT_S, PATIENT_TIMEOUT_S = 12.0, 100.0
"""--hang-timeout-s where a hang is made (or the time of two steps of the undisturbed run, on a busy
machine), and elsewhere; a real run has 1800."""
DISK_BYTES = 1 << 20
"""Largest file that the full disk takes: history and logs fit, a checkpoint of 35 MB does not."""
LIMIT_S = 150.0
"""Seconds after which a launch that neither ends nor fails counts as lost."""
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
    """From the fault until the run had noticed, by ending or by naming it."""
    noticed_by: str
    steps_lost: int | None
    """Steps that had been done and had to be done again."""
    equal: str
    """Losses, clips and final weights beside the undisturbed run."""
    wrong: list[str]
    """What was not as it must be."""


@dataclass(frozen=True)
class Site:
    """Where the drills work, and what the undisturbed run gave."""

    out: Path
    data: Path
    world: int
    random: random.Random
    reference: Path
    reference_s: float = 0.0

    def start(
        self,
        run: Path,
        bad: int | None = None,
        bad_once: int | None = None,
        hang_s: float = PATIENT_TIMEOUT_S,
    ) -> RankProcesses:
        """The training's command on the folder `run`; `bad` and `bad_once` are positions of clips
        with NaN in their pixels."""
        number = len(list(run.parent.glob(f"{run.name}-start-*"))) + 1
        argv = [
            "demo",
            "--data",
            f"{self.data}:train",
            "--val",
            "--out",
            str(run),
            "--global-batch",
            str(MICRO_BATCH * self.world),
        ]

        def rank_main(rank: int) -> int:
            from allinone.pretrain import train

            if bad is not None or bad_once is not None:
                _poison(bad, bad_once)
            return train.main([*argv, *OPTIONS, "--hang-timeout-s", str(hang_s)])

        return RankProcesses(self.world, run.parent / f"{run.name}-start-{number}", rank_main)


def _poison(bad: int | None, bad_once: int | None) -> None:
    """In a rank: NaN in the pixels of the clip at position `bad`, and of that at `bad_once` when it
    is read for the first time."""
    from allinone.data.loading.loader import TrainStream

    plain = TrainStream.batches
    once = {bad_once}

    def poisoned(self: TrainStream, **place: Any) -> Iterator[Any]:
        for batch in plain(self, **place):
            for row in range(len(batch)):
                position = batch.first_position + row
                if position == bad or position in once:
                    once.discard(position)
                    batch.pixels[row] = float("nan")
            yield batch

    TrainStream.batches = poisoned  # type: ignore[method-assign]


def rows(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's history."""
    path = run / "history.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def records(run: Path) -> dict[int, dict[str, Any]]:
    """Step → record."""
    return {row["step"]: row for row in rows(run) if "metrics" in row}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Events of one kind, oldest first."""
    return [row for row in rows(run) if row.get("event") == kind]


def await_step(ranks: RankProcesses, run: Path, step: int) -> None:
    """Return when the run has logged a step; RuntimeError if it ends before."""
    while step not in records(run):
        if not ranks.running() and step not in records(run):
            raise RuntimeError(f"the run in {run} ended before step {step}; see {ranks.logs}")
        time.sleep(0.01)


def compare(run: Path, reference: Path, upto: int = STEPS) -> str:
    """`yes`, or the first thing that is not bit-equal."""
    import torch
    from safetensors.torch import load_file

    from allinone.engine.checkpoint.manager import newest_weights

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


class Checks:
    """Collects what is not as it must be."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def expect(self, true: bool, otherwise: str) -> None:
        """Note `otherwise` unless `true`."""
        if not true:
            self.wrong.append(otherwise)


def continued(site: Site, run: Path, checks: Checks) -> tuple[int, str]:
    """Start the same command again to its end: (steps lost, equality)."""
    done, starts = max(records(run), default=0), len(events(run, "start"))
    ranks = site.start(run)
    codes = ranks.finish(LIMIT_S)
    checks.expect(not any(codes), f"the continued run ended with {codes}; see {ranks.logs}")
    again = events(run, "start")[starts:]
    began = again[0]["step"] if again else done  # a run that is done says so and starts nothing
    equal = compare(run, site.reference) if not any(codes) else "no: it did not reach the end"
    checks.expect(equal == "yes", f"not equal: {equal}")
    checks.expect(
        done - began < max(SAVE_EVERY, 1) + 1,
        f"{done - began} steps lost, checkpoints are every {SAVE_EVERY}",
    )
    return done - began, equal


def drill_kill(site: Site, run: Path) -> DrillOutcome:
    """kill -9 of one rank"""
    checks, victim, step = Checks(), site.world - 1, site.random.randint(5, STEPS - 3)
    ranks = site.start(run)
    await_step(ranks, run, step)
    ranks.signal(victim, signal.SIGKILL)
    fault = time.monotonic()
    codes = ranks.finish(LIMIT_S)
    survivors = [ranks.ended[rank] - fault for rank in ranks.ended if rank != victim]
    checks.expect(codes[victim] == -signal.SIGKILL, f"the killed rank ended with {codes[victim]}")
    checks.expect(
        all(code == EXIT_PEER for k, code in enumerate(codes) if k != victim),
        f"others ended with {codes}",
    )
    checks.expect(
        "Traceback" not in ranks.output(), f"a traceback instead of a message; see {ranks.logs}"
    )
    lost, equal = continued(site, run, checks)
    detected = max(survivors, default=0.0)
    return DrillOutcome(
        "kill",
        f"kill -9 of rank {victim} after step {step}",
        detected,
        f"exit codes {codes}",
        lost,
        equal,
        checks.wrong,
    )


def drill_hang(site: Site, run: Path) -> DrillOutcome:
    """SIGSTOP of one rank"""
    timeout_s = max(HANG_TIMEOUT_S, round(2 * site.reference_s / STEPS))
    checks, victim, step = Checks(), site.world - 1, site.random.randint(5, STEPS - 3)
    ranks = site.start(run, hang_s=timeout_s)
    await_step(ranks, run, step)
    ranks.signal(victim, signal.SIGSTOP)
    fault = time.monotonic()
    codes = ranks.finish(LIMIT_S)
    detected = min(
        (ranks.ended[rank] - fault for rank in ranks.ended if rank != victim), default=0.0
    )
    said = ranks.output()
    checks.expect(
        detected < timeout_s + 15, f"noticed after {detected:.1f} s, time-out {timeout_s:g} s"
    )
    checks.expect("hangs: " in said, f"no rank said where it hangs; see {ranks.logs}")
    checks.expect(
        f"no sign of life from rank {victim} on " in said,
        f"the stopped rank is not named; see {ranks.logs}",
    )
    others = {code for k, code in enumerate(codes) if k != victim}
    checks.expect(
        EXIT_HANG in others and others <= {EXIT_HANG, EXIT_PEER},
        f"others ended with {codes} instead of {EXIT_HANG}",
    )
    lost, equal = continued(site, run, checks)
    fault_text = f"SIGSTOP of rank {victim} after step {step}, time-out {timeout_s:g} s"
    return DrillOutcome(
        "hang", fault_text, detected, f"exit codes {codes}, rank named", lost, equal, checks.wrong
    )


def drill_nan(site: Site, run: Path) -> DrillOutcome:
    """a clip with NaN pixels, and later a NaN that does not come back"""
    checks = Checks()
    batch = MICRO_BATCH * site.world
    bad_step, once_step = 5, 9
    bad = (bad_step - 1) * batch + site.random.randrange(batch)
    ranks = site.start(run, bad=bad, bad_once=(once_step - 1) * batch + 1)
    codes = ranks.finish(LIMIT_S)
    checks.expect(not any(codes), f"the run ended with {codes}; see {ranks.logs}")
    found = {event["of_step"]: event for event in events(run, "dossier")}
    checks.expect(sorted(found) == [bad_step, once_step], f"dossiers on steps {sorted(found)}")
    mine, theirs = records(run), records(site.reference)
    checks.expect(
        mine[STEPS]["skipped_steps"] == 2, f"{mine[STEPS]['skipped_steps']} steps skipped"
    )
    checks.expect(
        all(mine[step]["digest"] == theirs[step]["digest"] for step in theirs),
        "other clips than in the undisturbed run",
    )
    for step, again in ((bad_step, True), (once_step, False)):
        if step in found:
            rerun = json.loads((Path(found[step]["path"]) / "dossier.json").read_text())["rerun"]
            checks.expect(
                rerun["reproduced"] is again, f"verdict on step {step}: {rerun['verdict']}"
            )
            positions = [entry["position"] for entry in rerun["guilty"]]
            checks.expect(
                positions == ([bad] if again else []),
                f"clips blamed for step {step}: positions {positions}",
            )
    equal = compare(run, site.reference, upto=bad_step - 1)
    checks.expect(equal == "yes", equal)
    detected = found[bad_step]["time"] - mine[bad_step - 1]["time"] if bad_step in found else None
    equal = (
        f"yes to step {bad_step - 1}; then without 2 updates, same clips"
        if equal == "yes"
        else equal
    )
    by = "clip named; second one told as not reproduced"
    return DrillOutcome(
        "nan",
        f"NaN in a clip of step {bad_step}; once only at step {once_step}",
        detected,
        by,
        0,
        equal,
        checks.wrong,
    )


def drill_corrupt(site: Site, run: Path) -> DrillOutcome:
    """a flipped bit in the newest checkpoint"""
    checks = Checks()
    shutil.copytree(site.reference, run)
    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    victim = site.random.choice(
        sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 4096)
    )
    content = bytearray(victim.read_bytes())
    content[site.random.randrange(len(content))] ^= 1 << site.random.randrange(8)
    victim.write_bytes(content)
    start = time.time()
    lost, equal = continued(site, run, checks)
    named = [event for event in events(run, "damaged") if victim.name in event["problem"]]
    checks.expect(bool(named), f"{victim.name} is not named as damaged")
    checks.expect(
        (run / "checkpoints" / f"damaged-{newest.name}").is_dir(),
        "the damaged checkpoint was not set aside",
    )
    detected = named[0]["time"] - start if named else None
    fault = f"one bit of {victim.relative_to(newest)} flipped"
    return DrillOutcome(
        "corrupt", fault, detected, "file named, checkpoint before used", lost, equal, checks.wrong
    )


def drill_shard(site: Site, run: Path) -> DrillOutcome:
    """a deleted shard of the data, found at the next start"""
    checks = Checks()
    _rewind(site, run)
    shard = site.random.choice(sorted(site.data.rglob("*.tar")))
    aside = site.out / f"aside-{shard.name}"
    shard.rename(aside)
    try:
        ranks = site.start(run)
        codes = ranks.finish(LIMIT_S)
    finally:
        aside.rename(shard)
    said = ranks.output()
    checks.expect(
        EXIT_USER in codes and set(codes) <= {EXIT_USER, EXIT_PEER},
        f"exit codes {codes}, {EXIT_USER} is for wrong data",
    )
    checks.expect(
        f"{shard.name} cannot be opened" in said,
        f"the missing shard is not named; see {ranks.logs}",
    )
    checks.expect("Traceback" not in said, f"a traceback instead of a message; see {ranks.logs}")
    detected = min(ranks.ended.values()) - ranks.started
    lost, equal = continued(site, run, checks)
    return DrillOutcome(
        "shard",
        f"{shard.name} deleted between two starts",
        detected,
        f"exit codes {codes}, shard named",
        lost,
        equal,
        checks.wrong,
    )


def _rewind(site: Site, run: Path) -> None:
    """A copy of the undisturbed run as it was after its second checkpoint."""
    shutil.copytree(site.reference, run)
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.split("-")[1]) > 2 * SAVE_EVERY:
            shutil.rmtree(folder)
    kept = [row for row in rows(run) if row["step"] <= 2 * SAVE_EVERY]
    (run / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def drill_disk(site: Site, run: Path) -> DrillOutcome:
    """a full disk: no file may grow beyond 1 MiB (RLIMIT_FSIZE, set on the running ranks)"""
    checks, step = Checks(), SAVE_EVERY + 1
    ranks = site.start(run)
    await_step(ranks, run, step)
    for pid in ranks.pids.values():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (DISK_BYTES, resource.RLIM_INFINITY))
    codes = ranks.finish(LIMIT_S)
    done = max(records(run))
    checks.expect(codes == [EXIT_DISK] * site.world, f"exit codes {codes} instead of {EXIT_DISK}")
    said = ranks.output()
    checks.expect(
        f"step-{2 * SAVE_EVERY:08d} could not be written" in said,
        f"the checkpoint is not named; see {ranks.logs}",
    )
    detected = max(ranks.ended.values()) - (
        time.monotonic() - (time.time() - records(run)[done]["time"])
    )
    lost, equal = continued(site, run, checks)
    fault = f"disk full from step {step} on (RLIMIT_FSIZE {DISK_BYTES >> 20} MiB)"
    return DrillOutcome(
        "disk", fault, detected, f"exit codes {codes}, checkpoint named", lost, equal, checks.wrong
    )


def drill_sigterm(site: Site, run: Path) -> DrillOutcome:
    """SIGTERM to one rank at a random time"""
    checks = Checks()
    step, receiver = site.random.randint(0, STEPS - 3), site.random.randrange(site.world)
    after = site.random.uniform(0.0, 1.0) * site.reference_s / STEPS
    ranks = site.start(run)
    if step:
        await_step(ranks, run, step)
    time.sleep(after)
    ranks.signal(receiver, signal.SIGTERM)
    fault = time.monotonic()
    begun = max(records(run), default=0)
    codes = ranks.finish(LIMIT_S)
    detected = max(ranks.ended.values()) - fault
    # before the loop listens nothing can be lost: there the signal just ends the rank
    allowed = {EXIT_REQUEUE} if begun else {EXIT_REQUEUE, -signal.SIGTERM}
    checks.expect(codes[receiver] in allowed, f"the rank that got it ended with {codes[receiver]}")
    lost, equal = continued(site, run, checks)
    checks.expect(lost == 0, f"{lost} steps were lost though there was time to save")
    fault_text = f"SIGTERM to rank {receiver}, {after:.2f} s after step {step}"
    return DrillOutcome(
        "sigterm", fault_text, detected, f"exit codes {codes}, saved", lost, equal, checks.wrong
    )


DRILLS: dict[str, Callable[[Site, Path], DrillOutcome]] = {
    "kill": drill_kill,
    "hang": drill_hang,
    "nan": drill_nan,
    "corrupt": drill_corrupt,
    "shard": drill_shard,
    "disk": drill_disk,
    "sigterm": drill_sigterm,
}


def prepare_clips(out: Path) -> Path:
    """A few embedded clips in several shards. In a child, so that this process has no threads when
    ranks are forked."""
    source = out / "source"
    source.mkdir()
    lines = (ROOT / "data/demo/results_demo_train.csv").read_text().splitlines()
    (source / "results_drill_train.csv").write_text("\n".join(lines[: CLIPS + 1]) + "\n")
    (source / "videos").symlink_to(ROOT / "data/demo/videos")
    made = out / "clips"

    def make(rank: int) -> int:
        from allinone.data.prepare.pipeline import PrepareOptions, prepare

        prepare(PrepareOptions(source, made, workers=1, shard_clips=SHARD_CLIPS), progress=False)
        return 0

    child = RankProcesses(1, out / "prepare", make)
    if any(child.finish(LIMIT_S)):
        raise RuntimeError(f"the clips could not be prepared: {child.output()}")
    return made


def drill(
    names: Sequence[str], out: Path, world: int, seed: int, say: Callable[[str], None]
) -> list[DrillOutcome]:
    """Run the undisturbed training and the named drills in the empty folder `out`."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    start = time.monotonic()
    data = prepare_clips(out)
    preload()
    say(f"imports and clips: {duration(time.monotonic() - start)}")
    site = Site(out, data, world, random.Random(seed), out / "undisturbed")
    ranks = site.start(site.reference)
    if any(ranks.finish(LIMIT_S)):
        raise RuntimeError(f"the undisturbed run failed: {ranks.output()[-3000:]}")
    site = replace(site, reference_s=time.monotonic() - ranks.started)
    say(f"undisturbed run: {duration(site.reference_s)}, {STEPS} steps on {world} ranks")
    found = []
    for name in names:
        begin = time.monotonic()
        try:
            found.append(
                DRILLS[name](replace(site, random=random.Random(f"{seed} {name}")), out / name)
            )
        except (RuntimeError, OSError) as error:  # this drill could not be held; the others can
            found.append(
                DrillOutcome(
                    name,
                    str(DRILLS[name].__doc__),
                    None,
                    "",
                    None,
                    "",
                    [f"{type(error).__name__}: {error}"],
                )
            )
        state = "as it must be" if not found[-1].wrong else f"WRONG: {'; '.join(found[-1].wrong)}"
        say(f"{name}: {state} ({duration(time.monotonic() - begin)})")
    return found


def table(found: Sequence[DrillOutcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| fault | detected after | how | steps lost | continued equal | as it must be |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        after = "–" if one.detected_s is None else duration(one.detected_s)
        fine = "yes" if not one.wrong else "no: " + "; ".join(one.wrong)
        lines.append(
            f"| {one.fault} | {after} | {one.noticed_by} | {one.steps_lost} | {one.equal} |"
            f" {fine} |"
        )
    return "\n".join(lines)


def _run(args: argparse.Namespace) -> int:
    if args.ranks < 2:
        raise InputError(
            f"--ranks must be at least 2, got {args.ranks}: a fault of one rank must be noticed by"
            " another"
        )
    if args.out is not None and args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out} is not empty; give a new folder")
    out = Path(tempfile.mkdtemp(prefix="drill-")) if args.out is None else args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        found = drill(
            args.only or list(DRILLS),
            out,
            args.ranks,
            args.seed,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    finally:
        if args.out is None:
            shutil.rmtree(out)
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print(table(found))
    print(f"{len(found)} drills in {duration(time.monotonic() - start)}", file=sys.stderr)
    return int(any(one.wrong for one in found))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(DRILLS),
        metavar="NAME",
        help=f"which of {', '.join(DRILLS)} (default: all)",
    )
    parser.add_argument(
        "--ranks", type=int, default=2, help="ranks of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="empty folder to keep all runs and logs in; without it they are deleted",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random victims and times (default: %(default)s)"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.add_argument(
        "--markdown", action="store_true", help="print the Markdown table (the default)"
    )
    args = parser.parse_args(argv)
    return run_command(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
