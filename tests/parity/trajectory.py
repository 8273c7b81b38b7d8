"""Replays a trajectory of the original code through our objectives, parameter groups and trainer.

    python -m tests.parity.trajectory tests/parity/trajectory_dev.json [--stage 1] [--product]

prints the largest difference of each loss, of the gradient norm and of the final weights. A
trajectory is a pair of files, NAME.json and NAME.safetensors: batches, and for each optimizer step
its learning rate, patch orders and pairs, losses and gradient norm; weights before and after.

Letters: B clips, T frames, P patches, C width.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from allinone.data.loading.batch import Batch
from allinone.engine.checkpoint.weights import find_weights
from allinone.engine.config import TrainConfig, plain
from allinone.engine.optim.adamw import SkippingAdamW
from allinone.engine.optim.schedule import learning_rate
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import CONTRASTIVE, from_reference, reference_name
from allinone.pretrain.objectives import Draws, ObjectiveConfig, PretrainObjective
from tests.parity.configs import config_of

WPA_WEIGHT = 0.1
"""The original's factor; its reported wpa loss includes it."""
LOSSES = {"mlm": "mlm_loss", "itm": "vtm_loss", "wpa": "wpa_loss"}
"""Loss of the file → our training metric."""
DISTILLATION = "transformer.dist_token"


@dataclass(frozen=True)
class Trajectory:
    """One pair of files."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Load NAME.json and the NAME.safetensors next to it."""
        return cls(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Facts of each optimizer step, in order."""
        return self.facts["steps"]

    def state(self, moment: str) -> dict[str, Tensor]:
        """Weights under the original's names; `moment` is init or final."""
        prefix = f"{moment}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    @cached_property
    def model_config(self) -> AllInOneConfig:
        """Shape of the model; nothing is dropped."""
        distilled = {"distillation_token": True} if f"init/{DISTILLATION}" in self.tensors else {}
        return config_of(
            self.facts["config"],
            hidden_dropout=0.0,
            attention_dropout=0.0,
            drop_path=0.0,
            **distilled,
        )

    def model(self, moment: str = "init") -> AllInOneForPreTraining:
        """The model with the weights of one moment."""
        return from_reference(self.state(moment), self.model_config)

    def train_config(self, *, stage: int, copies: int) -> TrainConfig:
        """Options of the run that has the learning rates of the file.

        Args:
            stage: ZeRO stage.
            copies: Micro-batches of a step over all ranks; each is the complete batch.
        """
        optimizer = self.facts["optimizer"]
        clips = len(self.tensors["batch0/text_ids"])
        rates = optimizer["lr_of_each_step"]
        for warmup in range(len(rates) + 1):
            config = TrainConfig(
                steps=len(rates),
                global_batch=clips * copies,
                micro_batch=clips,
                lr=max(rates),
                warmup=warmup,
                beta1=optimizer["betas"][0],
                beta2=optimizer["betas"][1],
                eps=optimizer["eps"],
                weight_decay=optimizer["weight_decay"],
                clip_grad=optimizer["clipping"] or 0.0,
                ds_config=f"zero{stage}_fp32",
                log_every=1,
                save_every=len(rates),
                spike_deviations=0.0,
            )
            ours = [learning_rate(config, step) for step in range(1, len(rates) + 1)]
            if all(map(math.isclose, ours, rates)):
                return config
        raise ValueError(f"no linear warm-up and decay has the learning rates {rates}")

    def batch(self, step: int, first_position: int) -> Batch:
        """The batch of step 1, 2, ..."""
        number = self.steps[step - 1]["batch"]

        def stored(name: str) -> Tensor:
            return self.tensors[f"batch{number}/{name}"]

        labels = stored("mlm_labels").long()
        clips = len(labels)
        names = tuple(f"batch {number} clip {row}" for row in range(clips))
        return Batch(
            pixels=stored("pixels").float(),
            text_ids=stored("text_ids").long(),
            text_mask=stored("text_masks").long(),
            mlm_ids=stored("mlm_ids").long(),
            mlm_labels=labels,
            mlm_positions=(labels.flatten() != -100).nonzero().flatten(),
            dataset_ids=torch.zeros(clips, dtype=torch.long),
            dataset_names=("original",),
            clips=names,
            captions=names,
            first_position=first_position,
        )

    def draws(self, step: int, device: torch.device) -> Draws:
        """The original's random choices of step 1, 2, ..."""
        mlm, vtm, labels, clips = (
            self.tensors[f"step{step:02d}/{name}"].long().to(device)
            for name in ("patch_order_mlm", "patch_order_itm", "itm_labels", "itm_video")
        )
        return Draws(mlm_patch_order=mlm, vtm_patch_order=vtm, matching_pairs=(labels, clips))


@dataclass(frozen=True)
class CompleteBatches:
    """Gives every rank and every micro-batch of a step the complete batch of that step."""

    trajectory: Trajectory
    global_batch: int

    def describe(self) -> str:
        return "batches of the original code"

    def step_of(self, position: int) -> int:
        """The step, 1, 2, ..., of a position in the training order."""
        return position // self.global_batch + 1

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        position = first + rank * micro_batch
        while True:
            yield self.trajectory.batch(self.step_of(position), position).to(device)
            position += world * micro_batch


class OriginalAdamW(SkippingAdamW):
    """AdamW by the formula of transformers 4.2.1, which the original trained with.

    eps is added to sqrt(v) before the bias correction, and weights decay after the update:

        p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
        p -= lr * weight_decay * p
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        if self._deciding:
            self.grad_norm = self.norm_of() if self.norm_of else self._norm()
            self.skipped = torch.zeros_like(self.grad_norm)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                t, m, v = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
                m.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                parameter.addcdiv_(m, v.sqrt() + group["eps"], value=-size)
                parameter.sub_(parameter * (group["lr"] * group["weight_decay"]))


def run(out: Path, options: Mapping[str, Any]) -> int:
    """Train one rank; returns its exit code.

    Args:
        out: The run's folder.
        options: file, stage, accumulation, and product: our optimizer instead of the original's.
    """
    from allinone.engine import training_engine
    from allinone.engine.distributed import launch

    trajectory = Trajectory.load(Path(options["file"]))
    copies = int(os.environ.get("WORLD_SIZE", "1")) * options["accumulation"]
    config = trajectory.train_config(stage=options["stage"], copies=copies)
    if not options["product"]:
        training_engine.SkippingAdamW = OriginalAdamW  # type: ignore[misc]
    return launch.main(lambda: replay(trajectory, config, out))


def replay(trajectory: Trajectory, config: TrainConfig, out: Path) -> None:
    """Train on the batches, patch orders and pairs of a trajectory, in this process."""
    from allinone.engine import Trainer

    data = CompleteBatches(trajectory, config.global_batch)
    Trainer(
        config,
        model=trajectory.model(),
        objective=PretrainObjective(
            ObjectiveConfig(wpa=WPA_WEIGHT),
            draws=lambda batch: trajectory.draws(
                data.step_of(batch.first_position), batch.pixels.device
            ),
        ),
        data=data,
        run_config={"train": plain(vars(config))},
        out=out,
    ).train()


def loss_differences(trajectory: Trajectory, out: Path) -> dict[str, float]:
    """Largest absolute difference over all steps: mlm, itm, wpa, total, grad_norm."""
    lines = map(json.loads, (out / "history.jsonl").read_text().splitlines())
    rows = [line for line in lines if "metrics" in line]
    assert [row["step"] for row in rows] == [step["step"] for step in trajectory.steps]
    found = dict.fromkeys([*LOSSES, "total", "grad_norm"], 0.0)
    for row, step in zip(rows, trajectory.steps, strict=True):
        ours = {name: row["metrics"][metric] for name, metric in LOSSES.items()}
        ours["wpa"] *= WPA_WEIGHT
        ours |= {"total": row["loss"], "grad_norm": row["grad_norm"]}
        for name, value in ours.items():
            found[name] = max(found[name], abs(value - step[name]))
    return found


def weight_differences(trajectory: Trajectory, out: Path) -> dict[str, float]:
    """Largest absolute difference of each trained tensor after the last step, by our name."""
    ours = load_file(find_weights(out) / "model.safetensors")
    expected = trajectory.model("final").state_dict()
    untrained = {reference_name(name) for name in trajectory.facts["not_trained"]}
    width = trajectory.model_config.hidden_size
    found = {}
    for name, tensor in expected.items():
        # the heads of the contrastive loss are not in the file: these objectives do not train them
        if name in untrained or name.startswith(CONTRASTIVE):
            continue
        difference = (ours[name] - tensor).abs()
        if name.endswith("qkv.bias"):
            # The bias of the keys adds the same number to all logits of a query, so its gradient is
            # mathematically 0. Adam divides the rounding errors that it gets by their own size and
            # so moves it by the learning rate in a random direction; no output depends on it.
            difference = torch.cat([difference[:width], difference[2 * width :]])
        found[name] = float(difference.max())
    return found


def main() -> int:
    """Replay one trajectory in this process and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="NAME.json; NAME.safetensors is next to it")
    parser.add_argument("--stage", type=int, default=0, help="ZeRO stage")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--product", action="store_true", help="our AdamW, not the original's")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        code = run(out, vars(given))
        if code:
            return code
        trajectory = Trajectory.load(given.file)
        weights = weight_differences(trajectory, out)
        for name, value in loss_differences(trajectory, out).items():
            print(f"{name:10} {value:.1e}")
        worst = max(weights, key=weights.__getitem__)
        print(f"weights    {weights[worst]:.1e} ({worst})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
