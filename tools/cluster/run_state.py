"""What the files of a run folder say about the run: progress, rates, faults, whether it is alive.
Reads only; needs neither torch nor DeepSpeed."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

STALLED_AFTER_S, STALLED_INTERVALS = 60.0, 5.0
"""A run is stalled if its last record is older than both: a minute, and five of its logging
intervals."""
RATES = ("samples_per_s", "step_s", "mfu", "data_wait", "memory_bytes", "lr", "grad_norm")
PLANNED = ("samples_per_s", "step_s", "mfu", "memory_bytes", "hours")
"""Numbers that are shown beside the achieved ones where OUT/plan.json has them."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where it is missing, half-written or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class History:
    """history.jsonl, read as it grows. Half-written and broken lines are left out; a file that was
    cut or replaced is read anew."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0
    _inode: int = 0

    def refresh(self) -> None:
        """Read what is new."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self.rows, self._offset, self._inode = [], 0, status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self.rows.append(row)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Logging intervals."""
        return [row for row in self.rows if "metrics" in row]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, oldest first."""
        return [row for row in self.rows if row.get("event") == kind]


def _alive(start: dict[str, Any]) -> bool | None:
    """Is the process of rank 0 there? None where it cannot be seen from this machine."""
    if start.get("host") != socket.gethostname() or not start.get("pid"):
        return None
    try:
        return (
            psutil.Process(start["pid"]).create_time() <= start.get("time", math.inf) + 1
        )  # else the number was given to another process
    except psutil.NoSuchProcess:
        return False


def interval_s(records: list[dict[str, Any]]) -> float:
    """Usual seconds between the last records; 0 where there are too few."""
    times = [row["time"] for row in records[-11:] if "time" in row]
    return statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else 0.0


def status(history: History, now: float) -> tuple[str, str]:
    """(finished, stopped, failed, dead, stalled, running or starting; why)."""
    if not history.rows:
        return "starting", "nothing is logged yet"
    ends = [row for row in history.rows if row.get("event") in ("start", "finish", "stop", "error")]
    last = ends[-1] if ends else {}
    kind, reason = last.get("event"), str(last.get("reason", ""))
    if kind == "finish":
        return "finished", f"at step {last['step']}"
    if kind == "stop":
        return "stopped", reason
    if kind == "error":
        return "failed", reason
    age = now - max(row.get("time", 0.0) for row in history.rows)
    alive = _alive(last)
    if alive is False:
        return (
            "dead",
            (
                f"process {last.get('pid')} of rank 0 is gone and left no word; the same command"
                " continues from the newest checkpoint"
            ),
        )
    limit = last.get("hang_timeout_s")
    pauses = [
        row["seconds"] for row in history.rows if isinstance(row.get("seconds"), (int, float))
    ]
    usual = max(
        [
            STALLED_AFTER_S,
            STALLED_INTERVALS * interval_s(history.records),
            *(2 * pause for pause in pauses[-4:]),
        ]
    )
    if limit and age > usual + limit:
        return (
            "dead",
            (
                "silent for longer than usual and --hang-timeout-s: the run has ended, or its"
                " watchdogs cannot end it"
            ),
        )
    if age > usual:
        return "stalled", "no record for much longer than usual"
    return "running", "" if alive is None else "rank 0 is on this machine"


def slurm_state(job: str | None) -> str | None:
    """What squeue says of a job; None without squeue or job."""
    if not job or not job.isdecimal() or shutil.which("squeue") is None:
        return None
    try:
        shown = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T, ran %M of %l, %D nodes, %R"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"job {job}: squeue does not answer"
    line = shown.stdout.strip().splitlines()
    return (
        f"job {job}: {line[0]}"
        if shown.returncode == 0 and line
        else f"job {job}: not in the queue"
    )


def _checkpoints(out: Path, history: History) -> list[dict[str, Any]]:
    """Those on the disk, newest first; a folder without a manifest is unfinished. Hashes are not
    verified here."""
    told = {row["step"]: row for row in history.events("checkpoint")}
    found = []
    for folder in sorted((out / "checkpoints").glob("step-*"), reverse=True):
        digits = folder.name.removeprefix("step-")
        if digits.isdecimal():
            event = told.get(int(digits), {})
            whole = (folder / "manifest.json").is_file()
            found.append(
                {
                    "step": int(digits),
                    "whole": whole,
                    "bytes": event.get("bytes"),
                    "time": event.get("time"),
                }
            )
    return found


def _dossiers(out: Path) -> list[dict[str, Any]]:
    found = [read_json(path) for path in sorted((out / "dossiers").glob("step-*/dossier.json"))]
    return [
        {
            "step": one["step"],
            "reason": one.get("reason"),
            "verdict": (one.get("rerun") or {}).get("verdict", "not computed again"),
        }
        for one in found
        if "step" in one
    ]


def state(out: Path, history: History, now: float) -> dict[str, Any]:
    """Everything as plain values. `history` is refreshed first."""
    history.refresh()
    options, plan, records = (
        read_json(out / "run.json"),
        read_json(out / "plan.json"),
        history.records,
    )
    last: dict[str, Any] = records[-1] if records else {}
    starts = history.events("start")
    start: dict[str, Any] = starts[-1] if starts else {}
    kind, why = status(history, now)
    newest = max((row.get("time", 0.0) for row in history.rows), default=None)
    age = None if newest is None else now - newest
    steps = start.get("steps") or options.get("train", {}).get("steps")
    ended = [row for row in history.rows if row.get("event") in ("stop", "error")]
    eta = last.get("eta_s")
    names = sorted({name for row in records for name in row["metrics"] if name.endswith("_loss")})
    return {
        "run": str(out),
        "status": kind,
        "why": why,
        "step": last.get("step", start.get("step", 0)),
        "steps": steps,
        "samples": last.get("samples"),
        "eta_s": (
            max(0.0, eta - (age or 0.0))
            if kind in ("running", "stalled") and eta is not None
            else None
        ),
        "age_s": age,
        "ranks": start.get("ranks"),
        "hosts": start.get("hosts"),
        "launcher": start.get("launcher"),
        "slurm": slurm_state(start.get("slurm_job")),
        "losses": {name: [row["metrics"].get(name) for row in records] for name in names},
        **{name: last.get(name) for name in RATES},
        "mfu_convention": start.get("mfu_convention"),
        "planned": {
            name: plan[name] for name in PLANNED if isinstance(plan.get(name), (int, float))
        },
        "slowest": last.get("slowest"),
        "own_s": last.get("own_s"),
        "evaluation": next(
            (
                {"step": row["step"], **row["evaluation"]}
                for row in reversed(history.rows)
                if "evaluation" in row
            ),
            None,
        ),
        "skipped_steps": last.get("skipped_steps", 0),
        "bad_clips": last.get("bad_clips", 0),
        "checkpoints": _checkpoints(out, history),
        "faults": {
            "starts": len(starts),
            "last_end": (
                None
                if not ended
                else {"step": ended[-1]["step"], "reason": ended[-1].get("reason")}
            ),
            "damaged": [row.get("problem") for row in history.events("damaged")],
            "stragglers": [row.get("text") for row in history.events("straggler")],
            "dossiers": _dossiers(out),
        },
    }
