"""Loading models for inspection: what is refused, and what a folder says about its run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from allinone.tools import predict
from tests.tools.conftest import with_run


def _no_weights(folder: Path, checkpoint: Path) -> None:
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)


def _other_model(folder: Path, checkpoint: Path) -> None:
    folder.mkdir()
    shutil.copy(checkpoint / "model.safetensors", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


def _torn(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(
        (checkpoint / "model.safetensors").read_bytes()[:1000]
    )


def _damaged(folder: Path, checkpoint: Path) -> None:
    with_run(checkpoint, folder, {})
    (folder / "checkpoints" / "step-00000001" / "run.json").write_text("{}")


def _partial(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".blocks.2." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda folder, checkpoint: None, "does not exist"),
    "empty": (
        lambda folder, checkpoint: folder.mkdir(),
        "holds no weights; give a folder of save_pretrained",
    ),
    "file": (lambda folder, checkpoint: folder.write_text(""), "is damaged"),
    "no_weights": (_no_weights, "has a config.json but no weights"),
    "other": (_other_model, "holds a model of type 'bert'"),
    "torn": (_torn, "is damaged: not a complete safetensors file"),
    "damaged": (_damaged, "run.json has"),
    "partial": (
        _partial,
        "misses 12 tensors of the transformer, first: backbone.encoder.blocks.2.",
    ),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_with_the_reason(
    name: str, checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD_CHECKPOINTS[name]
    make(tmp_path / name, checkpoint)
    assert (
        predict.main(
            ["match", "--checkpoint", str(tmp_path / name), "--video", str(video), "--text", "a"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert f"--checkpoint {tmp_path / name}" in error
    assert reason in error
    assert "Traceback" not in error


def test_a_model_folder_keeps_its_runs_normalisation(checkpoint: Path, tmp_path: Path) -> None:
    from allinone.data import AllInOneProcessor
    from allinone.data.config import ClipConfig, DataConfig
    from allinone.tools.inspection.checkpoints import load_checkpoint

    shutil.copytree(checkpoint, tmp_path / "model")
    config = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.5), eval_crop=0.75)
    AllInOneProcessor.of(ClipConfig(3, 32, 16), config).save_pretrained(tmp_path / "model")
    data = load_checkpoint(tmp_path / "model", "cpu").data
    assert (data.mean, data.std, data.eval_crop) == (config.mean, config.std, config.eval_crop)
    assert load_checkpoint(checkpoint, "cpu").data.mean == DataConfig().mean
