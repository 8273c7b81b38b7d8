"""One rank of a training run on made-up clips with 1 to 5 masked words.

The clip of a position is the same however the global batch is split.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from allinone.data.loading.batch import Batch, CoBatch
from allinone.data.loading.cotrain import CoTrainStream
from allinone.engine.config import TrainConfig
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from tests.pretrain.test_objectives import small_model

STEPS = 3


class MadeUpClips:
    """A stream of clips (data.TrainStream)."""

    def __init__(
        self, frames: int = 3, *, die: int | None = None, poison: int | None = None
    ) -> None:
        self._frames = frames
        self._die = die
        """Position that kills this process."""
        self._poison = poison
        """Position whose pixels are not finite."""

    def describe(self) -> str:
        return "made-up clips"

    def batch(self, first: int, size: int) -> Batch:
        """The clips of positions first .. first + size - 1."""
        positions = range(first, first + size)
        generators = [torch.Generator().manual_seed(100 * self._frames + p) for p in positions]
        ids = torch.stack([torch.randint(5, 60, (8,), generator=g) for g in generators])
        labels = torch.full((size, 8), -100)
        for row, position in enumerate(positions):
            masked = 5 if position % 3 == 0 else 1
            labels[row, 1 : 1 + masked] = ids[row, 1 : 1 + masked]
        pixels = [torch.randn(self._frames, 3, 32, 32, generator=g) for g in generators]
        if self._die in positions:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._poison in positions:
            pixels[positions.index(self._poison)].fill_(float("nan"))
        return Batch(
            pixels=torch.stack(pixels),
            text_ids=ids,
            text_mask=torch.ones_like(ids),
            mlm_ids=torch.where(labels >= 0, torch.tensor(4), ids),
            mlm_labels=labels,
            mlm_positions=(labels.flatten() >= 0).nonzero().flatten(),
            dataset_ids=torch.zeros(size, dtype=torch.long),
            dataset_names=("a",),
            clips=tuple(map(str, positions)),
            captions=("",) * size,
            first_position=first,
            digest=sum(positions),
        )

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        position = first + rank * micro_batch
        while True:
            yield self.batch(position, micro_batch).to(device)
            position += world * micro_batch


def cotrained(train: TrainConfig, mode: str) -> CoTrainStream:
    """12 clips and 12 images per step, or in alternate steps."""
    return CoTrainStream(
        MadeUpClips(),  # type: ignore[arg-type]
        MadeUpClips(frames=1),  # type: ignore[arg-type]
        global_batch=train.global_batch,
        image_batch=train.global_batch,
        mode=mode,  # type: ignore[arg-type]
        image_share=0.5,
    )


def global_batches(mode: str, step: int) -> list[tuple[str, Batch]]:
    """(prefix of the metrics, complete batch) of each modality in a step of 0, 1, ..."""
    stream = cotrained(TrainConfig(global_batch=12), mode or "joint")
    batch = next(
        stream.batches(first=12 * step, rank=0, world=1, micro_batch=12, device=torch.device("cpu"))
    )
    assert isinstance(batch, CoBatch)
    parts = (("", batch.video), ("image_", batch.images if mode else None))
    return [(prefix, part) for prefix, part in parts if part is not None]


def run(out: Path, options: dict[str, Any]) -> int:
    """Train one rank.

    Args:
        out: The run's folder.
        options: Those of TrainConfig; `objective`, those of ObjectiveConfig; `cotrain`, a mode;
            `die` and `poison` of MadeUpClips.
    """
    from allinone.engine import Trainer
    from allinone.engine.distributed import launch

    mode, objective = options.pop("cotrain", ""), options.pop("objective", {})
    clips = MadeUpClips(die=options.pop("die", None), poison=options.pop("poison", None))
    train = TrainConfig(
        **{
            "steps": STEPS,
            "global_batch": 12,
            "lr": 1e-2,
            "warmup": 0.0,
            "clip_grad": 0.0,
            "log_every": 1,
            "ds_config": "zero0_fp32",
            **options,
        }
    )

    def start() -> None:
        Trainer(
            train,
            model=small_model(),
            objective=PretrainObjective(ObjectiveConfig(**{"vtm": 0.0, **objective})),
            data=cotrained(train, mode) if mode else clips,
            run_config={"train": vars(train)},
            out=out,
        ).train()

    return launch.main(start)
