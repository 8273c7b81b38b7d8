"""The real loop as processes: layouts that compute the same, restarts, damage, refusals."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from allinone.engine.checkpoint.layout import checkpoints, step_of
from allinone.engine.checkpoint.manifest import find_damage
from tests.engine.toy_processes import (
    digests,
    finish,
    fork_server,  # noqa: F401 - the fixture starts the server for this module
    history,
    losses,
    start,
    train,
    weights,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    code, output = train(out)
    assert code == 0, output
    return out


def test_a_run_writes_every_step_and_keeps_checkpoints(reference: Path) -> None:
    assert list(history(reference)) == list(range(1, 21))
    assert [folder.name for folder in checkpoints(reference)] == [
        "step-00000020",
        "step-00000015",
    ]
    assert all(find_damage(folder) is None for folder in checkpoints(reference))
    assert list((reference / "tensorboard").glob("events*"))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_computes_the_same(reference: Path, tmp_path: Path, stage: int) -> None:
    code, output = train(tmp_path / "run", ds_config=f"zero{stage}_fp32")
    assert code == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), abs=1e-5)
    for name, value in weights(reference).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("world", "stage"), [(2, 1), (4, 1), (2, 3)])
def test_every_world_size_computes_the_same(
    reference: Path, tmp_path: Path, world: int, stage: int
) -> None:
    code, output = train(tmp_path / "run", world, ds_config=f"zero{stage}_fp32")
    assert code == 0, output
    assert digests(tmp_path / "run") == digests(reference)
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), abs=1e-5)
    for name, value in weights(reference).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, atol=1e-5, rtol=0)


def test_a_run_killed_at_step_13_continues_bit_equal(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _ = train(out, die=12 * 16 + 5)
    assert code == -signal.SIGKILL
    assert max(history(out)) == 12
    code, output = train(out)
    assert code == 0, output
    assert "resumed from" in output
    assert losses(out) == losses(reference)
    assert digests(out) == digests(reference)
    for name, value in weights(reference).items():
        assert torch.equal(weights(out)[name], value)


def test_a_damaged_checkpoint_falls_back_to_the_previous(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    newest = out / "checkpoints" / "step-00000020"
    victim = next((newest / "deepspeed").glob("*optim_states.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (out / "checkpoints" / ".tmp-step-00000025").mkdir()
    code, output = train(out)
    assert code == 0, output
    assert victim.name in output
    assert "step-00000015" in output
    assert losses(out) == losses(reference)
    assert find_damage(newest) is None
    assert (newest.parent / "damaged-step-00000020").exists()
    assert not list((out / "checkpoints").glob(".tmp*"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not finished"),
        (lambda folder: (folder / "run.json").unlink(), "is missing run.json"),
        (lambda folder: (folder / "run.json").write_text("{"), "bytes instead of"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_found_and_said(
    reference: Path, tmp_path: Path, break_it: Any, message: str
) -> None:
    folder = tmp_path / "step-00000020"
    shutil.copytree(reference / "checkpoints" / "step-00000020", folder)
    break_it(folder)
    assert message in str(find_damage(folder))


def test_a_damaged_checkpoint_is_not_counted_as_kept(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    shutil.copytree(
        reference / "checkpoints" / "step-00000020", out / "checkpoints" / "step-00000030"
    )
    for step in (20, 30):
        (out / "checkpoints" / f"step-{step:08d}" / "run.json").unlink()
    code, output = train(out, keep_last=1)
    assert code == 0, output
    assert [(folder.name, find_damage(folder)) for folder in checkpoints(out)] == [
        ("step-00000020", None)
    ]


def test_a_run_never_restarts_if_all_checkpoints_are_bad(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    for folder in checkpoints(out):
        (folder / "manifest.json").unlink()
    code, output = train(out)
    assert code == 2
    assert "to start again from step 0" in output
    assert history(out) == history(reference)


def test_refused_options_end_all_ranks_with_one_message(reference: Path) -> None:
    codes, output = finish(start(reference, 2, lr=0.5, hang_timeout_s=100))
    assert codes == [2, 2], output
    assert output.count("train.lr") == 1


def test_changed_options_and_foreign_folders_are_refused(reference: Path, tmp_path: Path) -> None:
    code, output = train(reference, lr=0.5)
    assert code == 2
    assert "train.lr: 0.01 → 0.5" in output
    (tmp_path / "notes.txt").write_text("mine")
    code, output = train(tmp_path)
    assert code == 2
    assert "another --out" in output


def test_a_finished_run_reports_that_it_is_done(reference: Path) -> None:
    code, output = train(reference, log_every=2)
    assert code == 0
    assert "is done" in output


def test_an_interrupted_evaluation_is_made_up_for(tmp_path: Path) -> None:
    out, options = tmp_path / "run", {"die_evaluating": True, "eval_every": 3, "save_every": 100}
    code, output = train(out, steps=3, **options)
    assert code == -signal.SIGKILL, output
    assert [step_of(folder) for folder in checkpoints(out)] == [3]
    for said in ("evaluation at step 3", "is done: step 3 of 3"):
        code, output = train(out, steps=3, **options)
        assert code == 0, output
        assert said in output
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation" in row] == [3]


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """Every step is a checkpoint, so that most kills fall into the writing of one."""
    code, output = train(tmp_path / "reference", save_every=1, keep_last=3, steps=60)
    assert code == 0, output
    out, random = tmp_path / "killed", Random(0)
    for _ in range(5):
        before = checkpoints(out)[:1]
        (rank,) = start(out, save_every=1, keep_last=3, steps=60)
        while checkpoints(out)[:1] == before and rank.poll() is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        rank.kill()
        rank.communicate()
        assert rank.returncode == -signal.SIGKILL, (
            "the run ended before it was killed: give it more steps"
        )
        assert all(find_damage(folder) is None for folder in checkpoints(out))
    code, output = train(out, save_every=1, keep_last=3, steps=60)
    assert code == 0, output
    assert losses(out) == losses(tmp_path / "reference")
    assert digests(out) == digests(tmp_path / "reference")
