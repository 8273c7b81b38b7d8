"""Files of weights are read without running anything in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from allinone.model.weights_file import WeightsError, locate, read_weights
from tests.tools.lightning import fake_class, save

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_lightning_checkpoint_is_read_without_lightning(tmp_path: Path, legacy: bool) -> None:
    file = read_weights(save(tmp_path / "last.ckpt", WEIGHTS, legacy=legacy))
    assert file.tensors.keys() == WEIGHTS.keys()
    assert all(
        torch.equal(file.tensors[name], value) and file.tensors[name].dtype == value.dtype
        for name, value in WEIGHTS.items()
    )
    assert (file.facts["epoch"], file.facts["global_step"]) == (3, 25000)
    assert [note.split(":")[0] for note in file.notes] == [
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    ]


class Shell:
    """Runs a command where pickle.load is used."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["as neighbour", "as weight"])
def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(
    tmp_path: Path, legacy: bool, place: str
) -> None:
    shell = Shell(f"touch {tmp_path / 'ran'}")
    extra: dict[str, Any] = (
        {"hyper_parameters": {"x": shell}}
        if place == "as neighbour"
        else {"state_dict": {**WEIGHTS, "w": shell}}
    )
    path = save(tmp_path / "evil.ckpt", WEIGHTS, legacy=legacy, extra=extra)
    with pytest.raises(WeightsError, match=r"refused: posix\.system"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_any_unknown_class_is_refused_by_name_with_the_way_out(
    tmp_path: Path, legacy: bool
) -> None:
    with fake_class("somebody.schedulers.Cosine") as made:
        path = save(tmp_path / "a.ckpt", WEIGHTS, legacy=legacy, extra={"lr_schedulers": [made()]})
    with pytest.raises(WeightsError, match=r"refused: somebody\.schedulers\.Cosine\..*torch\.save"):
        read_weights(path)


def test_a_stand_in_is_no_weight(tmp_path: Path) -> None:
    with fake_class("pytorch_lightning.callbacks.early_stopping.EarlyStopping") as made:
        path = save(tmp_path / "a.ckpt", WEIGHTS, extra={"state_dict": {**WEIGHTS, "w": made()}})
    with pytest.raises(WeightsError, match="w is a EarlyStopping"):
        read_weights(path)


def test_bare_nested_and_safetensors_weights_are_equal(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "bare.pth")
    torch.save({"model": WEIGHTS}, tmp_path / "deit.pth")
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    for name in ("bare.pth", "deit.pth", "w.safetensors"):
        tensors = read_weights(tmp_path / name).tensors
        assert tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(tensors[key], value) for key, value in WEIGHTS.items())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"w": torch.zeros(1000)}, whole)
    cases = {
        tmp_path / "absent.ckpt": "does not exist",
        write(
            tmp_path / "page.ckpt", b"<html>404</html>"
        ): "cannot be read safely|not a complete file",
        write(
            tmp_path / "cut.ckpt", whole.read_bytes()[:2000]
        ): "cannot be read safely|not a complete file",
        write(tmp_path / "empty.ckpt", b""): "not a complete file",
        write(tmp_path / "cut.safetensors", b"\x10"): "not a complete safetensors file",
        tmp_path: "holds none of model.safetensors",
    }
    for path, message in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            read_weights(path)
        assert str(path) in str(caught.value)
        assert "weights_only" not in str(caught.value), "torch's advice to load it unsafely"
    for content, message in (
        (torch.zeros(2), "holds a Tensor"),
        ({"epoch": 3}, "its keys are epoch"),
        ({}, "is empty"),
    ):
        torch.save(content, whole)
        with pytest.raises(WeightsError, match=message):
            read_weights(whole)


def test_a_hub_id_without_a_network_says_what_to_do() -> None:
    with pytest.raises(
        WeightsError, match=r"owner/name is not a file or folder here.*download the weights"
    ):
        locate("owner/name")
    with pytest.raises(WeightsError, match=r"\./typo\.pth does not exist"):
        locate("./typo.pth")


def _safetensors(header: bytes, length: int | None = None, data: bytes = bytes(16)) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _entry(**changes: object) -> bytes:
    facts = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes
    return json.dumps({"w": facts}).encode()


@pytest.mark.parametrize(
    "content",
    [
        _safetensors(_entry(), length=2**63),
        _safetensors(_entry(), length=2**40),
        _safetensors(_entry(data_offsets=[0, 2**40])),
        _safetensors(_entry(data_offsets=[8, 0])),
        _safetensors(_entry(data_offsets=[-16, 0])),
        _safetensors(_entry(shape=[2**62, 2**62])),
        _safetensors(_entry(shape=[-4])),
        _safetensors(_entry(dtype="PICKLE")),
        _safetensors(b'{"w":' * 2000),
        _safetensors(b"[" * 100_000),
        _safetensors(b"\xff\xfe"),
        _safetensors(_entry(), data=b""),
    ],
)
def test_hostile_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "model.safetensors", content)
    with pytest.raises(WeightsError, match="safetensors"):
        read_weights(path)
