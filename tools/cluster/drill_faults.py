"""The faults of tools/drill.py: each drill breaks one thing and checks how the run reacts."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from allinone.common.exit_codes import ExitCode
from allinone.tools.cluster.drill_site import (
    HANG_TIMEOUT_S,
    LIMIT_S,
    MICRO_BATCH,
    SAVE_EVERY,
    STEPS,
    Checks,
    DrillOutcome,
    DrillSite,
    await_step,
    compare,
    events,
    records,
    rows,
)
from allinone.tools.cluster.run_state import ANOMALY_EVENTS, read_anomaly

DISK_BYTES = 1 << 20
"""Largest file on the full disk: history and logs fit, a checkpoint of 35 MB does not."""
PEER_LOST = ExitCode.FAILURE
"""Exit code of a rank whose peer has gone."""


def drill_kill(site: DrillSite, run: Path) -> DrillOutcome:
    """kill -9 of one rank"""
    checks = Checks()
    # not rank 0, which writes the history that `await_step` reads
    victim = site.world - 1
    step = site.random.randint(5, STEPS - 3)
    ranks = site.start(run)
    await_step(ranks, run, step)
    ranks.signal(victim, signal.SIGKILL)
    fault = time.monotonic()
    codes = ranks.finish(LIMIT_S)
    checks.expect(codes[victim] == -signal.SIGKILL, f"the killed rank ended with {codes[victim]}")
    others = [code for rank, code in enumerate(codes) if rank != victim]
    checks.expect(all(code == PEER_LOST for code in others), f"others ended with {codes}")
    no_traceback = "Traceback" not in ranks.output()
    checks.expect(no_traceback, f"a traceback instead of a message; see {ranks.logs}")
    lost, equal = site.resume(run, checks)
    return DrillOutcome(
        "kill",
        f"kill -9 of rank {victim} after step {step}",
        max((end - fault for rank, end in ranks.ended.items() if rank != victim), default=0.0),
        f"exit codes {codes}",
        lost,
        equal,
        checks.wrong,
    )


def drill_hang(site: DrillSite, run: Path) -> DrillOutcome:
    """SIGSTOP of one rank"""
    checks = Checks()
    victim = site.world - 1
    step = site.random.randint(5, STEPS - 3)
    # on a busy machine a healthy step may take longer than the usual time-out
    timeout_s = max(HANG_TIMEOUT_S, round(2 * site.reference_s / STEPS))
    ranks = site.start(run, hang_s=timeout_s)
    await_step(ranks, run, step)
    ranks.signal(victim, signal.SIGSTOP)
    fault = time.monotonic()
    codes = ranks.finish(LIMIT_S)
    detected = min(
        (end - fault for rank, end in ranks.ended.items() if rank != victim), default=0.0
    )
    text = f"noticed after {detected:.1f} s, time-out {timeout_s:g} s"
    checks.expect(detected < timeout_s + 15, text)
    output = ranks.output()
    checks.expect("hangs: " in output, f"no rank reported where it hangs; see {ranks.logs}")
    named = f"no sign of life from rank {victim} on " in output
    checks.expect(named, f"the stopped rank is not named; see {ranks.logs}")
    others = {code for rank, code in enumerate(codes) if rank != victim}
    checks.expect(
        ExitCode.HANG in others and others <= {ExitCode.HANG, PEER_LOST},
        f"others ended with {codes} instead of {ExitCode.HANG.value}",
    )
    lost, equal = site.resume(run, checks)
    return DrillOutcome(
        "hang",
        f"SIGSTOP of rank {victim} after step {step}, time-out {timeout_s:g} s",
        detected,
        f"exit codes {codes}, rank named",
        lost,
        equal,
        checks.wrong,
    )


def drill_nan(site: DrillSite, run: Path) -> DrillOutcome:
    """a clip with NaN pixels, and later a NaN that does not recur"""
    checks = Checks()
    batch = MICRO_BATCH * site.world
    bad_step, once_step = 5, 9
    bad = (bad_step - 1) * batch + site.random.randrange(batch)
    ranks = site.start(run, bad=bad, bad_once=(once_step - 1) * batch + 1)
    codes = ranks.finish(LIMIT_S)
    checks.expect(not any(codes), f"the run ended with {codes}; see {ranks.logs}")
    found = {event["of_step"]: event for event in events(run, *ANOMALY_EVENTS)}
    text = f"anomaly reports on steps {sorted(found)}"
    checks.expect(sorted(found) == [bad_step, once_step], text)
    mine, theirs = records(run), records(site.reference)
    skipped = mine[STEPS]["skipped_steps"]
    checks.expect(skipped == 2, f"{skipped} steps skipped")
    same = all(mine[step]["digest"] == theirs[step]["digest"] for step in theirs)
    checks.expect(same, "other clips than in the undisturbed run")
    for step, expected in ((bad_step, [bad]), (once_step, [])):
        if step in found:
            replay = read_anomaly(Path(found[step]["path"]))["replay"]
            text = f"verdict on step {step}: {replay['verdict']}"
            checks.expect(replay["reproduced"] is bool(expected), text)
            positions = [entry["position"] for entry in replay["offending_clips"]]
            text = f"clips named for step {step}: positions {positions}"
            checks.expect(positions == expected, text)
    equal = compare(run, site.reference, upto=bad_step - 1)
    checks.expect(equal == "yes", equal)
    detected = found[bad_step]["time"] - mine[bad_step - 1]["time"] if bad_step in found else None
    if equal == "yes":
        equal = f"yes to step {bad_step - 1}; then without 2 updates, same clips"
    return DrillOutcome(
        "nan",
        f"NaN in a clip of step {bad_step}; once only at step {once_step}",
        detected,
        "clip named; the second NaN reported as not reproduced",
        0,
        equal,
        checks.wrong,
    )


def drill_corrupt(site: DrillSite, run: Path) -> DrillOutcome:
    """a flipped bit in the newest checkpoint"""
    checks = Checks()
    shutil.copytree(site.reference, run)
    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    victim = site.random.choice(sorted(files))
    content = bytearray(victim.read_bytes())
    # one bit: the size stays, so that only the hash can reveal it
    content[site.random.randrange(len(content))] ^= 1 << site.random.randrange(8)
    victim.write_bytes(content)
    start = time.time()
    lost, equal = site.resume(run, checks)
    named = [event for event in events(run, "damaged") if victim.name in event["problem"]]
    checks.expect(bool(named), f"{victim.name} is not named as damaged")
    moved = (run / "checkpoints" / f"damaged-{newest.name}").is_dir()
    checks.expect(moved, "the damaged checkpoint was not moved away")
    return DrillOutcome(
        "corrupt",
        f"one bit of {victim.relative_to(newest)} flipped",
        named[0]["time"] - start if named else None,
        "file named, previous checkpoint used",
        lost,
        equal,
        checks.wrong,
    )


def drill_shard(site: DrillSite, run: Path) -> DrillOutcome:
    """a deleted shard of the data, found at the next start"""
    checks = Checks()
    _copy_early_part(site, run)
    shard = site.random.choice(sorted(site.data.rglob("*.tar")))
    moved = site.out / f"moved-{shard.name}"
    # moved, not deleted: the resumed run must read it again
    shard.rename(moved)
    try:
        ranks = site.start(run)
        codes = ranks.finish(LIMIT_S)
    finally:
        moved.rename(shard)
    output = ranks.output()
    checks.expect(
        ExitCode.USAGE in codes and set(codes) <= {ExitCode.USAGE, PEER_LOST},
        f"exit codes {codes}, {ExitCode.USAGE.value} is for wrong data",
    )
    named = f"{shard.name} cannot be opened" in output
    checks.expect(named, f"the missing shard is not named; see {ranks.logs}")
    checks.expect("Traceback" not in output, f"a traceback instead of a message; see {ranks.logs}")
    detected = min(ranks.ended.values()) - ranks.started
    lost, equal = site.resume(run, checks)
    return DrillOutcome(
        "shard",
        f"{shard.name} deleted between two starts",
        detected,
        f"exit codes {codes}, shard named",
        lost,
        equal,
        checks.wrong,
    )


def _copy_early_part(site: DrillSite, run: Path) -> None:
    """Copy the undisturbed run as it was after its second checkpoint."""
    shutil.copytree(site.reference, run)
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.split("-")[1]) > 2 * SAVE_EVERY:
            shutil.rmtree(folder)
    kept = [row for row in rows(run) if row["step"] <= 2 * SAVE_EVERY]
    (run / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def drill_disk(site: DrillSite, run: Path) -> DrillOutcome:
    """a full disk: no file may grow beyond 1 MiB (RLIMIT_FSIZE, set on the running ranks)"""
    checks = Checks()
    step = SAVE_EVERY + 1
    ranks = site.start(run)
    await_step(ranks, run, step)
    for pid in ranks.pids.values():
        # the soft limit alone, so that no privilege is needed; a larger write
        # gives EFBIG, because Python ignores SIGXFSZ
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (DISK_BYTES, resource.RLIM_INFINITY))
    codes = ranks.finish(LIMIT_S)
    code = ExitCode.DISK_FULL
    checks.expect(codes == [code] * site.world, f"exit codes {codes} instead of {code.value}")
    named = f"step-{2 * SAVE_EVERY:08d} could not be written" in ranks.output()
    checks.expect(named, f"the checkpoint is not named; see {ranks.logs}")
    # records hold wall-clock times; ends were taken from the monotonic clock
    logged = records(run)
    last_record = time.monotonic() - (time.time() - logged[max(logged)]["time"])
    detected = max(ranks.ended.values()) - last_record
    lost, equal = site.resume(run, checks)
    return DrillOutcome(
        "disk",
        f"disk full from step {step} on (RLIMIT_FSIZE {DISK_BYTES >> 20} MiB)",
        detected,
        f"exit codes {codes}, checkpoint named",
        lost,
        equal,
        checks.wrong,
    )


def drill_sigterm(site: DrillSite, run: Path) -> DrillOutcome:
    """SIGTERM to one rank at a random time"""
    checks = Checks()
    step = site.random.randint(0, STEPS - 3)
    receiver = site.random.randrange(site.world)
    after = site.random.uniform(0.0, 1.0) * site.reference_s / STEPS
    ranks = site.start(run)
    if step:
        await_step(ranks, run, step)
    time.sleep(after)
    ranks.signal(receiver, signal.SIGTERM)
    fault = time.monotonic()
    started = bool(records(run))
    codes = ranks.finish(LIMIT_S)
    detected = max(ranks.ended.values()) - fault
    # before the loop handles signals there is nothing to lose, and the signal just ends the rank
    allowed = {ExitCode.REQUEUE} if started else {ExitCode.REQUEUE, -signal.SIGTERM}
    text = f"the rank that received it ended with {codes[receiver]}"
    checks.expect(codes[receiver] in allowed, text)
    lost, equal = site.resume(run, checks)
    checks.expect(lost == 0, f"{lost} steps were lost though there was time to save")
    return DrillOutcome(
        "sigterm",
        f"SIGTERM to rank {receiver}, {after:.2f} s after step {step}",
        detected,
        f"exit codes {codes}, saved",
        lost,
        equal,
        checks.wrong,
    )


DRILLS: dict[str, Callable[[DrillSite, Path], DrillOutcome]] = {
    "kill": drill_kill,
    "hang": drill_hang,
    "nan": drill_nan,
    "corrupt": drill_corrupt,
    "shard": drill_shard,
    "disk": drill_disk,
    "sigterm": drill_sigterm,
}
