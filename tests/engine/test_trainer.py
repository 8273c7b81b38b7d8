"""The real loop as processes: ZeRO stages, world sizes, kill -9, damage, signals, non-finite steps,
wrong options."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.layout import checkpoints, step_of
from allinone.engine.checkpoint.manifest import find_damage
from allinone.engine.checkpoint.weights import newest_weights
from allinone.engine.distributed.launch import free_port
from tests.forked import ForkServer

ROOT = Path(__file__).parents[2]
BASE: dict[str, object] = {"ds_config": "zero1_fp32"}
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": str(ROOT),
}
_server: ForkServer


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ranks are processes of their own but for the imports. That the interpreter itself leaves well
    is tests/pretrain/test_launches.py's business."""
    global _server
    _server = ForkServer(
        tmp_path_factory.mktemp("server"),
        ("deepspeed", "allinone.engine.trainer", "torch.utils.tensorboard"),
        ENV,
    )
    try:
        _server.wait()
        yield
    finally:
        _server.close()


def start(out: Path, world: int = 1, **options: object) -> list[subprocess.Popen[str]]:
    port, ranks = str(free_port()), []
    for rank in range(world):
        env = {**ENV}
        if world > 1:
            env.update(
                RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_RANK=str(rank),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
        line = _server.command("tests/engine/toy.py", str(out), json.dumps({**BASE, **options}))
        ranks.append(
            subprocess.Popen(
                line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return ranks


def start_limited(
    out: Path, limits: dict[str, int], world: int = 1, **options: object
) -> list[subprocess.Popen[str]]:
    """Ranks that cannot write files larger than the rank's limit in bytes, like a full disk
    or quota."""
    return start(out, world, largest_file=limits, **options)


def finish(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], "\n".join(outputs)


def train(out: Path, world: int = 1, **options: object) -> tuple[int, str]:
    codes, output = finish(start(out, world, **options))
    return max(codes, key=abs), output


def history(out: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "metrics" in row]
    assert len({row["step"] for row in rows}) == len(rows), "a step is twice in the history"
    return {row["step"]: row for row in rows}


def losses(out: Path) -> list[float]:
    return [row["metrics"]["fit_loss"] for _, row in sorted(history(out).items())]


def digests(out: Path) -> list[int]:
    return [row["digest"] for _, row in sorted(history(out).items())]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_weights(out) / "model.safetensors")


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


def wait_for_history(out: Path) -> None:
    deadline = time.monotonic() + 60
    while (
        not (out / "history.jsonl").exists()
        or '"metrics"' not in (out / "history.jsonl").read_text()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("world", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGUSR1)]
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


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_bf16", "zero2_bf16"])
def test_only_logging_steps_read_from_the_device(tmp_path: Path, name: str) -> None:
    code, output = train(
        tmp_path / "run", count_waits=True, ds_config=name, log_every=10, save_every=10
    )
    assert code == 0, output
    waits = json.loads(
        next(line for line in output.splitlines() if line.startswith("waits ")).removeprefix(
            "waits "
        )
    )
    assert len(waits) == 20
    assert sum(waits[1:]) == 0, waits  # the first step sets up DeepSpeed's buffers


def test_too_many_skipped_steps_stop_the_run(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", poison=3, max_skipped=0)
    assert code == 4
    assert "--max-skipped" in output


def test_single_skipped_steps_do_not_stop_a_run(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", poison_every=3 * 16, max_skipped=1)
    assert code == 0, output
    assert history(tmp_path / "run")[20]["skipped_steps"] == 7


def test_refused_options_end_all_ranks_with_one_message(reference: Path) -> None:
    begin = time.monotonic()
    codes, output = finish(start(reference, 2, lr=0.5, hang_timeout_s=100))
    assert codes == [2, 2], output
    assert output.count("train.lr") == 1
    assert time.monotonic() - begin < 60


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
    begin = time.monotonic()
    codes, output = finish(
        start_limited(
            tmp_path / "run", {str(full): 4200}, 2, steps=5, log_every=5, hang_timeout_s=100
        )
    )
    assert codes == [3, 3], output
    assert "step-00000005 could not be written" in output
    assert time.monotonic() - begin < 60, "the other rank waited for its time-out"
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_dead_rank_takes_the_others_down(tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", 2, die=10 * 16 + 5, hang_timeout_s=20)
    begin = time.monotonic()
    codes, _ = finish(ranks)
    assert 0 not in codes
    assert time.monotonic() - begin < 90


def test_a_hang_names_rank_step_and_location(tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", 2, hang=10 * 16 + 5, hang_timeout_s=12)
    begin = time.monotonic()
    codes, output = finish(ranks)
    assert codes == [5, 5], "the one that waits keeps its code, though its peer leaves first"
    assert "rank 1 on" in output
    assert "hangs: step 11 did not finish" in output
    assert "in batches" in output, "the place of the hang: toy.py's batches()"
    assert "checked all heartbeats: all ranks are alive, most of them in step 11" in output, (
        "Python sleeps, but the process is there"
    )
    assert time.monotonic() - begin < 60
