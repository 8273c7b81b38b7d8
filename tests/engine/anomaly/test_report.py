"""Reports on steps that went wrong in a real run of two ranks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from allinone.engine.anomaly.replay import layer_of
from allinone.engine.anomaly.report import anomaly_reports

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


def load_report(out: Path, step: int) -> dict[str, Any]:
    return json.loads((out / "anomalies" / f"step-{step:08d}" / "report.json").read_text())


def test_only_the_faulty_steps_have_a_load_report(faulty: Path) -> None:
    assert sorted(path.name for path in (faulty / "anomalies").iterdir()) == [
        "step-00000034",
        "step-00000036",
        "step-00000040",
    ]
    events = [
        row
        for row in map(json.loads, (faulty / "history.jsonl").read_text().splitlines())
        if row.get("event") == "anomaly_report"
    ]
    assert [row["of_step"] for row in events] == [NAN_STEP, ONCE_STEP, SPIKE_STEP]


def test_a_bad_clip_is_named_though_all_ranks_lose_their_loss(
    faulty: Path,
) -> None:
    found = load_report(faulty, NAN_STEP)
    replay = found["replay"]
    assert found["reason"] == "loss not finite"
    assert [micro["loss"] for rank in found["ranks"] for micro in rank["micro_batches"]].count(
        None
    ) == 2, "one per rank: the contrast"
    assert (replay["weights"]["exact"], replay["reproduced"], replay["same_losses"]) == (
        True,
        True,
        True,
    )
    position = (NAN_STEP - 1) * 16 + 6
    assert [
        (entry["rank"], entry["clip"], entry["position"]) for entry in replay["offending_clips"]
    ] == [(1, f"clip{position}", position)]
    assert f"clip{position}" in replay["verdict"]
    assert found["ranks"][1]["micro_batches"][0]["clips"] == [
        f"clip{position + k}" for k in range(-2, 2)
    ]


def test_a_fault_that_happened_once_is_not_reproduced(faulty: Path) -> None:
    replay = load_report(faulty, ONCE_STEP)["replay"]
    assert (
        replay["weights"]["exact"],
        replay["reproduced"],
        replay["same_losses"],
        replay["offending_clips"],
    ) == (True, False, False, [])
    assert "hardware" in replay["verdict"]
    assert replay["gradient_norm"] > 0


def test_a_spike_reports_what_is_usual_and_its_layers(faulty: Path) -> None:
    found = load_report(faulty, SPIKE_STEP)
    rows = [json.loads(line) for line in (faulty / "history.jsonl").read_text().splitlines()]
    losses = {
        row["step"]: row["loss"] for row in rows if "metrics" in row and row["loss"] is not None
    }
    assert found["reason"] == "loss spike"
    assert found["value"] == pytest.approx(losses[SPIKE_STEP])
    assert found["usual"]["median"] == pytest.approx(
        statistics.median(losses[step] for step in losses if step < SPIKE_STEP)
    )
    assert found["replay"]["weights"] == {
        "updates_since": 1,
        "exact": False,
    }, "the spike's own update has moved the weights"
    assert found["replay"]["reproduced"]
    assert found["replay"]["highest"][0]["clip"] == f"clip{(SPIKE_STEP - 1) * 16}"
    assert found["replay"]["highest"][0]["loss"] > 100 * found["replay"]["highest"][1]["loss"]
    layers = {layer["name"]: layer for layer in found["replay"]["layers"]}
    assert set(layers) == {"model.net.0", "model.net.1", "model.net.4"}
    assert all(layer["by_rank"][0] > 10 * layer["by_rank"][1] for layer in layers.values()), (
        "the outlier is rank 0's"
    )
    assert found["replay"]["gradient_norm"] == pytest.approx(
        sum(layer["norm"] ** 2 for layer in layers.values()) ** 0.5
    )


def test_layers_are_named_by_their_first_number() -> None:
    assert layer_of("model.blocks.3.attn.q.weight") == "model.blocks.3"
    assert layer_of("model.text_projection.weight") == "model.text_projection"
    assert layer_of("scale") == "scale"


def test_reports_of_earlier_versions_are_listed_too(tmp_path: Path) -> None:
    files = [
        tmp_path / "anomalies" / "step-00000009" / "report.json",
        tmp_path / "dossiers" / "step-00000004" / "dossier.json",
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    assert anomaly_reports(tmp_path) == files[::-1]
