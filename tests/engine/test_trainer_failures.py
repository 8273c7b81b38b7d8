"""The real loop as processes: signals, non-finite steps, full disks, dead and hanging ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.layout import checkpoints, step_of
from allinone.engine.checkpoint.manifest import find_damage
from tests.engine.toy_processes import (
    finish,
    fork_server,  # noqa: F401 - the fixture starts the server for this module
    history,
    losses,
    start,
    start_limited,
    train,
    weights,
)
from tests.forked import ROOT, rank_env


def wait_for_history(out: Path) -> None:
    deadline = time.monotonic() + 60
    while (
        not (out / "history.jsonl").exists()
        or '"metrics"' not in (out / "history.jsonl").read_text()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("world", "number"),
    [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGUSR1), (1, signal.SIGHUP)],
)
def test_a_signal_to_one_rank_saves_and_requests_a_requeue(
    tmp_path: Path, world: int, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    ranks = start(out, world, steps=100_000, save_every=100_000)
    wait_for_history(out)
    ranks[-1].send_signal(number)
    codes, output = finish(ranks)
    assert codes == [75] * world, output
    assert output.count(f"{number.name}: saved") == 1
    assert step_of(checkpoints(out)[0]) == max(history(out))


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a nested DeepSpeed state, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else []
    )
    return [tensor for item in items for tensor in tensors(item)]


def optimizer_state(folder: Path) -> list[torch.Tensor]:
    """Weights' partitions, moments and step counts of all ranks as DeepSpeed saved them (our own
    files: unpickled in full)."""
    found = []
    for path in sorted((folder / "deepspeed").glob("*.pt")):
        state = torch.load(path, weights_only=False)
        found += tensors(state.get("optimizer_state_dict", state.get("optimizer")))
    assert len(found) >= 6
    return found


@pytest.mark.parametrize(
    ("name", "clip_grad"),
    [
        *((f"zero{stage}_fp32", 0.1) for stage in range(4)),
        ("zero0_fp32", 0.0),
        ("zero1_bf16", 0.1),
        ("zero1_bf16", 0.0),
        ("zero2_bf16", 0.1),
    ],
)
def test_a_nan_leaves_weights_and_moments_bit_equal(
    tmp_path: Path, name: str, clip_grad: float
) -> None:
    """Step 6 holds the poisoned clip: the state after it is that after step 5."""
    out = tmp_path / "run"
    code, output = train(
        out, poison=5 * 16 + 3, steps=6, save_every=1, ds_config=name, clip_grad=clip_grad
    )
    assert code == 0, output
    assert "step 6 skipped" in output
    assert "loss not finite; clips: clip80, clip81, clip82, clip83\n" in output, (
        "only the micro-batch with the bad clip is named"
    )
    assert all(torch.isfinite(torch.tensor(losses(out)))), (
        "the finite micro-batches of the step still count in the curve"
    )
    after, before = checkpoints(out)
    assert (step_of(before), step_of(after)) == (5, 6)
    for old, new in zip(optimizer_state(before), optimizer_state(after), strict=True):
        assert torch.equal(old, new)
    old_weights, new_weights = (
        load_file(folder / "weights" / "model.safetensors") for folder in (before, after)
    )
    assert all(torch.equal(old_weights[key], new_weights[key]) for key in old_weights)


@pytest.mark.parametrize("name", ["zero1_bf16", "zero2_fp32"])
def test_a_nan_on_one_rank_skips_the_step_on_both(tmp_path: Path, name: str) -> None:
    code, output = train(tmp_path / "run", 2, poison=5 * 16 + 5, ds_config=name)
    assert code == 0, output
    assert history(tmp_path / "run")[20]["skipped_steps"] == 1
    assert history(tmp_path / "run")[6]["skipped"] == [
        {"step": 6, "clips": ["clip84", "clip85", "clip86", "clip87"], "loss_finite": False}
    ]
    assert history(tmp_path / "run")[6]["grad_norm"] is None
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_too_many_skipped_steps_stop_the_run(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", poison=3, max_skipped=0)
    assert code == 4
    assert "--max-skipped" in output


def test_skipped_steps_are_counted_without_logging(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output = train(out, poison_every=1, steps=5000, log_every=1_000_000, save_every=10_000)
    assert code == 4, output
    assert max(history(out)) <= 100, "the cap is 50, and flags are read at least every 50 steps"
    assert max(history(out)) > 50


def test_an_exploded_model_is_not_blamed_on_clips(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output = train(out, lr=1e30, max_skipped=5, warmup=0)
    assert code == 4, output
    verdicts = [
        json.loads(path.read_text())["replay"]["verdict"]
        for path in (out / "anomalies").glob("*/report.json")
    ]
    assert verdicts
    assert all("the model has diverged" in verdict for verdict in verdicts), verdicts
    assert not any("clip clip" in verdict for verdict in verdicts)


@pytest.mark.parametrize("reader", ["tee log", "head -1", "tee log | head -1"])
def test_ctrl_c_in_a_pipeline_saves_though_the_reader_dies(tmp_path: Path, reader: str) -> None:
    """The terminal sends SIGINT to the foreground group: training and what reads its output."""
    out, options = tmp_path / "run", {"ds_config": "zero1_fp32", "steps": 100_000}
    line = (
        f'cd {tmp_path}; PYTHONPATH={ROOT} {sys.executable} -m tests.engine.toy {out} "$0"'
        f" | {reader}; echo ${{PIPESTATUS[0]}} > code"
    )
    # the shell itself ignores SIGINT, as an interactive one does; its children do not
    script = f"trap : INT; {line}"
    options["save_every"] = 100_000
    shell = subprocess.Popen(
        ["bash", "-c", script, json.dumps(options)],
        env=rank_env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for_history(out)
    os.killpg(shell.pid, signal.SIGINT)
    shell.wait(120)
    assert (tmp_path / "code").read_text() == "75\n"
    assert step_of(checkpoints(out)[0]) == max(history(out))


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; children inherit it
    try:
        line = [sys.executable, "-m", "tests.engine.toy", str(out), '{"ds_config": "zero1_fp32"}']
        run = subprocess.Popen(line, cwd=ROOT, env=rank_env(), stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_history(out)
    run.send_signal(signal.SIGHUP)
    assert run.wait(120) == 0
    assert step_of(checkpoints(out)[0]) == 20


def test_single_skipped_steps_do_not_stop_a_run(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", poison_every=3 * 16, max_skipped=1)
    assert code == 0, output
    assert history(tmp_path / "run")[20]["skipped_steps"] == 7


@pytest.mark.parametrize("limit", [1, 5_000])
def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path, limit: int) -> None:
    out = tmp_path / "run"
    train(out, steps=20, die=7 * 16)
    codes, output = finish(start_limited(out, {"0": limit}))
    assert codes == [3], output
    assert "error:" in output
    assert "Traceback" not in output
    assert [folder.name for folder in checkpoints(out)] == ["step-00000005"]
    assert find_damage(checkpoints(out)[0]) is None


@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_full_on_one_rank_ends_all_ranks(tmp_path: Path, full: int) -> None:
    codes, output = finish(
        start_limited(
            tmp_path / "run", {str(full): 4200}, 2, steps=5, log_every=5, hang_timeout_s=100
        )
    )
    assert codes == [3, 3], output  # a watchdog would end a rank that waits with 5
    assert "step-00000005 could not be written" in output
    assert "hangs" not in output
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_dead_rank_takes_the_others_down(tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", 2, die=10 * 16 + 5, hang_timeout_s=20)
    codes, output = finish(ranks)
    assert sorted(codes) == [-signal.SIGKILL, 1], output
    assert "another rank has left" in output
    assert "hangs" not in output, "the survivor learns it from its connection, not by its watchdog"


def test_a_hang_names_rank_step_and_location(tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", 2, hang=10 * 16 + 5, hang_timeout_s=12)
    codes, output = finish(ranks)
    assert codes == [5, 5], "the one that waits keeps its code, though its peer leaves first"
    assert "rank 1 on" in output
    assert "hangs: step 11 did not finish within --hang-timeout-s 12" in output
    assert "in batches" in output, "the place of the hang: toy.py's batches()"
    assert "checked all heartbeats: all ranks are alive, most of them in step 11" in output, (
        "Python sleeps, but the process is there"
    )
