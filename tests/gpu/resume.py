"""Stage (f): a run that is killed with SIGKILL continues bit-equal, and its weights can be used."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from allinone.engine.callbacks.base import Callback, Due
from allinone.engine.distributed import launch
from tests.gpu.stage import CheckFn, Found, Settings, Skip

SAVE_EVERY, KILL_AFTER, STEPS = 2, 5, 6
"""The run is killed after step 5 and continues with the checkpoint of step 4."""
REPEATED = ("loss", "grad_norm", "metrics", "digest")
"""What a record of history.jsonl must repeat."""
WEIGHTS_BOUND = {"cuda": 0.02, "cpu": 1e-5}
"""Relative error of bf16 on a GPU, float32 on a CPU, to float32 on the CPU."""


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    # inherited by the runs; cuBLAS is otherwise free to choose another order of additions
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {
        "two runs are equal": lambda: repeatable(settings),
        "killed and resumed": lambda: resumed(settings),
        "inference from the exported folder": lambda: inference(settings),
    }


class KillAfter(Callback):
    """Kills its process as a lost node does.

    Args:
        step: After this one; 0 never.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, trainer: Any, due: Due) -> None:
        if trainer.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(out: Path, device: str, size: str, micro_batch: int, kill_after: int) -> None:
    """Train one run to its end, or to the step after which it is killed."""
    import torch

    from tests.benchmarks.train_step import StepOptions, make_trainer

    # attention's backward pass and scattered additions are otherwise not reproducible on a GPU;
    # what has no such variant is named in the log, and the first check shows whether it matters
    torch.use_deterministic_algorithms(True, warn_only=True)
    options = StepOptions(
        size=size,
        micro_batch=micro_batch,
        steps=STEPS,
        log_every=SAVE_EVERY,
        ds_config="zero1_bf16",
        device=device,
    )
    run = make_trainer(options, out, STEPS, checkpoints=True)
    run.callbacks = (*run.callbacks, KillAfter(kill_after))
    run.train()


def start(settings: Settings, name: str, kill_after: int = 0) -> int | None:
    """Run `train` in a process of its own; returns its exit code."""
    # this process has started no thread yet, so on a CPU a fork saves the imports; the CUDA driver
    # does not survive a fork
    context = multiprocessing.get_context("spawn" if settings.on_gpu else "fork")
    process = context.Process(target=_run, args=(settings, name, kill_after))
    process.start()
    process.join()
    return process.exitcode


def _run(settings: Settings, name: str, kill_after: int) -> None:
    out = settings.folder / name
    # not sys.exit: see tests/gpu/stage.py
    os._exit(
        launch.main(
            lambda: train(out, settings.device, settings.size, settings.micro_batch, kill_after)
        )
    )


def records(out: Path) -> dict[int, dict[str, Any]]:
    """Step → what its record must repeat."""
    rows = map(json.loads, (out / "history.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: {name: row[name] for name in REPEATED} for row in rows if "metrics" in row}


def differing_weights(first: Path, second: Path) -> list[str]:
    """Names of tensors that are not bit-equal in the newest checkpoints of two runs."""
    from safetensors.torch import load_file

    from allinone.engine.checkpoint.weights import newest_weights

    ours, others = (load_file(newest_weights(out) / "model.safetensors") for out in (first, second))
    assert ours.keys() == others.keys()
    return [name for name, tensor in ours.items() if not tensor.equal(others[name])]


def _compare(settings: Settings, first: str, second: str) -> Found:
    """Whether two finished runs are bit-equal."""
    outs = [settings.folder / name for name in (first, second)]
    histories = [records(out) for out in outs]
    assert max(histories[0]) == STEPS
    steps = [step for step in histories[0] if histories[0][step] != histories[1].get(step)]
    weights = differing_weights(*outs)
    text = f"{len(histories[0])} records of {STEPS} steps and all weights are bit-equal"
    if steps or weights:
        text = f"differ: records of steps {steps}, {len(weights)} tensors ({weights[:3]})"
    return Found(text, {"steps": steps, "weights": weights}, problem=bool(steps or weights))


def repeatable(settings: Settings) -> Found:
    """Without this, bit-equality after a kill would say nothing about resuming."""
    names = ("straight", "again") if settings.on_gpu else ("straight",)
    for name in names:
        if code := start(settings, name):
            return Found(f"the run {name} ended with exit code {code}", problem=True)
    if len(names) == 1:
        raise Skip("the CPU is deterministic: tested by tests/engine")
    return _compare(settings, "straight", "again")


def resumed(settings: Settings) -> Found:
    """Kill a run, start it again, and compare it with the one that was not killed."""
    code = start(settings, "killed", kill_after=KILL_AFTER)
    if code != -signal.SIGKILL:
        return Found(f"the run to be killed ended with exit code {code}", problem=True)
    # the record of step 6 does not exist yet
    before = max(records(settings.folder / "killed"))
    if code := start(settings, "killed"):
        return Found(f"the resumed run ended with exit code {code}", problem=True)
    found = _compare(settings, "straight", "killed")
    text = f"killed after step {KILL_AFTER} (last record: {before}), resumed: {found.summary}"
    return Found(text, found.values, problem=found.problem)


def inference(settings: Settings) -> Found:
    """Load the exported weights as a user does; compare with float32 on the CPU."""
    import torch

    from allinone.engine.checkpoint.weights import find_weights
    from allinone.model import AllInOneForPreTraining
    from tests.benchmarks.train_step import RepeatedBatch

    folder = find_weights(settings.folder / "straight")
    reference = AllInOneForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
    dtype = torch.bfloat16 if settings.on_gpu else torch.float32
    model = AllInOneForPreTraining.from_pretrained(folder, dtype=dtype).eval()
    model = model.to(settings.device)
    batch = RepeatedBatch(reference.config).batch(2, seed=1)
    with torch.inference_mode():
        expected = reference(batch.pixels, batch.text_ids, batch.text_mask).pooled
        moved = batch.to(torch.device(settings.device))
        ours = model(moved.pixels.to(dtype), moved.text_ids, moved.text_mask).pooled
    error = float((ours.cpu().float() - expected).norm() / expected.norm())
    bound = WEIGHTS_BOUND[settings.device]
    text = f"relative error of the pooled features {error:.1e}, bound {bound:g}"
    return Found(text, {"error": error}, problem=not error <= bound)
