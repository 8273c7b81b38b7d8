"""The methods of fine-tuning through the commands: both weights are evaluated, kills change
nothing, and what has no effect is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from allinone.engine.checkpoint.weights import best_weights
from allinone.finetune.evaluation.results import read_results
from tests.finetune.official import WRITERS
from tests.finetune.runs import Ended, run_jobs
from tests.finetune.test_runs import command
from tests.tools.conftest import tiny_model

EMA = ("--ema", "0.5", "--weights", "ema")
QA = ("--steps", "4", *EMA, "--layer-decay", "0.5", "--label-smoothing", "0.1")
ACTIONS = ("--steps", "4", "--probe", "full", "--mixup", "0.8", "--label-smoothing", "0.1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    for name in ("msrvtt", "kinetics"):
        WRITERS[name](folder / name)
    tiny_model().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    evaluate = ("--eval-only", "--weights", "ema")
    jobs = {
        "qa": command(root, "msrvtt_qa", "qa", *QA),
        "qa killed": command(root, "msrvtt_qa", "qa_killed", *QA, kill_at=4),
        "qa continued": command(root, "msrvtt_qa", "qa_killed", *QA),
        "qa again": command(root, "msrvtt_qa", "again", *evaluate, checkpoint="out/qa"),
        "actions": command(root, "k400_linear", "actions", *ACTIONS, data="kinetics"),
        "actions killed": command(
            root, "k400_linear", "actions_killed", *ACTIONS, data="kinetics", kill_at=4
        ),
        "actions continued": command(
            root, "k400_linear", "actions_killed", *ACTIONS, data="kinetics"
        ),
        "frozen": command(root, "k400_linear", "frozen", "--layer-decay", "0.5", data="kinetics"),
        "no average": command(root, "msrvtt_qa", "none", *evaluate),
    }
    return dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))


def history(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def test_weights_and_average_are_both_evaluated_and_ema_selects(
    root: Path, ended: dict[str, Ended]
) -> None:
    assert ended["qa"].codes == [0], ended["qa"].output
    out = root / "out" / "qa"
    scored = [row["evaluation"] for row in history(out) if "evaluation" in row]
    assert scored
    for row in scored:
        names = {name for name in row if not name.startswith("ema/")}  # type: ignore[attr-defined]
        assert {f"ema/{name}" for name in names} == row.keys() - names  # type: ignore[attr-defined]
    best = json.loads((out / "best.json").read_text())
    assert best["value"] == max(row["ema/select"] for row in scored)  # type: ignore[index]
    assert best_weights(out, "ema").name == "ema"
    ((_, result),) = read_results(out)
    assert result.checkpoint == str(best_weights(out, "ema"))
    assert "initial weights still count 6.2 %" in ended["qa"].output


def test_eval_only_scores_the_average_of_a_run(root: Path, ended: dict[str, Ended]) -> None:
    assert ended["qa again"].codes == [0], ended["qa again"].output
    ((_, trained),), ((_, again),) = (read_results(root / "out" / name) for name in ("qa", "again"))
    assert again.checkpoint_sha256 == trained.checkpoint_sha256
    assert {n: s.value for n, s in again.scores.items()} == {
        n: s.value for n, s in trained.scores.items()
    }
    assert ended["no average"].codes == [2]
    assert "holds one set of weights" in ended["no average"].output


@pytest.mark.parametrize(("name", "kinds"), [("qa", ("weights", "ema")), ("actions", ("weights",))])
def test_a_killed_run_gives_the_same_weights(
    root: Path, ended: dict[str, Ended], name: str, kinds: tuple[str, ...]
) -> None:
    assert ended[f"{name} killed"].codes != [0]
    assert ended[f"{name} continued"].codes == [0], ended[f"{name} continued"].output
    for kind in kinds:
        step = Path("checkpoints/step-00000004") / kind / "model.safetensors"
        expected, found = (load_file(root / "out" / n / step) for n in (name, f"{name}_killed"))
        assert all(torch.equal(found[key], expected[key]) for key in expected), kind


def test_tensorboard_shows_the_rate_of_every_layer(root: Path, ended: dict[str, Ended]) -> None:
    assert ended["qa"].codes == [0]
    board = EventAccumulator(str(root / "out" / "qa" / "tensorboard"))
    board.Reload()
    rates = {
        tag: board.Scalars(tag)[-1].value
        for tag in board.Tags()["scalars"]
        if tag.startswith("run/lr")
    }
    blocks = tiny_model().config.num_hidden_layers
    multiples = [0.5**k for k in range(blocks + 2)] + [10.0]  # the head has ten times --lr
    assert rates.keys() == {"run/lr", *(f"run/lr/x{multiple:.4g}" for multiple in multiples)}
    for multiple in multiples:
        found = rates[f"run/lr/x{multiple:.4g}"]
        assert found == pytest.approx(multiple * rates["run/lr"])


def test_layer_decay_of_a_frozen_backbone_is_refused(ended: dict[str, Ended]) -> None:
    assert ended["frozen"].codes == [2]
    assert "--layer-decay 0.5 has no effect on a frozen backbone" in ended["frozen"].output
