"""A disturbed disk, as system calls that fail in a real run: what must be written ends the run with
its own exit code, and what only reports never does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.engine.checkpoint.best import BestCheckpoint, Selection
from allinone.engine.checkpoint.layout import checkpoints
from allinone.engine.checkpoint.manifest import find_damage, newest_complete, set_aside
from tests.engine.toy_processes import (
    fork_server,  # noqa: F401 - the fixture starts the server for this module
    history,
    losses,
    train,
    weights,
)

REPORTS = [
    {"call": "append", "match": "history.jsonl"},
    {"call": "tensorboard"},
    {"call": "fsync", "match": "plan.json"},
    {"call": "fsync", "match": "run.lock", "skip": 1},  # that of the claim itself
]


def fault(call: str, error: str, **options: Any) -> dict[str, Any]:
    return {"call": call, "error": error, **options}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = train(out)
    assert code == 0, output
    return out


def assert_same_weights(out: Path, other: Path) -> None:
    a, b = weights(out), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("error", "match", "skip"),
    [
        ("EIO", "checkpoints/", 9),
        ("ESTALE", "checkpoints/", 2),
        ("ETIMEDOUT", "weights/model.safetensors$", 1),
        ("EIO", "checkpoints$", 1),  # after the rename
    ],
)
def test_one_failed_write_of_a_checkpoint_is_repeated(
    tmp_path: Path, undisturbed: Path, error: str, match: str, skip: int
) -> None:
    out = tmp_path / "run"
    code, output = train(out, faults=[fault("fsync", error, match=match, times=1, skip=skip)])
    assert code == 0, output
    assert "Traceback" not in output
    assert output.count("is written a second time") == 1
    assert all(find_damage(folder) is None for folder in checkpoints(out))
    assert not list(out.glob("checkpoints/.tmp-*"))
    assert_same_weights(out, undisturbed)


@pytest.mark.parametrize(
    ("error", "expected"),
    [("EIO", 1), ("EROFS", 1), ("ESTALE", 1), ("EBUSY", 1), ("ENOSPC", 3), ("EDQUOT", 3)],
)
def test_only_a_full_disk_has_the_code_of_a_full_disk(
    tmp_path: Path, error: str, expected: int
) -> None:
    out = tmp_path / "run"
    # after the checkpoint of step 5; a checkpoint of this run has 5 to 30 fsyncs
    code, output = train(out, faults=[fault("fsync", error, match="step-00000010")])
    assert code == expected, output
    assert "Traceback" not in output
    assert output.count("checkpoint step-00000010 could not be written") == 1
    assert ("the disk or a quota is full" in output) == (expected == 3)
    assert [folder.name for folder in checkpoints(out)] == ["step-00000005"]
    code, output = train(out)  # the same command continues
    assert code == 0, output


@pytest.mark.parametrize("call", ["unlink", "rmdir", "rename"])
def test_what_cannot_be_deleted_fails_no_save(tmp_path: Path, undisturbed: Path, call: str) -> None:
    out = tmp_path / "run"
    match = "/checkpoints/step-" if call == "rename" else "old-step-"
    code, output = train(out, keep_last=1, faults=[fault(call, "EBUSY", match=match)])
    assert code == 0, output
    assert "Traceback" not in output
    assert find_damage(checkpoints(out)[0]) is None
    assert_same_weights(out, undisturbed)
    code, output = train(out, keep_last=1, steps=25)
    assert code == 2, output  # other options: the leftovers do not hide the run
    assert "steps" in output


@pytest.mark.parametrize("error", ["EIO", "EROFS", "ENOSPC", "ESTALE"])
def test_reports_that_cannot_be_written_stop_no_run(
    tmp_path: Path, undisturbed: Path, error: str
) -> None:
    out = tmp_path / "run"
    code, output = train(out, faults=[{**report, "error": error} for report in REPORTS])
    assert code == 0, output
    assert "Traceback" not in output
    assert_same_weights(out, undisturbed)
    # 20 records, and as many points: the first and the tenth failure of each kind are named
    assert 3 <= output.count("is not written (") <= 8, output


def test_the_history_is_complete_after_a_disturbance(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    faults = [fault("append", "EIO", match="history.jsonl", times=7, skip=6)]
    faults += [fault("tensorboard", "EIO", times=2, skip=9)]
    code, output = train(out, faults=faults)
    assert code == 0, output
    assert sorted(history(out)) == list(range(1, 21))
    assert losses(out) == losses(undisturbed)
    assert len(list(out.glob("tensorboard/events*"))) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"time": 3}\n',
        b'{"step": "x"}\n',
        b"\0\0\0\n",
        b"[" * 9999 + b"\n",
    ],
)
def test_a_damaged_history_stops_no_run(tmp_path: Path, damage: bytes) -> None:
    out = tmp_path / "run"
    code, output = train(out, steps=20, die=17 * 16)
    lines = (out / "history.jsonl").read_bytes().splitlines(keepends=True)
    (out / "history.jsonl").write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
    code, output = train(out, steps=20)
    assert code == 0, output
    assert "1 damaged lines are removed" in output
    assert sorted(history(out)) == [step for step in range(1, 21) if step != 0]


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": "\xff"}',
        b"\xff\xfe\x00",
        b"",
        b"[1, 2]",
        b"null",
        b'{"x": 3}',
        b'{"x": {"bytes": 3}}',
        b'{"a\\u0000b": {"bytes": 1, "sha256": ""}}',
        b"[" * 100_000,
    ],
)
def test_any_unreadable_manifest_is_damage(
    tmp_path: Path, undisturbed: Path, content: bytes
) -> None:
    newest, older = checkpoints(undisturbed)
    for folder in (newest, older):
        copy = tmp_path / "checkpoints" / folder.name
        copy.mkdir(parents=True)
        for path in folder.rglob("*"):
            if path.is_file():
                (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    damaged = tmp_path / "checkpoints" / newest.name
    (damaged / "manifest.json").write_bytes(content)
    found, notes = newest_complete(tmp_path)
    assert found == tmp_path / "checkpoints" / older.name
    assert len(notes) == 1
    assert str(damaged) in notes[0]
    for _ in range(2):  # also if the same step was set aside before
        set_aside([damaged])
        assert not damaged.exists()
        damaged.mkdir()


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"evaluated": 3', b'{"other": 1}', b"3"])
def test_a_damaged_note_of_evaluations_repeats_one(tmp_path: Path, content: bytes) -> None:
    best = BestCheckpoint(Selection("accuracy"), tmp_path)
    best.update(10, {"accuracy": 1.0})
    best.save()
    assert best._evaluated_after(10) is not None
    (tmp_path / "best.json").write_bytes(content)
    assert best._evaluated_after(10) is None


def test_a_run_goes_on_from_an_older_manifest(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, steps=20, die=17 * 16)
    newest = checkpoints(out)[0]
    entries = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_bytes(json.dumps(entries).encode()[:-1] + b"\x80")
    code, output = train(out, steps=20)
    assert code == 0, output
    assert "manifest.json cannot be read" in output
    assert "resumed from" in output
    assert sorted(history(out)) == list(range(1, 21))
