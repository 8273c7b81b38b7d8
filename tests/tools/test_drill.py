"""tools/drill.py: a killed rank and a bad clip; and that a drill can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from allinone.tools.cluster.drill_faults import DRILLS
from allinone.tools.cluster.drill_site import DrillOutcome, compare
from allinone.tools.cluster.rank_server import GRACE_S, RankProcesses
from allinone.tools.drill import Fault, main, table

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_rank_and_a_bad_clip_meet_their_expectations(tmp_path: Path) -> None:
    tool = str(ROOT / "tools/drill.py")
    options = ["--only", "kill", "nan", "--json", "--out", str(tmp_path / "out")]
    command = [sys.executable, tool, *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kill, nan = json.loads(done.stdout)
    assert (kill["name"], kill["equal"], kill["wrong"]) == ("kill", "yes", [])
    assert kill["steps_lost"] > 0, "a killed rank cannot save"
    assert (nan["name"], nan["wrong"], nan["steps_lost"]) == ("nan", [], 0)
    reference, changed = tmp_path / "out" / "undisturbed", tmp_path / "out" / "kill"
    assert compare(changed, reference) == "yes"
    lines = (changed / "history.jsonl").read_text().splitlines()
    number = next(
        k
        for k, line in enumerate(lines)
        if json.loads(line)["step"] == 9 and "metrics" in json.loads(line)
    )
    lines[number] = json.dumps(json.loads(lines[number]) | {"digest": 1})
    (changed / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert compare(changed, reference) == "digest of step 9 differs", (
        "equality must be able to fail"
    )


def test_the_table_shows_unmet_expectations() -> None:
    row = DrillOutcome(
        "kill",
        "kill -9 of rank 1",
        0.2,
        "exit codes [1, -9]",
        3,
        "loss of step 4 differs",
        ["not equal", "too late"],
    )
    assert "| 3 | loss of step 4 differs | no: not equal; too late |" in table([row])


def test_every_drill_can_be_chosen() -> None:
    assert get_args(Fault) == tuple(DRILLS)


def test_a_failed_rank_ends_the_others_even_a_stopped_one(tmp_path: Path) -> None:
    def rank_main(rank: int) -> int:
        if rank == 1:
            return 7
        if rank == 2:
            os.kill(os.getpid(), 19)
        raise ValueError("the reason")

    ranks = RankProcesses(3, tmp_path / "logs", rank_main)
    assert ranks.finish(timeout_s=60) == [1, 7, -9]
    assert "the reason" in ranks.output()
    assert max(ranks.ended.values()) - min(ranks.ended.values()) < GRACE_S + 5


def test_unusable_options_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert main(["--ranks", "1"]) == 2
    assert main(["--json", "--markdown"]) == 2
    assert main(["--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
