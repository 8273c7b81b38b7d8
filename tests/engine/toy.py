"""A small model on synthetic data, trained by the real trainer.

`python -m tests.engine.toy OUT JSON` is one rank.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from allinone.engine.config import TrainConfig, plain
from allinone.engine.objective import Losses
from tests.engine.faults import inject


@dataclass
class ToyBatch:
    x: Tensor
    y: Tensor
    first_position: int
    clips: tuple[str, ...]
    digest: int
    bad: tuple[str, ...] = ()

    def only(self, row: int) -> ToyBatch:
        cut = slice(row, row + 1)
        return ToyBatch(
            self.x[cut], self.y[cut], self.first_position + row, self.clips[cut], self.digest
        )

    def __len__(self) -> int:
        return len(self.clips)


class ToyData:
    def __init__(
        self,
        poison: int | None = None,
        die: int | None = None,
        hang: int | None = None,
        poison_every: int | None = None,
        poison_once: int | None = None,
        spike: int | None = None,
    ) -> None:
        self.poison = poison
        self.poison_every = poison_every
        self.poison_once = poison_once
        self.die = die
        self.hang = hang
        self.spike = spike

    def describe(self) -> str:
        return "toy data"

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[ToyBatch]:
        position = first + rank * micro_batch
        while True:
            samples = []
            for p in range(position, position + micro_batch):
                generator = torch.Generator().manual_seed(p)
                samples.append(torch.randn(9, generator=generator))
                if p == self.poison or (self.poison_every and p % self.poison_every == 0):
                    samples[-1][0] = float("nan")
                if p == self.poison_once:
                    samples[-1][0], self.poison_once = float("nan"), None
                if p == self.spike:
                    samples[-1][8] = 100.0
                if p == self.die:
                    os.kill(os.getpid(), 9)
                if p == self.hang:
                    time.sleep(1000)
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
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.net[0].weight.dtype)).float()


def objective(model: nn.Module, batch: ToyBatch) -> Losses:
    errors = (model(batch.x) - batch.y).square().squeeze(-1)
    return Losses(
        errors.mean(),
        {"fit_loss": torch.stack([errors.detach().sum(), torch.tensor(float(len(errors)))])},
    )


def contrast(model: nn.Module, batch: ToyBatch) -> Losses:
    """A loss that depends on the clips of all ranks, as VTC's does: one bad clip spoils it
    on every rank."""
    import torch.distributed.nn.functional as dist_nn

    losses = objective(model, batch)
    everywhere = torch.stack(list(dist_nn.all_gather(model(batch.x).mean().reshape(1)))).mean()
    return Losses(losses.total + 0.1 * everywhere.square(), losses.metrics)


def dying_evaluation(marker: Path) -> Callable[[nn.Module, torch.device], dict[str, float]]:
    """Kills the process the first time."""

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"score": 1.0}

    return evaluate


def run(out: Path, options: dict[str, object]) -> int:
    from allinone.engine import Trainer
    from allinone.engine.distributed import launch

    names = ("poison", "die", "hang", "poison_every", "poison_once", "spike")
    extra = {name: options.pop(name) for name in names if name in options}
    chosen = contrast if options.pop("contrast", False) else objective
    evaluate = (
        dying_evaluation(out.with_suffix(".died")) if options.pop("die_evaluating", False) else None
    )
    for fault in options.pop("faults", []):  # type: ignore[attr-defined]
        inject(**fault)
    limits = options.pop("largest_file", {})
    assert isinstance(limits, dict)
    if limit := limits.get(
        os.environ.get("RANK", "0")
    ):  # a write beyond it fails, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    config = TrainConfig(
        **{
            "steps": 20,
            "global_batch": 16,
            "micro_batch": 4,
            "lr": 1e-2,
            "log_every": 1,
            "save_every": 5,
            **options,
        }
    )  # type: ignore[arg-type]
    torch.manual_seed(0)

    def train() -> None:
        Trainer(
            config,
            model=ToyModel(),
            objective=chosen,
            data=ToyData(**extra),  # type: ignore[arg-type]
            run_config={"train": plain(vars(config))},
            out=out,
            evaluate=evaluate,
        ).train()

    return launch.main(train)


def forked(world: int, out: Path, options: dict[str, object]) -> int:
    """`world` ranks as forks of this process, which pays for the imports once. The largest exit
    code."""
    from allinone.engine.distributed import launch

    launch.prepare_environment()
    import deepspeed  # noqa: F401 - before the fork

    import allinone.engine.trainer  # noqa: F401

    port, ranks = str(launch.free_port()), []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            place = {
                "RANK": rank,
                "WORLD_SIZE": world,
                "LOCAL_RANK": rank,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ.update({name: str(value) for name, value in place.items()})
            os._exit(run(out, dict(options)))
        ranks.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    world = given.pop("forks", 0)
    sys.exit(forked(world, Path(sys.argv[1]), given) if world else run(Path(sys.argv[1]), given))
