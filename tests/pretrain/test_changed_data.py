"""A resumed run must find the data with which it started; where the data is does not matter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.weights import newest_weights
from tests.data.helpers import prepare_small_demo
from tests.data.test_fingerprint import make
from tests.forked import ROOT, ForkServer

TRAIN = str(ROOT / "pretrain" / "train.py")
OPTIONS = """--steps 4 --save-every 2 --global-batch 4 --micro-batch 4 --workers 0 --log-every 1
    --ds-config zero1_fp32 --val none --keep-last 4"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(server: ForkServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(data: str, out: Path, *more: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        words = (TRAIN, "demo", "--data", data, "--out", str(out), *OPTIONS.split(), *more)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            server.command(*words),
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def finished(
    data: Path, tmp_path_factory: pytest.TempPathFactory, train: Callable[..., object]
) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    ended = train(str(data), out, cwd=data)
    assert ended.returncode == 0, ended.stdout + ended.stderr  # type: ignore[attr-defined]
    return out


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """The run after 2 of its 4 steps."""
    out = tmp_path / "half"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_weights(out) / "model.safetensors")


@pytest.mark.parametrize("spelling", ["staged", "relative", "slash", "split", "weight"])
def test_the_same_data_elsewhere_continues_bit_for_bit(
    finished: Path,
    half: Path,
    data: Path,
    tmp_path: Path,
    train: Callable[..., subprocess.CompletedProcess[str]],
    spelling: str,
) -> None:
    if spelling == "staged":
        shutil.copytree(data, tmp_path / "job-4711")
    given = {
        "staged": str(tmp_path / "job-4711"),
        "relative": data.name,
        "slash": f"{data}/",
        "split": f"{data}:train",
        "weight": f"{data}:train=1.0",
    }[spelling]
    ended = train(given, half, cwd=data.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "after step 2" in ended.stdout or "step 2" in ended.stdout
    once, again = weights(finished), weights(half)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_changed_captions_are_refused_and_named(
    half: Path, tmp_path: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    other = make(tmp_path / "other", {number: f"other {number}" for number in range(1, 9)})
    before = (half / "run.json").read_bytes()
    refused = train(str(other), half, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert ":train: changed since the run started (clips, captions)" in refused.stderr
    assert "--accept-changed-data" in refused.stderr
    assert (half / "run.json").read_bytes() == before
    accepted = train(str(other), half, "--accept-changed-data", cwd=tmp_path)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    recorded = json.loads((half / "run.json").read_text())
    assert "accept_changed_data" not in recorded["train"]
    again = train(str(other), half, cwd=tmp_path)
    assert again.returncode == 0, "accepted once, the new data is that of the run"


def test_a_run_without_fingerprints_still_resumes(
    half: Path, data: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recorded = json.loads((half / "run.json").read_text())
    assert recorded.pop("inputs")["data-0"]["digests"].keys() == {"clips", "captions"}
    (half / "run.json").write_text(json.dumps(recorded))
    ended = train(f"{data}/", half, cwd=data)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "inputs" in json.loads((half / "run.json").read_text())


def test_another_tokenizer_is_refused(
    half: Path, data: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recorded = json.loads((half / "run.json").read_text())
    recorded["inputs"]["tokenizer"]["digests"]["tokenizer"] = "0" * 16
    (half / "run.json").write_text(json.dumps(recorded))
    ended = train(str(data), half, cwd=data)
    assert ended.returncode == 2
    assert "the tokenizer: changed since the run started (tokenizer)" in ended.stderr


def test_run_json_with_fingerprints_is_still_a_config_file(
    finished: Path, tmp_path: Path, server: ForkServer
) -> None:
    words = (TRAIN, "--config", str(finished / "run.json"), "--print-config")
    shown = subprocess.run(
        server.command(*words), capture_output=True, text=True, timeout=100, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "steps: 4" in shown.stdout
