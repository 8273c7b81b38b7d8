"""Reads the state of a run from its folder: progress, rates, faults, whether it is alive.

Nothing is written, and neither torch nor DeepSpeed is needed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

STALLED_AFTER_S, STALLED_INTERVALS = 60.0, 5.0
"""A run counts as stalled when its last record is older than a minute and than five of its logging
intervals."""
RATES = ("samples_per_s", "step_s", "mfu", "data_wait", "memory_bytes", "lr", "grad_norm")
PLANNED = ("samples_per_s", "step_s", "mfu", "memory_bytes", "hours")
"""Numbers of OUT/plan.json that are shown next to the measured ones."""
ANOMALY_EVENTS = ("anomaly_report", "dossier")
"""Names of the event in history.jsonl; the second one is that of earlier versions."""
_ANOMALY_FOLDERS = ("anomalies", "dossiers")
_REPLAY_KEYS = ("replay", "rerun")
_CLIP_KEYS = ("offending_clips", "guilty")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if it is missing, incomplete or not an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class History:
    """history.jsonl, read incrementally.

    Incomplete and broken lines are skipped; a truncated or replaced file is read from its start.
    """

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0
    _inode: int = 0

    def refresh(self) -> None:
        """Read new lines."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                # a restart replaces the file without the steps that will be repeated
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self.rows = []
                    self._offset = 0
                    self._inode = status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self.rows.append(row)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of logging intervals."""
        return [row for row in self.rows if "metrics" in row]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of some kinds, oldest first."""
        return [row for row in self.rows if row.get("event") in kinds]


def _alive(start: dict[str, Any]) -> bool | None:
    """Whether the process of rank 0 exists; None if it is on another machine."""
    if start.get("host") != socket.gethostname() or not start.get("pid"):
        return None
    try:
        # a process that is younger than the run has reused its number
        return psutil.Process(start["pid"]).create_time() <= start.get("time", math.inf) + 1
    except psutil.NoSuchProcess:
        return False


def interval_s(records: list[dict[str, Any]]) -> float:
    """Median seconds between the last records; 0 if there are too few."""
    times = [row["time"] for row in records[-11:] if "time" in row]
    return statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else 0.0


def status(history: History, now: float) -> tuple[str, str]:
    """Determine whether a run is alive.

    Args:
        history: Its history.
        now: Seconds since 1970.

    Returns:
        (finished, stopped, failed, dead, stalled, running or starting; the reason).
    """
    if not history.rows:
        return "starting", "nothing is logged yet"
    changes = history.events("start", "finish", "stop", "error")
    last = changes[-1] if changes else {}
    kind, reason = last.get("event"), str(last.get("reason", ""))
    if kind == "finish":
        return "finished", f"at step {last['step']}"
    if kind == "stop":
        return "stopped", reason
    if kind == "error":
        return "failed", reason
    alive = _alive(last)
    if alive is False:
        return "dead", (
            f"process {last.get('pid')} of rank 0 has disappeared without logging an end; the same"
            " command continues from the newest checkpoint"
        )
    age = now - max(row.get("time", 0.0) for row in history.rows)
    # evaluations and checkpoints log nothing while they last: allow twice their last durations
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
    limit = last.get("hang_timeout_s")
    if limit and age > usual + limit:
        return "dead", (
            "silent for longer than usual plus --hang-timeout-s: the run has ended, or its"
            " watchdogs cannot end it"
        )
    if age > usual:
        return "stalled", "no record for much longer than usual"
    return "running", "" if alive is None else "rank 0 is on this machine"


def slurm_state(job: str | None) -> str | None:
    """The line of squeue about a job; None without squeue or job."""
    if not job or not job.isdecimal() or shutil.which("squeue") is None:
        return None
    try:
        shown = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T, ran %M of %l, %D nodes, %R"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,  # a busy Slurm controller must not block the display
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"job {job}: squeue does not answer"
    line = shown.stdout.strip().splitlines()
    if shown.returncode == 0 and line:
        return f"job {job}: {line[0]}"
    return f"job {job}: not in the queue"


def _checkpoints(out: Path, history: History) -> list[dict[str, Any]]:
    """Checkpoints on disk, newest first. One without a manifest is incomplete; hashes are not
    verified here."""
    logged = {row["step"]: row for row in history.events("checkpoint")}
    found = []
    for folder in sorted((out / "checkpoints").glob("step-*"), reverse=True):
        digits = folder.name.removeprefix("step-")
        if digits.isdecimal():
            event = logged.get(int(digits), {})
            found.append(
                {
                    "step": int(digits),
                    "whole": (folder / "manifest.json").is_file(),
                    "bytes": event.get("bytes"),
                    "time": event.get("time"),
                }
            )
    return found


def _first(content: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first key that is present, else None."""
    return next((content[key] for key in keys if key in content), None)


def read_anomaly(folder: Path) -> dict[str, Any]:
    """The anomaly report in a folder, also one of an earlier version, with today's keys.

    The keys "replay" and, in it, "offending_clips" are always present.
    """
    content: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):  # one file; its name depends on the version
        content = content or read_json(path)
    replay = dict(_first(content, _REPLAY_KEYS) or {})
    replay["offending_clips"] = _first(replay, _CLIP_KEYS) or []
    return {**content, "replay": replay}


def anomalies(out: Path) -> list[dict[str, Any]]:
    """The anomaly reports of a run, oldest step first: step, reason, verdict of the replay."""
    folders = [path for name in _ANOMALY_FOLDERS for path in (out / name).glob("step-*")]
    reports = [read_anomaly(folder) for folder in sorted(folders, key=lambda path: path.name)]
    return [
        {
            "step": report["step"],
            "reason": report.get("reason"),
            "verdict": report["replay"].get("verdict", "not replayed"),
        }
        for report in reports
        if "step" in report
    ]


def _progress(
    history: History, options: dict[str, Any], start: dict[str, Any], now: float
) -> dict[str, Any]:
    """Whether the run is alive, and how far it is."""
    records = history.records
    last = records[-1] if records else {}
    kind, why = status(history, now)
    newest = max((row.get("time", 0.0) for row in history.rows), default=None)
    age = None if newest is None else now - newest
    eta = last.get("eta_s")
    if eta is not None:
        eta = max(0.0, eta - (age or 0.0)) if kind in ("running", "stalled") else None
    return {
        "status": kind,
        "why": why,
        "step": last.get("step", start.get("step", 0)),
        "steps": start.get("steps") or options.get("train", {}).get("steps"),
        "samples": last.get("samples"),
        "eta_s": eta,
        "age_s": age,
    }


def _faults(out: Path, history: History) -> dict[str, Any]:
    """Restarts, damaged checkpoints, stragglers and anomalies."""
    ends = history.events("stop", "error")
    end = {"step": ends[-1]["step"], "reason": ends[-1].get("reason")} if ends else None
    reports = anomalies(out)
    return {
        "starts": len(history.events("start")),
        "last_end": end,
        "damaged": [row.get("problem") for row in history.events("damaged")],
        "stragglers": [row.get("text") for row in history.events("straggler")],
        "anomalies": reports,
        "dossiers": reports,  # the key of earlier versions, for scripts that read --json
    }


def state(out: Path, history: History, now: float) -> dict[str, Any]:
    """Collect everything as plain values.

    Args:
        out: The run's folder.
        history: Its history, which is refreshed first.
        now: Seconds since 1970.

    Returns:
        The object that `tools/watch.py --json` prints.
    """
    history.refresh()
    options, plan = read_json(out / "run.json"), read_json(out / "plan.json")
    records = history.records
    last = records[-1] if records else {}
    starts = history.events("start")
    start = starts[-1] if starts else {}
    names = sorted({name for row in records for name in row["metrics"] if name.endswith("_loss")})
    evaluations = [row for row in history.rows if "evaluation" in row]
    evaluation = None
    if evaluations:
        evaluation = {"step": evaluations[-1]["step"], **evaluations[-1]["evaluation"]}
    planned = {name: plan[name] for name in PLANNED if isinstance(plan.get(name), (int, float))}
    return {
        "run": str(out),
        **_progress(history, options, start, now),
        "ranks": start.get("ranks"),
        "hosts": start.get("hosts"),
        "launcher": start.get("launcher"),
        "slurm": slurm_state(start.get("slurm_job")),
        "losses": {name: [row["metrics"].get(name) for row in records] for name in names},
        **{name: last.get(name) for name in RATES},
        "mfu_convention": start.get("mfu_convention"),
        "planned": planned,
        "slowest": last.get("slowest"),
        "own_s": last.get("own_s"),
        "evaluation": evaluation,
        "skipped_steps": last.get("skipped_steps", 0),
        "bad_clips": last.get("bad_clips", 0),
        "checkpoints": _checkpoints(out, history),
        "faults": _faults(out, history),
    }
