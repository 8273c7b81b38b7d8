"""The real model through the real loop in every precision that a CPU trains in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from allinone.engine import ds_config
from allinone.engine.planning.failures import checkpoint_bytes
from allinone.engine.planning.memory import Zero
from tests.engine.toy_processes import history
from tests.forked import ROOT

SCRIPT = """
import sys
from pathlib import Path
import torch
from allinone.data.loading.batch import Batch
from allinone.engine.distributed import launch
from allinone.engine import Trainer
from allinone.engine.config import TrainConfig
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective

config = AllInOneConfig.from_size("nano", vocab_size=100)

class Data:
    def describe(self):
        return "noise"

    def batches(self, *, first, rank, world, micro_batch, device):
        b, size, length = micro_batch, config.image_size, config.max_text_len
        while True:
            ids = torch.randint(5, 100, (b, length))
            at = torch.arange(b) * length + 3
            labels = torch.full_like(ids, -100)
            labels[:, 3] = ids[:, 3]
            names = tuple(str(first + i) for i in range(b))
            pixels = torch.randn(b, config.num_frames, 3, size, size)
            yield Batch(
                pixels, ids, torch.ones_like(ids), ids, labels, at, torch.zeros(b).long(),
                ("noise",), names, names, first,
            )
            first += b

def train():
    options = TrainConfig(
        steps=3, global_batch=4, micro_batch=2, ds_config=sys.argv[2], log_every=1, save_every=3
    )
    model = AllInOneForPreTraining(config)
    objective = PretrainObjective(ObjectiveConfig(vtc=1.0, wpa=0.1))

    def evaluate(model, device):
        pixels = torch.randn(1, config.num_frames, 3, config.image_size, config.image_size)
        return {"norm": float(model.video_projection(model.encode_video(pixels)).float().norm())}

    Trainer(
        options, model=model, objective=objective, data=Data(), run_config={},
        out=Path(sys.argv[1]), evaluate=evaluate,
    ).train()

sys.exit(launch.main(train))
"""


@pytest.mark.parametrize(
    "name",
    ["zero0_bf16", "zero1_bf16", "zero2_bf16", "zero3_bf16", "zero0_fp32", "zero1_fp32"],
)
def test_the_model_trains_and_evaluates_in_every_precision(tmp_path: Path, name: str) -> None:
    """The data path gives float32 pixels for weights of any precision. Plans know file sizes."""
    line = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), name]
    result = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [row for row in history(tmp_path / "run").values() if "metrics" in row]
    assert all(0 < row["metrics"]["mlm_loss"] < 10 for row in rows)

    (folder,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parameters = (folder / "weights" / "model.safetensors").stat().st_size // 4
    planned = checkpoint_bytes(Zero.from_config(ds_config.load(name)), parameters)
    assert planned == pytest.approx(stored, rel=0.03)
