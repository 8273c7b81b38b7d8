"""The MLM loss is that of the global batch, however micro-batches, accumulation and ranks split
it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from allinone.common.earlier_runs import parse_for_run
from allinone.common.options import with_values
from allinone.pretrain.config import PretrainConfig
from tests.engine.ranks import RankServer
from tests.pretrain.splits import STEPS, global_batches
from tests.pretrain.test_objectives import small_model

SPLITS = [(1, 12), (1, 4), (1, 1), (2, 6), (2, 2), (3, 1)]
"""(ranks, micro-batch) of a global batch of 12."""


@pytest.fixture(scope="module")
def server() -> Iterator[RankServer]:
    ranks = RankServer()
    yield ranks
    ranks.close()


def history(
    server: RankServer, out: Path, world: int, micro_batch: int, **options: Any
) -> list[dict[str, Any]]:
    """What a run logs in each step."""
    codes, output = server.run(
        out, world, program="tests.pretrain.splits", micro_batch=micro_batch, **options
    )
    assert codes == [0] * world, output
    lines = map(json.loads, (out / "history.jsonl").read_text().splitlines())
    return [line for line in lines if "metrics" in line]


def expected_first_step(mode: str) -> tuple[float, float]:
    """(loss, gradient norm) of the complete batch by torch's own mean over all masked tokens."""
    model = small_model()
    total = torch.zeros(())
    for _, batch in global_batches(mode, 0):
        logits = model.mlm_head(model(batch.pixels, batch.mlm_ids, batch.text_mask).text)
        total = total + F.cross_entropy(logits.flatten(0, 1), batch.mlm_labels.flatten())
    total.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(total.detach()), float(torch.cat(gradients).double().norm())


@pytest.mark.parametrize("mode", ["", "joint", "alternate"])
def test_mlm_loss_and_gradient_are_equal_for_all_splits(
    server: RankServer, tmp_path: Path, mode: str
) -> None:
    loss, norm = expected_first_step(mode)
    runs = {
        split: history(server, tmp_path / "x".join(map(str, split)), *split, cotrain=mode)
        for split in SPLITS
    }
    for split, steps in runs.items():
        assert len(steps) == STEPS
        assert abs(steps[0]["loss"] - loss) < 1e-6 * loss, split
        assert abs(steps[0]["grad_norm"] - norm) < 1e-6 * norm, split
        for own, complete in zip(steps, runs[SPLITS[0]], strict=True):
            assert abs(own["loss"] - complete["loss"]) < 1e-5, split
            named = {name for name in own["metrics"] if name.endswith("mlm_loss")}
            # what is logged for the objective is the loss that was trained
            assert abs(sum(own["metrics"][name] for name in named) - own["loss"]) < 1e-5, split


def test_the_mean_of_means_depends_on_the_micro_batch(server: RankServer, tmp_path: Path) -> None:
    given = {"objective": {"mlm_mean": "micro-batch"}}
    (complete, *_), (split, *_) = (
        history(server, tmp_path / str(size), 1, size, **given) for size in (12, 1)
    )
    assert abs(complete["loss"] - expected_first_step("")[0]) < 1e-5
    assert abs(complete["loss"] - split["loss"]) > 1e-3


def test_a_killed_run_continues_with_equal_losses(server: RankServer, tmp_path: Path) -> None:
    straight = history(server, tmp_path / "straight", 1, 2)
    out = tmp_path / "killed"
    options = {"micro_batch": 2, "save_every": 1}
    # the last micro-batch of step 3 is fetched after a micro-batch of step 2 was computed
    codes, _ = server.run(out, 1, program="tests.pretrain.splits", die=24 + 10, **options)
    assert codes != [0]
    resumed = history(server, out, 1, 2, save_every=1)
    losses = {step["step"]: step["loss"] for step in resumed}
    assert losses == {step["step"]: step["loss"] for step in straight}


def test_a_replayed_step_divides_by_the_same_numbers(server: RankServer, tmp_path: Path) -> None:
    history(server, tmp_path, 2, 2, poison=13)
    report = json.loads((tmp_path / "anomalies/step-00000002/report.json").read_text())
    losses = [loss for rank in report["replay"]["losses_by_rank"] for loss in rank]
    assert len([loss for loss in losses if loss is not None]) == 5  # NaN is null in JSON
    assert report["replay"]["same_losses"]


def test_a_run_of_an_earlier_version_keeps_the_mean_of_means(tmp_path: Path) -> None:
    recipe = PretrainConfig(out=tmp_path, data=("x",))
    assert recipe.objective.mlm_mean == "global-batch"
    record = recipe.as_json()
    del record["objective"]["mlm_mean"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    resumed, kept = parse_for_run(lambda default: default, recipe)
    assert kept == ["objective.mlm_mean micro-batch"]
    assert resumed == with_values(recipe, {"objective.mlm_mean": "micro-batch"})


HARD = {"vtm": 1.0, "vtc": 1.0, "vtm_negatives": "hard"}


def test_hard_negatives_on_two_ranks_resume_bit_equal(server: RankServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"objective": HARD, "save_every": 1}
    expected = history(server, tmp_path / "run", 2, 3, **options)
    # rank 1 dies in the last of three steps, in front of its second micro-batch
    codes, _ = server.run(
        tmp_path / "killed", 2, program="tests.pretrain.splits", micro_batch=3, die=33, **options
    )
    assert any(codes)
    found = history(server, tmp_path / "killed", 2, 3, **options)
    assert [line["metrics"] for line in found] == [line["metrics"] for line in expected]
    for line in expected:
        assert -1 <= line["metrics"]["vtm_negative_cosine"] <= 1


def test_hard_pairs_of_a_micro_batch_do_not_depend_on_ranks(
    server: RankServer, tmp_path: Path
) -> None:
    found = [
        history(server, tmp_path / str(world), world, 6, objective=HARD)[0]["metrics"]
        for world in (1, 2)
    ]
    # VTC's negatives depend on the ranks, the pairs of VTM and their loss do not
    for name in ("vtm_loss", "vtm_negative_cosine"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)
