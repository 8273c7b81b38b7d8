"""The trainer's attributes, its state in checkpoints, and the order of the hooks."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch

from allinone.engine.callbacks.evaluation import EvaluationCallback
from allinone.engine.callbacks.garbage import GarbageCallback
from allinone.engine.checkpoint.best import Selection
from allinone.engine.config import TrainConfig
from allinone.engine.monitoring.accumulator import IntervalMetrics
from allinone.engine.monitoring.stopwatch import Stopwatch
from allinone.engine.state import TrainState

if TYPE_CHECKING:
    from allinone.engine import Trainer
    from allinone.engine.callbacks.base import Interval

ROOT = Path(__file__).parents[3]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
PROGRAM = """
import json, sys
from pathlib import Path
from allinone.engine.distributed import launch
launch.prepare_environment()
from allinone.engine import Trainer
from allinone.engine.callbacks.base import Callback
from allinone.engine.config import TrainConfig
from tests.engine.toy import ToyData, ToyModel, objective

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]
calls = []

class Spy(Callback):
    pass

for hook in HOOKS:
    setattr(Spy, hook, lambda self, trainer, *_, hook=hook: calls.append(f"{hook} {trainer.step}"))

config = TrainConfig(steps=4, global_batch=8, micro_batch=4, log_every=2, save_every=4,
                     eval_every=2, eval_at_start=True, device="cpu", ds_config="zero1_fp32")
trainer = Trainer(config, model=ToyModel(), objective=objective, data=ToyData(), run_config={},
                  out=Path(sys.argv[1]), evaluate=lambda model, device: {"score": 1.0})
trainer.callbacks = (*trainer.callbacks[:-1], Spy(), trainer.callbacks[-1])
trainer.train()
launch._close_process_group()
print("RESULT", json.dumps({"attributes": sorted(vars(trainer)), "calls": calls}))
"""


def test_attributes_and_order_of_hooks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    done = subprocess.run(
        command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    assert len(result["attributes"]) <= 15, result["attributes"]
    assert result["calls"] == [
        "on_start 0",
        "on_evaluation 0",
        "on_step_end 1",
        "on_interval 2",
        "on_checkpoint 2",
        "on_step_end 2",
        "on_evaluation 2",
        "on_step_end 3",
        "on_interval 4",
        "on_checkpoint 4",
        "on_step_end 4",
        "on_evaluation 4",
        "on_end 4",
        "on_close 4",
    ]
    rows = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    kinds = [row.get("event") or ("metrics" if "metrics" in row else "evaluation") for row in rows]
    assert kinds == [
        "start",
        "evaluation",
        *("metrics", "checkpoint", "evaluation") * 2,
        "finish",
    ]


def test_garbage_is_collected_on_logging_steps_only() -> None:
    class Node:
        """Part of a cycle."""

    def cycle() -> weakref.ref[Node]:
        one, other = Node(), Node()
        one.other, other.other = other, one  # type: ignore[attr-defined]
        return weakref.ref(one)

    callback, trainer = GarbageCallback(), cast("Trainer", None)
    callback.on_close(trainer, None)
    assert gc.isenabled(), "a run that never started changes nothing"
    callback.on_start(trainer)
    try:
        dropped = cycle()
        # more than a generation's threshold of objects
        kept = [[number] for number in range(100_000)]
        assert dropped() is not None
        callback.on_interval(trainer, cast("Interval", None))
        assert dropped() is None
        assert len(kept) == 100_000
    finally:
        callback.on_close(trainer, None)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def interval(*skips: bool) -> IntervalMetrics:
    steps = list(range(1, 1 + len(skips)))
    zeros = [0.0] * len(skips)
    return IntervalMetrics(steps, {}, list(skips), zeros, zeros, [], 77, 5, [0.0], [0.0], 0)


def test_skipped_steps_in_a_row_end_with_a_good_step() -> None:
    state = TrainState()
    state.add_interval(interval(True, False, True, True))
    assert (state.skipped, state.skipped_in_a_row) == (3, 2)
    state.add_interval(interval(True))
    assert (state.skipped, state.skipped_in_a_row) == (4, 3)
    state.add_interval(interval(False))
    assert (state.skipped, state.skipped_in_a_row) == (4, 0)
    assert (state.digest, state.bad_clips) == (77, 5)


def test_the_state_survives_a_checkpoint() -> None:
    state = TrainState(9, 2, 1, 12345, 3, {"step": 8, "value": 0.5})
    facts = {"samples": 72, "world": 2, **state.progress(), **state.totals()}
    restored = TrainState.from_checkpoint(json.loads(json.dumps(facts)))
    assert restored == state


def test_checkpoints_of_earlier_versions_have_no_best() -> None:
    facts = {"step": 3, "skipped": 0, "skipped_in_a_row": 0, "digest": 1, "bad_clips": 0}
    assert TrainState.from_checkpoint(facts) == TrainState(3, 0, 0, 1, 0, None)


@pytest.mark.parametrize("wanted", [True, False])
def test_an_evaluation_before_the_first_step_selects_nothing(tmp_path: Path, wanted: bool) -> None:
    seen: list[object] = []
    callback = EvaluationCallback(lambda *_: {"score": 9.0}, Selection("score"), tmp_path)
    trainer = SimpleNamespace(
        state=TrainState(),
        config=TrainConfig(eval_at_start=wanted),
        spec=SimpleNamespace(model=torch.nn.Identity(), out=tmp_path),
        device=torch.device("cpu"),
        engine=SimpleNamespace(average=None),
        stopwatch=Stopwatch(),
        begin_activity=lambda *_: None,
        callbacks=[SimpleNamespace(on_evaluation=lambda _, results, __: seen.append(results))],
    )
    callback.initialize(trainer.state)
    before = trainer.state.best
    callback.before_first_step(cast("Trainer", trainer))
    assert seen == [{"score": 9.0}] * wanted
    assert trainer.state.best == before
    assert not list(tmp_path.iterdir())
