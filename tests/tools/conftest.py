"""A tiny untrained checkpoint and a clip for the tests of the tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from allinone.model import AllInOneConfig, AllInOneForPreTraining
from tests.data.media import write_video

FRAMES, SIDE, PATCH, BLOCKS = 3, 32, 8, 4
PATCHES = (SIDE // PATCH) ** 2  # 16; n = 17 visual tokens, so 17 // 8 = 2 roll in each direction


def tiny_config(**changes: object) -> AllInOneConfig:
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    return AllInOneConfig(
        **{**shape, "num_frames": FRAMES, "max_text_len": 16, "projection_dim": 16, **changes}
    )


def tiny_model(**changes: object) -> AllInOneForPreTraining:
    """Weights with noise, so that no bias or norm is trivial and attention is far from uniform."""
    torch.manual_seed(0)
    model = AllInOneForPreTraining(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "weights"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", width=96, height=64)


def with_run(weights: Path, folder: Path, objective: dict[str, float]) -> Path:
    """A run with one checkpoint that links to these weights."""
    from allinone.engine.checkpoint.manifest import write_manifest

    step = folder / "checkpoints" / "step-00000001"
    (step / "weights").mkdir(parents=True)
    for path in weights.iterdir():
        (step / "weights" / path.name).symlink_to(path)
    (step / "run.json").write_text(json.dumps({"run": {"objective": objective}}))
    write_manifest(step)
    return folder
