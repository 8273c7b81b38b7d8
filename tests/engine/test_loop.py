"""The real loop as processes: ZeRO stages, world sizes, kill -9, damage, signals, non-finite steps, wrong options."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine import checkpoint

ROOT = Path(__file__).parents[2]
BASE: dict[str, object] = {"ds_config": "zero1_fp32"}


def command(out: Path, options: dict[str, object]) -> list[str]:
    return [sys.executable, "-m", "tests.engine.toy", str(out), json.dumps({**BASE, **options})]


def start(out: Path, world: int = 1, **options: object) -> list[subprocess.Popen[str]]:
    from engine.launch import free_port

    port, ranks = str(free_port()), []
    for rank in range(world):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
        if world > 1:
            env.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        ranks.append(
            subprocess.Popen(
                command(out, options), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return ranks


def finish(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], "\n".join(outputs)


def train(out: Path, world: int = 1, **options: object) -> tuple[int, str]:
    codes, output = finish(start(out, world, **options))
    return max(codes, key=abs), output


def history(out: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows), "a step stands twice in the history"
    return {row["step"]: row for row in rows}


def losses(out: Path) -> list[float]:
    return [row["metrics"]["fit_loss"] for _, row in sorted(history(out).items())]


def digests(out: Path) -> list[int]:
    return [row["digest"] for _, row in sorted(history(out).items())]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest_weights(out) / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    code, output = train(out)
    assert code == 0, output
    return out


def test_a_run_writes_every_step_and_keeps_the_newest_checkpoints(whole: Path) -> None:
    assert list(history(whole)) == list(range(1, 21))
    assert [folder.name for folder in checkpoint.checkpoints(whole)] == ["step-00000020", "step-00000015"]
    assert all(checkpoint.damage(folder) is None for folder in checkpoint.checkpoints(whole))
    assert list((whole / "tensorboard").glob("events*"))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_computes_the_same(whole: Path, tmp_path: Path, stage: int) -> None:
    code, output = train(tmp_path / "run", ds_config=f"zero{stage}_fp32")
    assert code == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), abs=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("world", "stage"), [(2, 1), (4, 1), (2, 3)])
def test_every_world_size_sees_the_same_clips_and_computes_the_same(whole: Path, tmp_path: Path, world: int, stage: int) -> None:
    code, output = train(tmp_path / "run", world, ds_config=f"zero{stage}_fp32")
    assert code == 0, output
    assert digests(tmp_path / "run") == digests(whole)
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), abs=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, atol=1e-5, rtol=0)


def test_a_run_killed_at_step_13_continues_bit_equal(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _ = train(out, die=12 * 16 + 5)
    assert code == -signal.SIGKILL
    assert max(history(out)) == 12
    code, output = train(out)
    assert code == 0, output
    assert "resumed from" in output
    assert losses(out) == losses(whole)
    assert digests(out) == digests(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(out)[name], value)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
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
    assert losses(out) == losses(whole)
    assert checkpoint.damage(newest) is None
    assert not list((out / "checkpoints").glob(".tmp*"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not finished"),
        (lambda folder: (folder / "run.json").unlink(), "misses run.json"),
        (lambda folder: (folder / "run.json").write_text("{"), "bytes instead of"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_found_and_said(whole: Path, tmp_path: Path, break_it: Any, message: str) -> None:
    folder = tmp_path / "step-00000020"
    shutil.copytree(whole / "checkpoints" / "step-00000020", folder)
    break_it(folder)
    assert message in str(checkpoint.damage(folder))


def test_sigterm_saves_and_asks_to_be_started_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start(out, steps=100_000, save_every=100_000)
    deadline = time.monotonic() + 60
    while not (out / "history.jsonl").exists() or (out / "history.jsonl").stat().st_size < 500:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks[0].send_signal(signal.SIGTERM)
    codes, output = finish(ranks)
    assert codes == [75], output
    assert "SIGTERM: saved" in output
    assert checkpoint.step_of(checkpoint.checkpoints(out)[0]) == max(history(out))


@pytest.mark.parametrize("options", [{}, {"ds_config": "zero0_fp32"}, {"ds_config": "zero2_fp32"}, {"ds_config": "zero3_fp32"}])
def test_a_step_with_a_nan_leaves_the_weights_alone_and_is_named(tmp_path: Path, options: dict[str, object]) -> None:
    """Step 6 holds the poisoned clip: the weights after it are bit-equal to those after step 5."""
    after = {}
    for steps in (5, 6):
        code, output = train(tmp_path / str(steps), poison=5 * 16 + 3, steps=steps, warmup=100, save_every=1, **options)
        assert code == 0, output
        after[steps] = weights(tmp_path / str(steps))
    assert "step 6 skipped" in output
    assert "clip83" in output
    for name, value in after[5].items():
        assert torch.equal(after[6][name], value), name
        assert torch.isfinite(value).all()


def test_a_nan_on_one_of_two_ranks_skips_the_step_on_both(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", 2, poison=5 * 16 + 3)
    assert code == 0, output
    assert history(tmp_path / "run")[20]["skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_too_many_skipped_steps_stop_the_run(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", poison=3, max_skipped=0)
    assert code == 4
    assert "--max-skipped" in output


def test_changed_options_and_foreign_folders_are_refused(whole: Path, tmp_path: Path) -> None:
    code, output = train(whole, lr=0.5)
    assert code == 2
    assert "train.lr: 0.01 → 0.5" in output
    (tmp_path / "notes.txt").write_text("mine")
    code, output = train(tmp_path)
    assert code == 2
    assert "another --out" in output


def test_the_same_run_again_says_that_it_is_done(whole: Path) -> None:
    code, output = train(whole, log_every=2)
    assert code == 0
    assert "is done" in output


def test_another_world_size_is_refused_with_the_way_out(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "step-00000020")
    code, output = train(out, 2)
    assert code == 2
    assert "Start with 1 ranks" in output


@pytest.mark.parametrize("when", [1, 20_000])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, when: int) -> None:
    """A file-size limit stands for the full disk: writes fail in the middle of a file."""
    out = tmp_path / "run"
    limited = f"import resource,sys,signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({when}, -1)); \
import runpy; sys.argv = {command(out, {})[2:]!r}; runpy.run_module('tests.engine.toy', run_name='__main__')"
    train(out, steps=20, die=7 * 16)
    before = [folder.name for folder in checkpoint.checkpoints(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", limited], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode != 0
    assert [folder.name for folder in checkpoint.checkpoints(out)] == before == ["step-00000005"]
    assert checkpoint.damage(checkpoint.checkpoints(out)[0]) is None


def test_a_dead_rank_takes_the_others_down(tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", 2, die=10 * 16 + 5, hang_timeout_s=20)
    begin = time.monotonic()
    codes, _ = finish(ranks)
    assert 0 not in codes
    assert time.monotonic() - begin < 90
