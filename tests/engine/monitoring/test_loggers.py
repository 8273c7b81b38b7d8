"""Loggers that keep runs by id: keys, ids, points that are not doubled, credentials."""

from __future__ import annotations

import json
import os
import string
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allinone.common.errors import ConfigError
from allinone.common.redaction import redact
from allinone.engine.callbacks.loggers import MAX_FAILURES, TrackerCallback
from allinone.engine.config import TrainConfig
from allinone.engine.monitoring import loggers
from allinone.engine.monitoring.loggers import LoggerState, mlflow_key, require_installed
from tests.forked import ROOT

ALLOWED = set(string.ascii_letters + string.digits + "_-. :/")


def test_keys_of_mlflow_stay_readable() -> None:
    assert mlflow_key("eval/val/text_to_video_R@1") == "eval/val/text_to_video_R_at_1"
    assert mlflow_key("train/mlm_loss/web vid/train") == "train/mlm_loss/web vid/train"


@given(st.text(min_size=1))
def test_any_tag_becomes_a_key_that_mlflow_takes(tag: str) -> None:
    key = mlflow_key(tag)
    assert set(key) <= ALLOWED
    assert os.path.normpath(key) == key
    assert not key.startswith(("/", ".."))


def test_different_tags_get_different_keys() -> None:
    tags = ["a@b", "a%b", "a+b", "a&b", "a?b", "a#b", "a_b", "aéb"]
    assert len({mlflow_key(tag) for tag in tags}) == len(tags)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'allinone-pretrain\[wandb\]'"):
        require_installed(["wandb"])


def test_looking_for_a_package_does_not_import_it() -> None:
    before = "mlflow" in sys.modules
    require_installed(["tensorboard"])
    assert ("mlflow" in sys.modules) == before


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(ConfigError, match="--log-to comet: unknown; known are tensorboard, wandb"):
        TrainConfig(log_to=("comet",))  # type: ignore[arg-type]


def test_ids_and_steps_of_several_loggers_survive(tmp_path: Path) -> None:
    first, second = LoggerState(tmp_path, "wandb"), LoggerState(tmp_path, "mlflow")
    first.set_id("a")
    second.set_id("b")
    assert first.claim("metrics", 5)
    assert first.claim("evaluation", 5)
    assert second.claim("metrics", 7)
    assert not first.claim("metrics", 5)
    again = LoggerState(tmp_path, "wandb")
    assert again.id == "a"
    assert not again.claim("metrics", 4)
    assert again.claim("metrics", 6)
    assert LoggerState(tmp_path, "mlflow").id == "b"


def test_credentials_are_removed_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SOME_TOKEN", "1")  # a word of any message
    text = "GET https://me:hunter2@host/api?key=0123456789abcdef failed 1 time"
    assert redact(text) == "GET https://***@host/api?key=*** failed 1 time"


RECORD: dict[str, Any] = {
    "metrics": {"mlm_loss": 2.0},
    **dict.fromkeys(("lr", "clip_rate", "samples_per_s", "step_s", "mfu"), 0.5),
    **dict.fromkeys(("data_wait", "memory_bytes", "skipped_steps", "bad_clips"), 0.0),
    "grad_norm": float("nan"),  # of a skipped step
    "own_s": {"min": 1.0, "median": 2.0, "max": 3.0},
    "wait_s": {"min": 0.0, "median": 0.0, "max": 0.0},
}


def fake_trainer(out: Path, rank: int = 0) -> Any:
    return SimpleNamespace(
        is_rank0=rank == 0,
        spec=SimpleNamespace(out=out, run_config={"train": {"lr": 1.0, "url": "x://u:pw1234@h"}}),
        state=SimpleNamespace(step=0),
        accumulator=SimpleNamespace(last_batch=None),
    )


def drawn(batch: object) -> dict[str, Any]:
    return {"samples/video": np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)}


def launch(name: Any, out: Path, steps: range, error: BaseException | None = None) -> None:
    """One process of a run: a record per step, an evaluation at every second one."""
    trainer, callback = fake_trainer(out), TrackerCallback(name, drawn)
    trainer.state.step = steps.start - 1
    callback.on_start(trainer)
    for step in steps:
        trainer.state.step = step
        callback.on_interval(trainer, SimpleNamespace(record={**RECORD, "step": step}))  # type: ignore[arg-type]
        due = SimpleNamespace(evaluation=step % 2 == 0, first=step == steps.start, stop=None)
        callback.on_step_end(trainer, due)  # type: ignore[arg-type]
        if due.evaluation:
            callback.on_evaluation(trainer, {"val/text_to_video_R@1": 10.0 * step}, 1.0)
    callback.on_close(trainer, error)


class FailingLogger:
    """Fails at the given calls, counted from 1."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.calls = 0
        self.steps: list[int] = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.calls += 1
        if self.calls in self.failing:
            raise RuntimeError("no answer from https://me:hunter2@host")
        self.steps.append(step)

    def pictures(self, step: int, pictures: object) -> None: ...

    def close(self, failed: bool) -> None:
        raise ConnectionError


def with_fake(monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> FailingLogger:
    fake = FailingLogger(failing)
    monkeypatch.setattr("allinone.engine.callbacks.loggers.WandbLogger", lambda *_: fake)
    return fake


def test_a_logger_that_fails_now_and_then_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = with_fake(monkeypatch, failing={2, 3, 9})  # records and evaluations share the calls
    launch("wandb", tmp_path, range(1, 9))
    assert fake.steps == [1, 3, 4, 4, 5, 6, 7, 8, 8]
    assert caplog.text.count("the log to wandb is not written") == 1
    assert "hunter2" not in caplog.text


def test_a_logger_that_fails_always_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = with_fake(monkeypatch, failing=set(range(1, 100)))
    monkeypatch.setattr(fake, "pictures", lambda step, pictures: fake.scalars(step, {}))
    launch("wandb", tmp_path, range(1, 9))
    assert fake.calls == MAX_FAILURES
    assert "nothing more is logged there until the next launch" in caplog.text
    assert caplog.text.count("is not written") == 1


def test_a_damaged_state_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "loggers.json").write_text("{")
    launch("wandb", tmp_path, range(1, 9))
    assert "the log to wandb is not written" in caplog.text
    assert (tmp_path / "loggers.json").read_text() == "{"


def test_other_ranks_send_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = with_fake(monkeypatch, failing=set())
    callback = TrackerCallback("wandb", drawn)
    callback.on_start(fake_trainer(tmp_path, rank=1))
    callback.on_evaluation(fake_trainer(tmp_path, rank=1), {"val/x": 1.0}, 1.0)
    assert fake.calls == 0
    assert not list(tmp_path.iterdir())


SECRETS = {
    "WANDB_API_KEY": "a" * 32 + "5ecre701",
    "MLFLOW_TRACKING_PASSWORD": "5ecre702",
    "SLURM_JWT": "5ecre703",
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither keys nor servers of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name, default in (("ALLOW_FILE_STORE", "true"), ("HTTP_REQUEST_TIMEOUT", "10")):
        monkeypatch.setenv(f"MLFLOW_{name}", default)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))


def assert_no_secret(folder: Path) -> None:
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(contents) > 3
    assert not any(word in content for content in contents for word in (b"5ecre7", b"pw1234"))


@pytest.mark.usefixtures("alone")
def test_mlflow_continues_its_run_without_doubled_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    out.mkdir()
    launch("mlflow", out, range(1, 6), error=RuntimeError("killed after the checkpoint of step 3"))
    client = mlflow.MlflowClient((out / "mlflow").as_uri())
    run_id = json.loads((out / "loggers.json").read_text())["mlflow"]["id"]
    assert client.get_run(run_id).info.status == "FAILED"
    launch("mlflow", out, range(4, 9))
    assert json.loads((out / "loggers.json").read_text())["mlflow"]["id"] == run_id
    (experiment,) = [one for one in client.search_experiments() if one.name == "allinone"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "1.0"
    points = client.get_metric_history(run_id, "train/mlm_loss")
    assert [(point.step, point.value) for point in points] == [(k, 2.0) for k in range(1, 9)]
    points = client.get_metric_history(run_id, "eval/val/text_to_video_R_at_1")
    assert [(point.step, point.value) for point in points] == [(k, 10.0 * k) for k in (2, 4, 6, 8)]
    assert client.get_metric_history(run_id, "ranks/own_s/max")[0].value == 3.0
    assert not client.get_metric_history(run_id, "run/grad_norm")
    pictures = [one.path for one in client.list_artifacts(run_id, "images") if "png" in one.path]
    assert len(pictures) == 5  # steps 1, 2, 4, 6, 8
    assert_no_secret(out)


@pytest.mark.usefixtures("alone")
def test_a_server_that_is_gone_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    launch("mlflow", tmp_path, range(1, 9))
    assert "the log to mlflow is not written" in caplog.text
    assert "nothing more is logged there" in caplog.text
    assert "hunter2" not in caplog.text


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log whose file begins with 7 bytes of its own, as wandb's files do.

    A block of 32 KiB holds pieces: checksum (4 bytes), length (2), type (1), data. The types are 1
    for a complete record, else 2 for its first piece, 3 for a middle one, 4 for the last.
    """
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # padding
            position += 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_rows(out: Path) -> list[dict[str, Any]]:
    """History rows of all offline files, oldest first."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for content in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                rows.append(
                    {
                        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
    return rows


@pytest.mark.usefixtures("alone")
def test_wandb_continues_offline_without_doubled_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in SECRETS.items():
        if name != "WANDB_API_KEY":  # without one it is offline by itself
            monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    out.mkdir()
    launch("wandb", out, range(1, 6))
    wandb.teardown()  # as at the end of a process: its service ends, and settings are read again
    run_id = json.loads((out / "loggers.json").read_text())["wandb"]["id"]
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    launch("wandb", out, range(4, 9))
    wandb.teardown()
    folders = list(out.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert all(f"-{run_id}" in folder.name for folder in folders)  # -1 within a second
    rows = wandb_rows(out)
    losses = [(row["step"], row["train/mlm_loss"]) for row in rows if "train/mlm_loss" in row]
    assert losses == [(step, 2.0) for step in range(1, 9)]
    tag = "eval/val/text_to_video_R@1"
    assert [(row["step"], row[tag]) for row in rows if tag in row] == [
        (step, 10.0 * step) for step in (2, 4, 6, 8)
    ]
    assert not any("run/grad_norm" in row for row in rows)
    pictures = [row["step"] for row in rows if "samples/video/_type" in row]
    assert pictures == [1, 2, 4, 6, 8]
    assert_no_secret(out)


UNREACHABLE = """
import sys
from pathlib import Path
from allinone.engine.monitoring import loggers
loggers.INIT_TIMEOUT_S = 3.0
out = Path(sys.argv[1])
logger = loggers.WandbLogger(out, "abc", {"lr": 1.0})
logger.scalars(1, {"train/loss": 2.0})
logger.close(False)
"""


@pytest.mark.usefixtures("alone")
def test_wandb_without_a_network_stores_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # a process of its own: wandb reads the environment once
    environment = {**os.environ, **SECRETS, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    line = [sys.executable, "-c", UNREACHABLE, str(tmp_path)]
    ended = subprocess.run(
        line, env=environment, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "Weights & Biases does not answer" in ended.stderr
    assert "5ecre7" not in ended.stderr
    assert [(row["step"], row["train/loss"]) for row in wandb_rows(tmp_path)] == [(1, 2.0)]
    assert_no_secret(tmp_path)
