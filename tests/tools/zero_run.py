"""Trains a very small model: `python -m tests.tools.zero_run OUT JSON` is one rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from allinone.engine.config import TrainConfig
from allinone.engine.distributed.contrastive import contrast
from allinone.engine.objective import Losses, mean_metric
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from tests.engine.toy import ToyBatch, ToyData

CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "num_frames": 2,
    "vocab_size": 31,
    "max_text_len": 5,
    "projection_dim": 7,
}


def objective(model: nn.Module, batch: ToyBatch) -> Losses:
    """Gives every parameter a gradient, except the ends of the tables. The sizes are odd, so that
    partitions are padded."""
    clips = len(batch.x)
    pixels = batch.x[:, :6].view(clips, 2, 3, 1, 1).expand(-1, -1, -1, 32, 32)
    ids = torch.arange(5).expand(clips, -1)
    mask, lengths = texts(batch)
    joint = model(pixels, ids, mask, text_lengths=lengths)
    text, video = model.text_projection(joint.text[:, 0]), model.video_projection(joint.video[:, 0])
    match = (text * video).sum(-1) * model.logit_scale()
    parts = (match, model.vtm_head(joint.pooled)[:, 0], model.mlm_head(joint.text)[:, 1, 0])
    errors = (sum(part.float() for part in parts) - batch.y.squeeze(-1)).square()
    return Losses(
        errors.mean(),
        {"fit_loss": torch.stack([errors.detach().sum(), torch.tensor(float(clips))])},
    )


def texts(batch: ToyBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and lengths of texts of 3 to 5 tokens, which are packed."""
    lengths = 3 + (batch.x[:, 0].abs() * 10).long() % 3
    return (torch.arange(5) < lengths[:, None]).long(), lengths


def with_contrast(model: nn.Module, batch: ToyBatch) -> Losses:
    """`objective` plus a contrastive loss over the clips of all data ranks."""
    losses, clips = objective(model, batch), len(batch.x)
    ids = (batch.x[:, :5].abs() * 10).long().clamp(max=30)
    pixels = batch.x[:, :6].view(clips, 2, 3, 1, 1).expand(-1, -1, -1, 32, 32)
    found = contrast(
        embed_text(model, ids, *texts(batch)),
        embed_video(model, pixels),
        model.logit_scale(),
    )  # type: ignore[arg-type]
    return Losses(
        losses.total + found.losses.mean(),
        losses.metrics | {"contrast_loss": mean_metric(found.losses)},
    )


def run(out: Path, options: dict[str, object]) -> int:
    from allinone.engine import Trainer
    from allinone.engine.distributed import launch

    model_options = {**CONFIG, **options.pop("model", {})}  # type: ignore[dict-item]
    data = ToyData(poison=options.pop("poison", None), die=options.pop("die", None))  # type: ignore[arg-type]
    task = with_contrast if options.pop("contrast", False) else objective
    config = TrainConfig(
        **{"steps": 2, "global_batch": 8, "micro_batch": 2, "lr": 1e-2, "log_every": 1, **options}
    )  # type: ignore[arg-type]
    torch.manual_seed(0)

    def train() -> None:
        model = AllInOneForPreTraining(AllInOneConfig(**model_options))
        facts = {
            "train": vars(config),
            "model": {"size": "odd"},
            "loader": {
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.25, 0.5],
                "geometry": "squash",
            },
        }
        Trainer(config, model=model, objective=task, data=data, run_config=facts, out=out).train()  # type: ignore[arg-type]

    return launch.main(train)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), json.loads(sys.argv[2])))
