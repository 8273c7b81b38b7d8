"""tools/watch.py: the state of a run, incomplete files, and what is drawn on which terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from allinone.tools.cluster.dashboard import Dashboard, render, sparkline
from allinone.tools.cluster.run_state import History, read_anomaly, state
from allinone.tools.watch import main

NOW = 1_000_000.0
ROOT = Path(__file__).resolve().parents[2]


def record(step: int, at: float, **changes: Any) -> dict[str, Any]:
    row = {
        "step": step,
        "time": at,
        "samples": step * 32,
        "metrics": {"mlm_loss": 8.0 - step / 100, "vtm_loss": 0.7, "mlm_accuracy": 0.1},
        "loss": 8.0,
        "lr": 1e-4,
        "grad_norm": 2.5,
        "samples_per_s": 64.0,
        "step_s": 0.5,
        "mfu": 0.41,
        "data_wait": 0.02,
        "own_s": {"min": 0.1, "median": 0.2, "max": 0.4},
        "slowest": {"rank": 5, "host": "node03", "own_s": 0.4, "ratio": 2.0},
        "memory_bytes": 3 << 30,
        "skipped_steps": 1,
        "bad_clips": 3,
        "eta_s": 100.0,
    }
    return {**row, **changes}


def start(at: float, **changes: Any) -> dict[str, Any]:
    facts = {
        "step": 0,
        "event": "start",
        "time": at,
        "host": "elsewhere",
        "pid": 7,
        "ranks": 8,
        "hosts": ["node03", "node04"],
    }
    return {
        **facts,
        "launcher": "srun",
        "slurm_job": None,
        "steps": 400,
        "hang_timeout_s": 1800.0,
        **changes,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"train": {"steps": 400}}))
    return out


def write(run: Path, rows: list[dict[str, Any]], tail: str = "") -> None:
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def write_report(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def look(run: Path, now: float = NOW) -> dict[str, Any]:
    return state(run, History(run / "history.jsonl"), now)


def steady(until: float, number: int = 8) -> list[dict[str, Any]]:
    """Records 10 s apart, the last one at `until`."""
    return [record(20 * k, until - 10 * (number - k)) for k in range(1, number + 1)]


def test_progress_rates_and_eta_are_those_of_the_last_record(run: Path) -> None:
    write(run, [start(NOW - 200), *steady(NOW - 4)])
    found = look(run)
    facts = (found["status"], found["step"], found["steps"], found["ranks"])
    assert facts == ("running", 160, 400, 8)
    assert found["eta_s"] == pytest.approx(96.0), "four of the hundred seconds have passed"
    assert found["losses"]["mlm_loss"] == pytest.approx([8.0 - 0.2 * k for k in range(1, 9)])
    assert found["age_s"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("rows", "kind", "why"),
    [
        ([start(NOW - 900), *steady(NOW - 300)], "stalled", "longer than usual"),
        ([start(NOW - 9000), *steady(NOW - 3000)], "dead", "hang-timeout"),
        (
            [start(NOW - 200), *steady(NOW - 4), {"step": 160, "event": "finish", "time": NOW - 3}],
            "finished",
            "step 160",
        ),
        (
            [
                start(NOW - 200),
                *steady(NOW),
                {"step": 160, "event": "stop", "time": NOW, "reason": "Stopped: SIGUSR1: saved"},
            ],
            "stopped",
            "SIGUSR1",
        ),
        (
            [
                start(NOW - 200),
                {"step": 3, "event": "error", "time": NOW, "reason": "TooManySkipped: 51 steps"},
            ],
            "failed",
            "51 steps",
        ),
        (
            [
                {"step": 160, "event": "stop", "time": NOW - 50, "reason": "x"},
                start(NOW - 40),
                *steady(NOW),
            ],
            "running",
            "",
        ),
        # the last evaluation took five minutes: an equal silence is not a stall
        (
            [
                start(NOW - 900),
                *steady(NOW - 400),
                {"step": 160, "evaluation": {}, "seconds": 300.0, "time": NOW - 350},
            ],
            "running",
            "",
        ),
        ([], "starting", "nothing"),
    ],
)
def test_the_state_of_a_run_follows_from_its_history(
    run: Path, rows: list[dict[str, Any]], kind: str, why: str
) -> None:
    write(run, rows)
    found = look(run)
    assert (found["status"], why in found["why"]) == (kind, True), found["why"]


def test_a_run_is_dead_as_soon_as_its_local_process_is_gone(
    run: Path,
) -> None:
    import socket

    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    now = time.time()
    for pid, kind in ((child, "dead"), (os.getpid(), "running")):
        write(run, [start(now, host=socket.gethostname(), pid=pid), *steady(now)])
        assert look(run, now)["status"] == kind
    write(run, [start(now - 1e6, host=socket.gethostname(), pid=os.getpid()), *steady(now)])
    assert look(run, now)["status"] == "dead", (
        "a process that is younger than the run has its number by chance"
    )


def test_incomplete_lines_are_read_once_they_are_complete(run: Path) -> None:
    line = json.dumps(record(40, NOW))
    write(run, [record(20, NOW - 10)], "not json\n[1]\n" + line[:30])
    history = History(run / "history.jsonl")
    history.refresh()
    assert [row["step"] for row in history.rows] == [20]
    with (run / "history.jsonl").open("a") as file:
        file.write(line[30:] + "\n")
    history.refresh()
    assert [row["step"] for row in history.rows] == [20, 40]
    replaced = run / "new"
    replaced.write_text(json.dumps(record(20, NOW - 10)) + "\n")
    replaced.replace(run / "history.jsonl")  # as a restart does, which cuts what is run again
    history.refresh()
    assert [row["step"] for row in history.rows] == [20]


def test_faults_checkpoints_and_plans_are_shown(run: Path) -> None:
    damaged = {
        "step": 100,
        "event": "damaged",
        "time": NOW - 150,
        "problem": "checkpoint step-00000120 misses run.json",
    }
    write(
        run,
        [
            start(NOW - 500),
            {"step": 90, "event": "stop", "reason": "SIGTERM", "time": NOW - 400},
            start(NOW - 200),
            damaged,
            *steady(NOW),
        ],
    )
    for step, whole in ((80, True), (120, False)):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "manifest.json").write_text("{}")
    report = {"step": 34, "reason": "loss not finite", "rerun": {"verdict": "reproduced: clip83"}}
    write_report(run / "dossiers" / "step-00000034" / "dossier.json", report)
    (run / "plan.json").write_text(json.dumps({"samples_per_s": 80, "mfu": 0.5}))
    found = look(run)
    assert [(one["step"], one["whole"]) for one in found["checkpoints"]] == [
        (120, False),
        (80, True),
    ]
    assert found["faults"]["starts"] == 2
    text = render(found, 80, colour=False)
    for wanted in (
        "120 (unfinished), 80",
        "clip83",
        "misses run.json",
        "SIGTERM",
        "planned 80",
        "planned 50",
        "rank 5 on node03",
        "3 replaced",
    ):
        assert wanted in text, text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(run: Path, width: int) -> None:
    write(
        run,
        [
            start(NOW - 200, hosts=["h" * 300]),
            *steady(NOW),
            {"step": 160, "evaluation": {f"val/{'x' * k}_R@1": 10.0 for k in range(9)}},
        ],
    )
    lines = render(look(run), width, colour=True).splitlines()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= width


def test_sparklines_show_the_shape_and_leave_gaps() -> None:
    assert sparkline([0.0, 7.0], 8) == "▁█"
    assert sparkline([0.0, None, 7.0], 8) == "▁ █"
    assert sparkline([0.0] * 8 + [7.0] * 8, 4) == "▁▁██"
    assert sparkline([3.0, 3.0], 8) == "▁▁"


def test_json_and_once_exit_with_1_if_the_run_has_failed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, [start(time.time() - 200), *steady(time.time())])
    assert main([str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 160
    write(run, [start(NOW), {"step": 3, "event": "error", "time": NOW, "reason": "x"}])
    assert main([str(run), "--once"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert main([str(run.parent)]) == 2
    assert "inside it are the runs run" in capsys.readouterr().err


def test_anomaly_reports_of_all_versions_are_listed_by_step(run: Path) -> None:
    write(run, [start(NOW - 200), *steady(NOW)])
    old = {"step": 9, "reason": "a", "rerun": {"verdict": "x", "guilty": [{"position": 3}]}}
    new = {"step": 5, "reason": "b", "replay": {"verdict": "y", "offending_clips": []}}
    write_report(run / "dossiers" / "step-00000009" / "dossier.json", old)
    write_report(run / "anomalies" / "step-00000005" / "report.json", new)
    write_report(run / "anomalies" / "step-00000012" / "report.json", {"step": 12, "reason": "c"})
    found = look(run)["faults"]["anomalies"]
    assert [(one["step"], one["verdict"]) for one in found] == [
        (5, "y"),
        (9, "x"),
        (12, "not replayed"),
    ]
    report = read_anomaly(run / "dossiers" / "step-00000009")
    assert report["replay"]["offending_clips"] == [{"position": 3}]


def test_blank_lines_are_dropped_where_the_screen_is_too_low(run: Path) -> None:
    write(run, [start(NOW - 200), *steady(NOW)])
    console = Console(width=80)
    dashboard = Dashboard(look(run), 80)
    high = console.render_lines(dashboard, console.options.update(height=40))
    low = console.render_lines(dashboard, console.options.update(height=13))
    text = ["".join(segment.text for segment in line).strip() for line in low]
    assert len(high) == 40
    assert len(low) == 13
    assert all(text)
    assert text[-1].startswith("restarts")


def in_terminal(run: Path, columns: int, rows: int, term: str) -> tuple[int, str]:
    """Run watch.py in a terminal for a while, press Ctrl-C: (exit code, output)."""
    pid, terminal = pty.fork()
    if pid == 0:
        # a shell ignores SIGINT for what it starts in the background, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        environment = {**os.environ, "TERM": term}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        command = [sys.executable, str(ROOT / "tools/watch.py"), str(run), "--interval", "0.1"]
        os.execve(sys.executable, command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    output = b""
    interrupted = False
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([terminal], [], [], 0.1)
            content = os.read(terminal, 65536) if ready else b""
            output += content
            if output.count(HOME) >= 3 and not interrupted:  # it has redrawn
                interrupted = True
                os.write(terminal, b"\x03")
    except OSError:  # the terminal's other end is closed
        pass
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


HOME = b"\x1b[H"
"""Moves the cursor to the top: once per update."""


@pytest.mark.parametrize(("columns", "rows"), [(80, 30), (1, 4)])
def test_a_terminal_is_redrawn_until_ctrl_c_and_restored(
    run: Path, columns: int, rows: int
) -> None:
    write(run, [start(time.time() - 200), *steady(time.time())])
    code, output = in_terminal(run, columns, rows, "xterm")
    assert code == 0, output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l"), "the cursor stays hidden"
    assert output.rfind("\x1b[?1049l") > output.rfind("\x1b[?1049h"), "still in the other screen"


def test_a_terminal_without_cursor_movement_is_printed_once(run: Path) -> None:
    write(run, [start(time.time() - 200), *steady(time.time())])
    code, output = in_terminal(run, 80, 30, "dumb")
    assert code == 0, output
    assert "step 160 of 400" in output
    assert "\x1b" not in output


def test_a_run_name_is_never_read_as_markup(run: Path) -> None:
    write(run, [start(NOW - 200), *steady(NOW)])
    found = look(run) | {"run": "runs/[red]a[/]", "why": "[/bold] reason"}
    text = render(found, 80, colour=False)
    assert "runs/[red]a[/]" in text
    assert "[/bold] reason" in text


def test_options_that_cannot_be_used_end_with_2(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, [])
    for interval in ("0", "nan", "inf"):
        assert main([str(run), "--once", "--interval", interval]) == 2
        assert "--interval is in seconds and at least 0.1" in capsys.readouterr().err
