"""The dashboard: what it says of running, finished, stopped, dead and stalled runs, and how it
copes with files in the middle of being written."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from allinone.tools.cluster.run_state import History, state
from allinone.tools.watch import Screen, main, sparkline

NOW = 1_000_000.0


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


def look(run: Path, now: float = NOW) -> dict[str, Any]:
    return state(run, History(run / "history.jsonl"), now)


def steady(until: float, number: int = 8) -> list[dict[str, Any]]:
    """Records 10 s apart, the last one at `until`."""
    return [record(20 * k, until - 10 * (number - k)) for k in range(1, number + 1)]


def test_progress_rates_and_eta_are_those_of_the_last_record(run: Path) -> None:
    write(run, [start(NOW - 200), *steady(NOW - 4)])
    found = look(run)
    assert (found["status"], found["step"], found["steps"], found["ranks"]) == (
        "running",
        160,
        400,
        8,
    )
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
        # one evaluation took five minutes: as much silence again is no stall
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
def test_the_state_of_a_run_is_told_from_its_history(
    run: Path, rows: list[dict[str, Any]], kind: str, why: str
) -> None:
    write(run, rows)
    found = look(run)
    assert (found["status"], why in found["why"]) == (kind, True), found["why"]


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once_and_one_that_lives_is_not(
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


def test_half_written_and_broken_lines_are_left_out_and_read_when_they_are_whole(run: Path) -> None:
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
    dossier = run / "dossiers" / "step-00000034"
    dossier.mkdir(parents=True)
    (dossier / "dossier.json").write_text(
        json.dumps(
            {"step": 34, "reason": "loss not finite", "rerun": {"verdict": "reproduced: clip83"}}
        )
    )
    (run / "plan.json").write_text(json.dumps({"samples_per_s": 80, "mfu": 0.5}))
    found = look(run)
    assert [(one["step"], one["whole"]) for one in found["checkpoints"]] == [
        (120, False),
        (80, True),
    ]
    assert found["faults"]["starts"] == 2
    text = "\n".join(Screen(80, False).draw(found))
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
    lines = Screen(width, True).draw(look(run))
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= width


def test_sparklines_show_the_shape_and_leave_gaps() -> None:
    assert sparkline([0.0, 7.0], 8) == "▁█"
    assert sparkline([0.0, None, 7.0], 8) == "▁ █"
    assert sparkline([0.0] * 8 + [7.0] * 8, 4) == "▁▁██"
    assert sparkline([3.0, 3.0], 8) == "▁▁"


def test_the_command_prints_json_and_its_exit_code_tells_trouble(
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
