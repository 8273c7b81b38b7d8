"""Printing never decides over training: broken pipes, locales, log files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from allinone.engine.checkpoint.layout import checkpoints
from allinone.engine.checkpoint.manifest import find_damage
from tests.forked import ROOT, rank_env

ENV = rank_env()


def command(out: Path, **options: object) -> list[str]:
    given = json.dumps({"ds_config": "zero1_fp32", **options})
    return [sys.executable, "-m", "tests.engine.toy", str(out), given]


def last_step(out: Path) -> int:
    if not (out / "history.jsonl").exists():
        return 0
    rows = map(json.loads, (out / "history.jsonl").read_text().splitlines(keepends=False)[:-1])
    return max((row["step"] for row in rows if "metrics" in row), default=0)


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while last_step(out) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_whose_reader_died_obeys_signals_and_saves(tmp_path: Path) -> None:
    """As in `train | tee log`, after Ctrl-C has ended tee."""
    out = tmp_path / "run"
    run = subprocess.Popen(
        command(out, steps=1_000_000, save_every=1_000_000),
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.stdout is not None
    wait_for_step(out, 3)
    run.stdout.close()
    broken_at = last_step(out)
    wait_for_step(out, broken_at + 20)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 75
    (newest,) = checkpoints(out)
    assert find_damage(newest) is None
    log = (out / "logs" / "rank-00000.log").read_text()
    assert "SIGINT: saved" in log


def test_no_locale_breaks_a_message(tmp_path: Path) -> None:
    """The message of a resumed run contains an arrow, which ISO-8859-1 lacks."""
    out = tmp_path / "run"
    locale = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    outputs = []
    for name in ("zero1_fp32", "zero2_fp32"):
        done = subprocess.run(
            command(out, steps=4, save_every=2, ds_config=name),
            cwd=ROOT,
            env={**ENV, **locale, "PYTHONUTF8": "0"},
            capture_output=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout.decode("latin-1"))
    assert "is done" in outputs[1]
    assert "ZeRO 1 \\u2192 2" in outputs[1]
    assert "ZeRO 1 → 2" in (out / "logs" / "rank-00000.log").read_text(encoding="utf-8")


def test_every_rank_logs_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        command(out, steps=2, forks=2, quiet=True),
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2/2" not in done.stdout, "--quiet"
    for rank in (0, 1):
        assert "step 2/2" in (out / "logs" / f"rank-{rank:05d}.log").read_text()
