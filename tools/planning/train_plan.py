"""Memory, communication, time and energy of a recipe in every configuration of ds_configs/, and the
recommended configuration."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from allinone.common.errors import InputError
from allinone.engine import ds_config
from allinone.engine.planning.hardware import Device, Network
from allinone.engine.planning.memory import Zero, groups_of
from allinone.engine.planning.step_time import Candidate, TrainingJob, candidate, recommend
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.cost import SampleCost, activations, training_cost
from allinone.pretrain.objectives.registry import active_objectives

MFU_RANGE = (0.3, 0.4, 0.5)
"""Values of MFU that are always shown."""


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe on given GPUs."""

    recipe: str
    options: tuple[str, ...]
    """Recipe options of the command line."""
    gpus: int
    device: Device
    network: Network
    mfu: float
    pue: float
    parameters: int
    global_batch: int
    steps: int
    cost: SampleCost
    candidates: list[Candidate]
    chosen: Candidate
    reason: str
    """Why it was chosen."""
    kept: Candidate | None = None
    """The chosen configuration in steps with --patch-keep; the candidates are those of all
    patches."""

    def step_s(self, mfu: float, kept: bool = False) -> float:
        """Seconds of a step of the chosen configuration.

        Args:
            mfu: MFU of the forward and backward passes.
            kept: Of the steps with --patch-keep; False: of those with all patches.
        """
        each = self.kept if kept and self.kept else self.chosen
        return each.step_s - each.compute_s + each.compute_s * self.mfu / mfu

    def outcome(self, mfu: float) -> dict[str, float]:
        """Rates and totals of the chosen configuration at an MFU of the forward and backward
        passes."""
        share, each = self.cost.kept_share, self.kept or self.chosen
        step = share * self.step_s(mfu, kept=True) + (1 - share) * self.step_s(mfu)
        # seconds of a step at MFU 1
        ideal = share * each.mfu * each.step_s + (1 - share) * self.chosen.mfu * self.chosen.step_s
        hours = self.steps * step / 3600
        return {
            "mfu": mfu,
            "mfu_of_step": ideal / step,
            "step_s": step,
            "samples_per_s": self.global_batch / step,
            "hours": hours,
            "gpu_hours": hours * self.gpus,
            "kwh": hours * self.gpus * self.device.watts / 1000 * self.pue,
        }

    def phases(self) -> list[tuple[bool, int, float]]:
        """Whether it uses --patch-keep, steps and hours of each phase, at the assumed MFU."""
        kept = round(self.cost.kept_share * self.steps)
        counts = [(True, kept), (False, self.steps - kept)]
        return [
            (keeps, steps, steps * self.step_s(self.mfu, keeps) / 3600)
            for keeps, steps in counts
            if steps
        ]

    @property
    def mfus(self) -> list[float]:
        """Values of MFU to show, ascending."""
        return sorted({*MFU_RANGE, self.mfu})

    def command(self) -> str:
        """The command line that starts the chosen configuration."""
        chosen = self.chosen
        words = ["pretrain/train.py", self.recipe, *self.options]
        words += ["--ds-config", chosen.ds_config, "--micro-batch", str(chosen.micro_batch)]
        words += ["--activation-checkpointing"] * chosen.checkpointing
        return " ".join(words)


def micro_batches(share: int, least: int, wanted: int) -> list[int]:
    """Micro-batches to compare: divisors of a rank's share of the global batch.

    Args:
        share: Clips per rank and step.
        least: Smallest micro-batch.
        wanted: The recipe's micro-batch.

    Returns:
        Powers of two, the recipe's own and the complete share, ascending.
    """
    powers = {2**power for power in range(share.bit_length())}
    return sorted(size for size in powers | {wanted, share} if share % size == 0 and size >= least)


@functools.cache
def _groups(options: ModelOptions, image_heads: bool) -> tuple[tuple[int, ...], ...]:
    """Parameter sizes of a recipe's model, by optimizer group."""
    with torch.device("meta"):  # shapes only
        model = AllInOneForPreTraining(options.build_config(image_heads))
        return tuple(map(tuple, groups_of(model)))


def make_plan(
    recipe: str,
    config: PretrainConfig,
    gpus: int,
    device: Device,
    network: Network,
    mfu: float,
    pue: float,
    options: Sequence[str] = (),
) -> Plan:
    """Estimate every configuration of ds_configs/ in the precision of the recipe and device.

    Args:
        recipe: Name of the recipe, for the command.
        config: The recipe with its options.
        gpus: Number of GPUs.
        device: The GPU.
        network: The network between nodes.
        mfu: Assumed MFU of the forward and backward passes.
        pue: Power usage effectiveness of the data centre.
        options: Recipe options of the command line, for the command.

    Raises:
        InputError: The batch does not divide over the GPUs, or no configuration fits.
    """
    train = config.train
    if train.global_batch % gpus:
        raise InputError(
            f"--global-batch {train.global_batch} is not a multiple of --gpus {gpus}; change one of"
            " the two"
        )
    separate_heads = config.cotrain.image_heads == "separate" and bool(config.cotrain.images)
    groups = _groups(replace(config.model, init_from=None), separate_heads)
    precision = Zero.from_config(ds_config.load(train.ds_config)).precision
    if not device.has_bf16 and precision == "bf16":
        precision = "fp16"
    cost = training_cost(config, gpus)
    passes = list(cost.video.values())
    # backward is 2/3 of a pass; gradients become final in that of the first one
    window = 2 / 3 * passes[0] / sum(passes)
    job = TrainingJob(groups, gpus, train.global_batch, cost.all_patches, mfu, window)
    demanding = max(active_objectives(config.objective), key=lambda each: each.min_clips)
    least = demanding.min_clips
    sizes = micro_batches(train.global_batch // gpus, least, train.micro_batch)
    if not sizes:
        raise InputError(
            f"--gpus {gpus} leaves {train.global_batch // gpus} clips per rank, but"
            f" {demanding.label} needs {least}; use fewer GPUs or a larger --global-batch"
        )
    candidates = _candidates(config, job, precision, sizes, (False, True), device, network)
    try:
        chosen, reason = recommend(candidates)
    except ValueError as error:
        raise InputError(
            f"{device.name}: {error}; use more GPUs, a device with more memory, or a smaller model"
        ) from error
    kept = None
    if cost.kept:
        fewer = replace(job, flops_per_sample=cost.at(True))
        same = (chosen.micro_batch,), (chosen.checkpointing,)
        by_name = _candidates(config, fewer, precision, *same, device, network)
        kept = next(each for each in by_name if each.ds_config == chosen.ds_config)
    return Plan(
        recipe=recipe,
        options=tuple(options),
        gpus=gpus,
        device=device,
        network=network,
        mfu=mfu,
        pue=pue,
        parameters=sum(map(sum, groups)),
        global_batch=train.global_batch,
        steps=train.steps,
        cost=cost,
        candidates=candidates,
        chosen=chosen,
        reason=reason,
        kept=kept,
    )


def _candidates(
    config: PretrainConfig,
    job: TrainingJob,
    precision: str,
    sizes: Sequence[int],
    recomputes: Sequence[bool],
    device: Device,
    network: Network,
) -> list[Candidate]:
    """Each file of ds_configs/ in a precision, with each micro-batch and choice of activation
    checkpointing. NVMe offload is not planned: its speed is that of the disks."""
    found = []
    for path in sorted(ds_config.FOLDER.glob("*.json")):
        zero = Zero.from_config(ds_config.load(path.stem))
        if zero.precision != precision or "nvme" in path.stem:
            continue
        for size in sizes:
            for recompute in recomputes:
                # mask 1: on a GPU a dropout mask takes one byte per element
                kept = activations(
                    config, zero.element, 1, micro_batch=size, checkpointing=recompute
                )
                found.append(
                    candidate(job, path.stem, zero, size, kept, device, network, recompute)
                )
    return found


def scaled(config: PretrainConfig, gpus: int, per_gpu: int | None) -> PretrainConfig:
    """A recipe at a number of GPUs.

    Args:
        config: The recipe.
        gpus: Number of GPUs.
        per_gpu: Clips per GPU and step, with proportionally many images of co-training; None
            returns the recipe unchanged.
    """
    if per_gpu is None:
        return config
    batch = per_gpu * gpus
    images = max(1, round(config.cotrain.image_batch * batch / config.train.global_batch))
    return replace(
        config,
        train=replace(config.train, global_batch=batch, micro_batch=per_gpu),
        cotrain=replace(config.cotrain, image_batch=images),
    )


def as_json(plan: Plan) -> dict[str, object]:
    """All candidates, the command and the outcome."""
    content = asdict(plan) | {
        "command": plan.command(),
        "outcome": [plan.outcome(mfu) for mfu in plan.mfus],
    }
    content["cost"]["total"] = plan.cost.total
    if plan.kept:
        content["phases"] = [
            {"kept": kept, "steps": steps, "flops": plan.cost.at(kept), "hours": hours}
            for kept, steps, hours in plan.phases()
        ]
    return content
