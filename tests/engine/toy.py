"""A small model on made-up data, run through the real loop: `python -m tests.engine.toy OUT JSON` is one rank."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.config import TrainConfig
from engine.objective import Losses


@dataclass
class ToyBatch:
    x: Tensor
    y: Tensor
    first_position: int
    clips: tuple[str, ...]
    digest: int
    bad: tuple[str, ...] = ()


class ToyData:
    def __init__(self, poison: int | None = None, die: int | None = None) -> None:
        self.poison, self.die = poison, die

    def describe(self) -> str:
        return "toy data"

    def batches(self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device) -> Iterator[ToyBatch]:
        position = first + rank * micro_batch
        while True:
            samples = []
            for p in range(position, position + micro_batch):
                generator = torch.Generator().manual_seed(p)
                samples.append(torch.randn(9, generator=generator))
                if p == self.poison:
                    samples[-1][0] = float("nan")
                if p == self.die:
                    os.kill(os.getpid(), 9)
            rows = torch.stack(samples)
            clips = tuple(f"clip{p}" for p in range(position, position + micro_batch))
            yield ToyBatch(
                rows[:, :8],
                rows[:, 8:],
                position,
                clips,
                sum(hash((p, 7)) % 2**40 for p in range(position, position + micro_batch)),
            )
            position += world * micro_batch


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def objective(model: nn.Module, batch: ToyBatch) -> Losses:
    errors = (model(batch.x) - batch.y).square().squeeze(-1)
    return Losses(errors.mean(), {"fit_loss": torch.stack([errors.detach().sum(), torch.tensor(float(len(errors)))])})


def run(out: Path, options: dict[str, object]) -> int:
    from engine import Run, launch

    extra = {name: options.pop(name) for name in ("poison", "die") if name in options}
    config = TrainConfig(
        **{"steps": 20, "global_batch": 16, "micro_batch": 4, "lr": 1e-2, "log_every": 1, "save_every": 5, **options}
    )  # type: ignore[arg-type]
    torch.manual_seed(0)

    def train() -> None:
        Run(
            config, model=ToyModel(), objective=objective, data=ToyData(**extra), run_config={"train": vars(config)}, out=out
        ).train()  # type: ignore[arg-type]

    return launch.main(train)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), json.loads(sys.argv[2])))
