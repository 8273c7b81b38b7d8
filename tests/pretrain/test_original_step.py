"""The benchmark's use of the original code: stubs, and what it says about a folder that does not
fit. The original itself is not here; a folder with its names stands for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from allinone.common.errors import InputError
from allinone.model import AllInOneConfig
from tests.benchmarks.original_step import NEEDED, original_step
from tests.benchmarks.train_step import RepeatedBatch

CONFIG = AllInOneConfig.from_size("tiny", image_size=32)
MODULE = """
import sacred
import pytorch_lightning as pl
import torch
from pytorch_lightning.metrics import Metric
from timm.models.layers import DropPath
from timm.models.registry import register_model
from transformers.optimization import AdamW


class vit:
    @staticmethod
    @register_model
    def vit_deit_tiny_patch16_224(pretrained, config):
        assert not pretrained
        return torch.nn.Sequential(torch.nn.Linear(3, config["hidden_size"]), DropPath(0.1))


class Mean(Metric):
    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0))

    def update(self, value):
        self.total += value

    def compute(self):
        return self.total


class AllinoneTransformerSS(pl.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters()
        self.body = vit.vit_deit_tiny_patch16_224(pretrained=True, config=self.hparams.config)
        self.loss = Mean()

    def training_step(self, batch, number):
        value = self.body(batch["image"][0].mean((-1, -2))).square().mean()
        self.log("loss", self.loss(value.detach()))
        assert batch["text_labels_mlm"].shape == batch["text_masks"].shape
        assert self.device.type == "cpu"
        return value
"""


def test_a_step_runs_with_stubs_for_missing_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / NEEDED
    target.parent.mkdir(parents=True)
    for package in (target.parent, target.parent.parent):
        (package / "__init__.py").touch()
    target.write_text(MODULE)
    before = list(sys.meta_path)
    batch = RepeatedBatch(CONFIG).batch(2, seed=0)
    step = original_step(tmp_path, "tiny", CONFIG, batch)
    step()
    assert sys.meta_path == before
    for name in [name for name in sys.modules if name.partition(".")[0] in ("AllInOne", "sacred")]:
        monkeypatch.delitem(sys.modules, name)
    target.write_text(MODULE.replace("import sacred", "import no_such_library"))
    with pytest.raises(InputError, match=r"does not run here: ModuleNotFoundError: .*no_such"):
        original_step(tmp_path, "tiny", CONFIG, batch)


def test_folders_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    batch = RepeatedBatch(CONFIG).batch(2, seed=0)
    with pytest.raises(InputError, match="give a checkout of"):
        original_step(tmp_path, "tiny", CONFIG, batch)


def test_captions_of_a_list_have_their_own_lengths(tmp_path: Path) -> None:
    listed = tmp_path / "own.csv"
    listed.write_text("video,caption\n1,a cat\n2,a very long day in the garden of a friend\n")
    batch = RepeatedBatch(CONFIG, listed).batch(8, seed=0)
    # [CLS] and [SEP] around 2 and 10 words
    assert set(batch.text_mask.sum(1).tolist()) == {4, 12}
    assert (batch.mlm_labels >= 0).sum(1).min() >= 1
    labels = batch.mlm_labels.flatten()
    assert (labels >= 0).nonzero().flatten().tolist() == batch.mlm_positions.tolist()
