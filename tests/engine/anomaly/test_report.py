"""Spikes, stragglers, TensorBoard's layout; and dossiers on steps that went wrong in a real run of
two ranks."""

from __future__ import annotations

import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.data.loading.batch import Batch, CoBatch
from allinone.engine.anomaly.detector import ENOUGH, SpikeRule
from allinone.engine.anomaly.replay import layer_of
from allinone.engine.distributed.heartbeat import Sign, describe_silent_ranks
from allinone.engine.monitoring.straggler import Slowest, StragglerAlarm, slowest, spread
from allinone.engine.monitoring.tensorboard import layout

ROOT = Path(__file__).parents[3]
NAN_STEP, ONCE_STEP, SPIKE_STEP = 34, 36, 40


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, micro-batch 4, global batch 16: a bad clip on rank 1, a clip that is bad on its
    first reading only, an outlier."""
    out = tmp_path_factory.mktemp("faulty") / "run"
    positions = {
        "poison": (NAN_STEP - 1) * 16 + 6,
        "poison_once": (ONCE_STEP - 1) * 16 + 5,
        "spike": (SPIKE_STEP - 1) * 16,
    }
    options = {
        "ds_config": "zero1_fp32",
        "forks": 2,
        "steps": 42,
        "save_every": 100,
        "contrast": True,
        "lr": 1e-3,
        **positions,
    }
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.engine.toy", str(out), json.dumps(options)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def dossier(out: Path, step: int) -> dict[str, Any]:
    return json.loads((out / "dossiers" / f"step-{step:08d}" / "dossier.json").read_text())


def test_only_the_faulty_steps_have_a_dossier(faulty: Path) -> None:
    assert sorted(path.name for path in (faulty / "dossiers").iterdir()) == [
        "step-00000034",
        "step-00000036",
        "step-00000040",
    ]
    events = [
        row
        for row in map(json.loads, (faulty / "history.jsonl").read_text().splitlines())
        if row.get("event") == "dossier"
    ]
    assert [row["of_step"] for row in events] == [NAN_STEP, ONCE_STEP, SPIKE_STEP]


def test_a_bad_clip_is_found_and_named_though_it_spoils_the_loss_of_both_ranks(
    faulty: Path,
) -> None:
    found = dossier(faulty, NAN_STEP)
    rerun = found["rerun"]
    assert found["reason"] == "loss not finite"
    assert [micro["loss"] for rank in found["ranks"] for micro in rank["micro_batches"]].count(
        None
    ) == 2, "one per rank: the contrast"
    assert (rerun["weights"]["exact"], rerun["reproduced"], rerun["same_losses"]) == (
        True,
        True,
        True,
    )
    position = (NAN_STEP - 1) * 16 + 6
    assert [(entry["rank"], entry["clip"], entry["position"]) for entry in rerun["guilty"]] == [
        (1, f"clip{position}", position)
    ]
    assert f"clip{position}" in rerun["verdict"]
    assert found["ranks"][1]["micro_batches"][0]["clips"] == [
        f"clip{position + k}" for k in range(-2, 2)
    ]


def test_a_fault_that_does_not_come_back_is_told_from_one_that_does(faulty: Path) -> None:
    rerun = dossier(faulty, ONCE_STEP)["rerun"]
    assert (
        rerun["weights"]["exact"],
        rerun["reproduced"],
        rerun["same_losses"],
        rerun["guilty"],
    ) == (True, False, False, [])
    assert "hardware" in rerun["verdict"]
    assert rerun["gradient_norm"] > 0


def test_a_spike_says_what_is_usual_and_which_layers_it_comes_from(faulty: Path) -> None:
    found = dossier(faulty, SPIKE_STEP)
    rows = [json.loads(line) for line in (faulty / "history.jsonl").read_text().splitlines()]
    losses = {
        row["step"]: row["loss"] for row in rows if "metrics" in row and row["loss"] is not None
    }
    assert found["reason"] == "loss spike"
    assert found["value"] == pytest.approx(losses[SPIKE_STEP])
    assert found["usual"]["median"] == pytest.approx(
        statistics.median(losses[step] for step in losses if step < SPIKE_STEP)
    )
    assert found["rerun"]["weights"] == {
        "updates_since": 1,
        "exact": False,
    }, "the spike's own update has moved the weights"
    assert found["rerun"]["reproduced"]
    assert found["rerun"]["highest"][0]["clip"] == f"clip{(SPIKE_STEP - 1) * 16}"
    assert found["rerun"]["highest"][0]["loss"] > 100 * found["rerun"]["highest"][1]["loss"]
    layers = {layer["name"]: layer for layer in found["rerun"]["layers"]}
    assert set(layers) == {"model.net.0", "model.net.1", "model.net.4"}
    assert all(layer["by_rank"][0] > 10 * layer["by_rank"][1] for layer in layers.values()), (
        "the outlier is rank 0's"
    )
    assert found["rerun"]["gradient_norm"] == pytest.approx(
        sum(layer["norm"] ** 2 for layer in layers.values()) ** 0.5
    )


def test_layers_are_named_by_their_first_number() -> None:
    assert layer_of("model.blocks.3.attn.q.weight") == "model.blocks.3"
    assert layer_of("model.text_projection.weight") == "model.text_projection"
    assert layer_of("scale") == "scale"


def test_noise_and_a_falling_curve_are_no_spikes_but_an_outlier_is() -> None:
    noise = random.Random(0)
    rule = SpikeRule(10)
    values = [5 * 0.99**step + noise.gauss(0, 0.1) for step in range(500)]
    assert [step for step, value in enumerate(values) if rule.judge(value)] == []
    assert rule.judge(values[-1] + 3) is not None
    assert SpikeRule(0).judge(1e9) is None
    early = SpikeRule(10)
    assert [early.judge(1.0) for _ in range(ENOUGH - 1)] + [early.judge(99.0)] == [None] * ENOUGH


def test_gradient_norms_scatter_by_factors() -> None:
    noise = random.Random(0)
    norms = [math.exp(noise.gauss(1.5, 0.4)) for _ in range(1000)]
    plain, rule = SpikeRule(5), SpikeRule(5, multiplicative=True)
    assert sum(plain.judge(norm) is not None for norm in norms) > 0
    assert sum(rule.judge(norm) is not None for norm in norms) == 0
    found = rule.judge(1000.0)
    assert found is not None
    assert found["median"] == pytest.approx(math.exp(1.5), rel=0.15)


def test_a_new_level_becomes_usual() -> None:
    rule = SpikeRule(10)
    for _ in range(200):
        rule.judge(1.0)
    assert sum(rule.judge(9.0) is not None for _ in range(400)) <= 101


def test_the_slowest_rank_is_named_against_the_others() -> None:
    assert slowest([1.0, 4.0, 2.0], ["a", "b", "c"]) == Slowest(1, "b", 4.0, 4.0 / 1.5)
    assert slowest([1.0], ["a"]) is None
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_a_straggler_is_warned_of_once_after_two_intervals_and_again_after_recovery() -> None:
    lag, fine = Slowest(3, "node7", 0.5, 2.0), Slowest(3, "node7", 0.5, 1.1)
    alarm = StragglerAlarm(1.5)
    said = [alarm.judge(found, step_s=1.0) for found in (lag, lag, lag, fine, lag, lag)]
    assert [text is not None for text in said] == [False, True, False, False, False, True]
    assert "rank 3 on node7" in str(said[1])
    tiny = StragglerAlarm(1.5)
    assert [tiny.judge(lag, step_s=10.0) for _ in range(3)] == [None] * 3, (
        "a quarter of a second in ten is no matter"
    )
    assert [StragglerAlarm(0).judge(lag, step_s=1.0)] == [None]


def test_the_roll_names_who_is_silent_or_elsewhere() -> None:
    def signs(counts: dict[int, int], **doing: str) -> dict[int, Sign]:
        return {
            rank: Sign(number, f"node{rank}", "7", doing.get(f"r{rank}", "step 9"))
            for rank, number in counts.items()
        }

    first = signs({0: 4, 1: 9, 2: 1})
    assert (
        "no sign of life from rank 1 on node1 (pid 7), last in step 9: "
        in describe_silent_ranks(first, signs({0: 5, 1: 9, 2: 2}), 3)
    )
    assert "no sign of life from rank 2: " in describe_silent_ranks(
        signs({0: 4, 1: 9}), signs({0: 5, 1: 10}), 3
    ), "one that never said anything"
    found = describe_silent_ranks(
        first, signs({0: 5, 1: 10, 2: 2}, r2="the checkpoint of step 8"), 3
    )
    assert (
        found
        == "all ranks live, most in step 9; elsewhere: rank 2 on node2 in the checkpoint of step 8"
    )


def test_every_curve_stands_in_one_chart_of_the_layout() -> None:
    metrics = [
        "mlm_loss",
        "mlm_accuracy",
        "mlm_loss/webvid/train",
        "mlm_loss/howto/train",
        "vtm_loss",
        "sample_share/webvid/train",
    ]
    charts = [
        (title, kind, tags)
        for part in layout(metrics, "FMA = 2").values()
        for title, (kind, tags) in part.items()
    ]
    tags = [f"train/{name}" for name in metrics]
    tags += [
        f"run/{name}"
        for name in (
            "lr",
            "grad_norm",
            "skipped_steps",
            "samples_per_s",
            "mfu",
            "data_wait",
            "memory_bytes",
        )
    ]
    tags += [
        "run/bad_clips",
        "run/step_s",
        "eval/val/text_to_video_R@1",
        "eval/val/video_to_text_MdR",
        "eval/val/mlm_accuracy",
    ]
    for tag in tags:
        assert (
            sum(
                any(re.match(pattern, tag) for pattern in patterns)
                for _, kind, patterns in charts
                if kind == "Multiline"
            )
            == 1
        ), tag
    assert [patterns for _, kind, patterns in charts if kind == "Margin"] == [
        [f"ranks/{name}/{which}" for which in ("median", "min", "max")]
        for name in ("own_s", "wait_s")
    ]
    assert any("FMA = 2" in title for title, *_ in charts)


def test_one_clip_of_a_batch_keeps_its_own_text_and_masks() -> None:
    labels = torch.full((3, 4), -100)
    labels[0, 1], labels[2, 1], labels[2, 3] = 7, 8, 9
    ids = torch.arange(12).view(3, 4)
    batch = Batch(
        pixels=torch.arange(3.0).view(3, 1, 1, 1, 1),
        text_ids=ids,
        text_mask=torch.ones_like(ids),
        mlm_ids=ids + 100,
        mlm_labels=labels,
        mlm_positions=(labels.flatten() >= 0).nonzero().flatten(),
        dataset_ids=torch.tensor([0, 1, 1]),
        dataset_names=("a", "b"),
        clips=("x", "y", "z"),
        captions=("X", "Y", "Z"),
        first_position=40,
    )
    alone = batch.only(2)
    assert (alone.clips, alone.captions, alone.first_position, len(alone)) == (
        ("z",),
        ("Z",),
        42,
        1,
    )
    assert alone.text_ids.tolist() == [[8, 9, 10, 11]]
    assert alone.mlm_labels.flatten()[alone.mlm_positions].tolist() == [8, 9]
    assert batch.only(1).mlm_positions.tolist() == []
    assert batch.first(2).mlm_positions.tolist() == [1]
    both = CoBatch(video=batch, images=batch)
    assert both.only(1).clips == ("y",)
    assert both.only(4).video is None
    assert both.only(4).clips == ("y",)
