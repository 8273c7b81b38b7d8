"""Runs of the real loop with other loggers than TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.engine.toy_processes import (
    fork_server,  # noqa: F401 - the fixture starts the server for this module
    losses,
    train,
)


def test_tensorboard_is_left_out_when_not_asked_for(tmp_path: Path) -> None:
    code, output = train(tmp_path / "run", steps=5, log_to=[])
    assert code == 0, output
    assert not (tmp_path / "run/tensorboard").exists()
    assert len(losses(tmp_path / "run")) == 5


def test_a_killed_run_of_two_ranks_continues_its_curves(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    out = tmp_path / "run"
    options = {"steps": 12, "save_every": 4, "log_to": ["mlflow", "tensorboard"]}
    code, output = train(out, 2, die=10 * 16 + 5, **options)
    assert code != 0
    code, output = train(out, 2, **options)
    assert code == 0, output
    assert "is not written" not in output
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((out / "mlflow").as_uri())
    run_id = json.loads((out / "loggers.json").read_text())["mlflow"]["id"]
    points = client.get_metric_history(run_id, "train/fit_loss")
    assert [point.step for point in points] == list(range(1, 13))
    assert [point.value for point in points] == losses(out)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(list(out.glob("tensorboard/events*"))) == 2
