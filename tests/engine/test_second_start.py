"""The same run started twice: the second start is refused and disturbs nothing."""

from __future__ import annotations

import time
from pathlib import Path

from allinone.common.run_lock import LOCK
from tests.engine.toy_processes import finish, fork_server, history, start, train  # noqa: F401 - a fixture


def test_the_second_start_is_refused_and_the_first_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = start(out, steps=300, save_every=2)
    end = time.monotonic() + 120
    while not (out / "history.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    code, output = train(out, steps=300, save_every=2)
    assert code == 2, output
    assert f"{out} is in use by another process: pid " in output
    codes, output = finish(first)
    assert codes == [0], output
    assert sorted(history(out)) == list(range(1, 301))
    assert '"event": "error"' not in (out / "history.jsonl").read_text()
    assert not (out / LOCK).exists()


def test_two_starts_at_the_same_moment_make_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = [*start(out, steps=60), *start(out, steps=60)]
    codes, output = finish(both)
    assert sorted(codes) == [0, 2], output
    assert sorted(history(out)) == list(range(1, 61))
    code, output = train(out, steps=60)
    assert code == 0
    assert "is done" in output
