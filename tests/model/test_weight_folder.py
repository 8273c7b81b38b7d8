"""One rule decides which weights of a folder or file are read, for every reader."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allinone.common.errors import AllInOneError
from allinone.finetune.task_model.source import read_source_checkpoint
from allinone.model import AllInOneForPreTraining
from allinone.model.weights_file import WeightsError, read_weights
from allinone.tools.inspection.checkpoints import load_checkpoint
from tests.tools.conftest import tiny_model


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def add_stale_file(folder: Path) -> None:
    stale = {name: value * 0 for name, value in tiny_model().state_dict().items()}
    save_file(stale, folder / "model.safetensors")


READERS = {
    "read_weights": read_weights,
    "fine-tuning": read_source_checkpoint,
    "inference": load_checkpoint,
    "Python": AllInOneForPreTraining.from_pretrained,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_stale_file_with_shards_is_refused(sharded: Path, reader: str) -> None:
    READERS[reader](sharded)
    add_stale_file(sharded)
    with pytest.raises(ValueError, match=r"two sets of weights: model\.safetensors and"):
        READERS[reader](sharded)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_shard_is_named_by_every_reader(sharded: Path, reader: str) -> None:
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"missing: {lost.name}"):
        READERS[reader](sharded)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"index\.json is missing"):
        read_weights(sharded)


def test_an_index_that_leaves_its_folder_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../other.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="outside of its folder"):
        read_weights(sharded)


def test_a_shard_that_lacks_a_listed_tensor_is_damaged(sharded: Path) -> None:
    first = min(sharded.glob("model-*.safetensors"))
    tensors = load_file(first)
    lost = tensors.popitem()[0]
    save_file(tensors, first)
    with pytest.raises(WeightsError, match=f"damaged: it lacks 1 tensors.*{lost}"):
        read_weights(sharded)


WEIGHTS = {"backbone.a": torch.ones(2), "backbone.b": torch.zeros(3)}


def wrap(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module."],
)
def test_prefixes_of_wrappers_are_removed_and_named(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": wrap(prefix)}, tmp_path / "a.pt")
    save_file(wrap(prefix), tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        file = read_weights(tmp_path / name)
        assert file.tensors.keys() == WEIGHTS.keys()
        assert all(f"{part}." in " ".join(file.notes) for part in prefix.split(".")[:-1])


def test_wrappers_inside_of_names_are_removed(tmp_path: Path) -> None:
    inner = {
        "backbone._orig_mod.a": torch.ones(2),
        "_fsdp_wrapped_module.backbone._checkpoint_wrapped_module.b": torch.zeros(3),
    }
    save_file(inner, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").tensors.keys() == WEIGHTS.keys()


def test_an_averaged_model_loses_its_counter(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    torch.save(averaged.state_dict(), tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").tensors.keys() == {"weight", "bias"}


def test_names_that_only_differ_by_a_wrapper_are_refused(tmp_path: Path) -> None:
    save_file({"a.w": torch.ones(1), "a._orig_mod.w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"two tensors are called a\.w"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "state_dict_ema": wrap("")},
        {**WEIGHTS, **{f"model_ema.{name}": -value for name, value in WEIGHTS.items()}},
    ],
)
def test_a_moving_average_is_named_and_not_read(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "a.pt")
    file = read_weights(tmp_path / "a.pt")
    assert file.tensors.keys() == WEIGHTS.keys()
    assert torch.equal(file.tensors["backbone.a"], torch.ones(2))
    assert any("moving average" in note for note in file.notes)


def test_two_sets_of_weights_in_one_file_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "model": {"backbone.a": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="state_dict and model"):
        read_weights(tmp_path / "a.pt")


def test_the_file_that_was_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    average = {name: value + 1 for name, value in model.state_dict().items()}
    save_file(average, tmp_path / "ema.safetensors")
    read = read_source_checkpoint(tmp_path / "ema.safetensors")
    assert all(torch.equal(read.tensors[name], value) for name, value in average.items())
    notes = read_source_checkpoint(tmp_path).report.notes
    assert any("ema.safetensors" in note for note in notes)


def test_a_placeholder_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        read_weights(path)


@pytest.mark.parametrize("key", ["model", "state_dict", "net"])
def test_a_refused_pickle_proposes_the_key_that_it_has(tmp_path: Path, key: str) -> None:
    arguments = argparse.Namespace(model="deit_tiny", state_dict=1)
    torch.save({"args": arguments, key: WEIGHTS, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"refused: argparse\.Namespace") as caught:
        read_weights(tmp_path / "a.pth")
    assert f"checkpoint['{key}']" in str(caught.value)
    (tmp_path / "a.pth").unlink()
    torch.save({**WEIGHTS, "args": arguments}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "a.pth")
    assert "torch.is_tensor" in str(caught.value)
    assert isinstance(caught.value, AllInOneError)
