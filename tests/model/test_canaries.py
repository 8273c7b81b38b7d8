"""No file of an export or a cache makes a reader run what a pickle in it names.

Those of checkpoints: tests/engine/checkpoint/test_programs.py. Those of prepared folders:
tests/data/test_canaries.py. Those of probes and indexes of videos: test_canaries.py beside their
other tests.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from allinone.data.config import ClipConfig
from allinone.data.processor import AllInOneProcessor
from allinone.finetune.evaluation.cache import Cache
from allinone.finetune.task_model.source import read_source_checkpoint
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.weights_file import read_weights
from allinone.tools.inspection.checkpoints import load_checkpoint
from tests.canary import (
    HARMS,
    Canary,
    as_pickle,
    as_torch_legacy,
    as_torch_zip,
    assert_the_canary_works,
)

READERS: list[Callable[[Path], object]] = [
    lambda folder: AllInOneForPreTraining.from_pretrained(folder),
    lambda folder: AllInOneConfig.from_pretrained(folder),
    lambda folder: AllInOneProcessor.from_pretrained(folder),
    lambda folder: load_checkpoint(folder, "cpu"),
    read_source_checkpoint,
    read_weights,
]
PLANTED = [
    "pytorch_model.bin",
    "model.pt",
    "model.ckpt",
    "optimizer.pt",
    "training_args.bin",
    "generation_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.model",
    "modeling_all_in_one.py",
    "adapter_config.json",
]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    config = AllInOneConfig.from_size("nano", vocab_size=99, num_hidden_layers=1)
    AllInOneForPreTraining(config).save_pretrained(folder)
    AllInOneProcessor.of(ClipConfig(3, 64, 16)).save_pretrained(folder)
    return folder


def _assert_nothing_runs(path: Path, canary: Path) -> None:
    """All readers, on a folder or file that they may refuse in any way."""
    for read in READERS:
        with contextlib.suppress(Exception):
            read(path)
        assert not canary.exists(), path


@pytest.mark.parametrize("harm", [as_pickle, as_torch_zip, as_torch_legacy])
def test_no_file_of_an_export_runs(
    export: Path, tmp_path: Path, harm: Callable[[Path, Canary], None]
) -> None:
    names = [path.name for path in export.iterdir()]
    assert {"config.json", "model.safetensors"} <= set(names)
    canary = tmp_path / "canary"
    for number, name in enumerate([*names, *PLANTED]):
        folder = tmp_path / f"export{number}"
        shutil.copytree(export, folder)
        harm(folder / name, Canary(canary))
        _assert_nothing_runs(folder, canary)
        _assert_nothing_runs(folder / name, canary)
        if name in PLANTED:  # and without the good weights, so that it is chosen
            (folder / "model.safetensors").unlink()
            _assert_nothing_runs(folder, canary)
    assert_the_canary_works(canary)


@pytest.mark.parametrize("harm", HARMS)
def test_no_cached_result_runs(tmp_path: Path, harm: Callable[[Path, Canary], None]) -> None:
    cache, canary = Cache(tmp_path / "cache", "scope"), tmp_path / "canary"
    path = cache._path("content")
    path.parent.mkdir(parents=True)
    harm(path, Canary(canary))
    assert cache.get("content") is None
    assert not canary.exists()


def test_no_python_file_that_a_config_names_runs(export: Path, tmp_path: Path) -> None:
    """auto_map is for those who ask for remote code."""
    canary, folder = tmp_path / "canary", tmp_path / "export"
    shutil.copytree(export, folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    names = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoModelForPreTraining")
    auto_map = dict.fromkeys(names, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "auto_map": auto_map}))
    _assert_nothing_runs(folder, canary)
