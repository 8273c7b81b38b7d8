"""Memory, communication, time and energy of a recipe in every configuration of ds_configs/, and the
recommended configuration."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from allinone.common.errors import InputError
from allinone.engine import ds_config
from allinone.engine.planning.hardware import GPUS_PER_NODE, Device, Network
from allinone.engine.planning.memory import Zero, groups_of
from allinone.engine.planning.step_time import (
    Candidate,
    TrainingJob,
    candidate,
    compute_time,
    recommend,
)
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.cost import Lengths, SampleCost, activations, training_cost
from allinone.pretrain.objectives.registry import active_objectives
from allinone.pretrain.step_counts import Mode, StepPasses, reduce_window


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe on given GPUs."""

    recipe: str
    options: tuple[str, ...]
    """Recipe options of the command line."""
    gpus: int
    device: Device
    network: Network
    gpus_per_node: int
    pue: float
    parameters: int
    global_batch: int
    steps: int
    cost: SampleCost
    lengths: Lengths
    text_tokens: float
    """Tokens per caption that are computed, on average."""
    candidates: list[Candidate]
    chosen: Candidate
    reason: str
    """Why it was chosen."""
    by_mode: dict[str, Candidate]
    """The chosen configuration, eager and compiled, in steps with all patches, which all candidates
    have."""
    kept_by_mode: dict[str, Candidate]
    """The same in steps with --patch-keep; empty without."""

    @property
    def mode(self) -> str:
        """eager or compiled, as the recipe trains."""
        return next(mode for mode, each in self.by_mode.items() if each is self.chosen)

    def in_phase(self, mode: str, kept: bool) -> Candidate:
        """The chosen configuration in one phase.

        Args:
            mode: eager or compiled.
            kept: Steps with --patch-keep; False: those with all patches.
        """
        return self.kept_by_mode[mode] if kept and self.kept_by_mode else self.by_mode[mode]

    def outcome(self, mode: str) -> dict[str, float | str]:
        """Rates and totals of the chosen configuration, averaged over the steps.

        Args:
            mode: eager or compiled.
        """
        share = self.cost.kept_share
        kept, complete = self.in_phase(mode, True), self.in_phase(mode, False)
        step = share * kept.step_s + (1 - share) * complete.step_s
        # seconds of a step at MFU 1
        ideal = share * kept.mfu * kept.step_s + (1 - share) * complete.mfu * complete.step_s
        hours = self.steps * step / 3600
        return {
            "mode": mode,
            "bound": next(iter((kept if share > 0.5 else complete).bounds)),
            "mfu": ideal / step,
            "step_s": step,
            "samples_per_s": self.global_batch / step,
            "hours": hours,
            "gpu_hours": hours * self.gpus,
            "kwh": hours * self.gpus * self.device.watts / 1000 * self.pue,
        }

    def phases(self) -> list[tuple[bool, int, float]]:
        """Whether it uses --patch-keep, steps and hours of each phase."""
        kept = round(self.cost.kept_share * self.steps)
        counts = [(True, kept), (False, self.steps - kept)]
        return [
            (keeps, steps, steps * self.in_phase(self.mode, keeps).step_s / 3600)
            for keeps, steps in counts
            if steps
        ]

    @property
    def clips_per_node(self) -> float:
        """Clips that a node trains on per second, in the faster phase."""
        fastest = max(self.in_phase(self.mode, kept).samples_per_s for kept in (False, True))
        return fastest / max(1, self.gpus / self.gpus_per_node)

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
    gpus_per_node: int = GPUS_PER_NODE,
    pue: float = 1.0,
    options: Sequence[str] = (),
    lengths: Lengths = (),
) -> Plan:
    """Estimate every configuration of ds_configs/ in the precision of the recipe and device.

    Args:
        recipe: Name of the recipe, for the command.
        config: The recipe with its options.
        gpus: Number of GPUs.
        device: The GPU.
        network: The network between nodes.
        gpus_per_node: GPUs of a node.
        pue: Power usage effectiveness of the data centre.
        options: Recipe options of the command line, for the command.
        lengths: Of the captions.

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
    cost = training_cost(config, gpus, lengths)
    passes = StepPasses(config, precision, device.has_bf16, lengths)
    job = TrainingJob(
        groups,
        gpus,
        train.global_batch,
        cost.all_patches,
        reduce_window(config, cost),
        gpus_per_node,
        average=train.ema > 0,
    )
    demanding = max(active_objectives(config.objective), key=lambda each: each.min_clips)
    least = demanding.min_clips
    sizes = micro_batches(train.global_batch // gpus, least, train.micro_batch)
    if not sizes:
        raise InputError(
            f"--gpus {gpus} leaves {train.global_batch // gpus} clips per rank, but"
            f" {demanding.label} needs {least}; use fewer GPUs or a larger --global-batch"
        )
    modes: tuple[Mode, ...] = ("eager", "compiled")

    def found(mode: Mode, sizes: Sequence[int], kept: bool = False) -> list[Candidate]:
        each = replace(job, flops_per_sample=cost.at(kept))
        return _candidates(passes, each, sizes, device, network, mode, kept)

    mode: Mode = "eager" if train.compile is False else "compiled"
    candidates = found(mode, sizes)
    try:
        chosen, reason = recommend(candidates)
    except ValueError as error:
        raise InputError(
            f"{device.name}: {error}; use more GPUs, a device with more memory, or a smaller model"
        ) from error

    def same(mode: Mode, kept: bool) -> Candidate:
        names = (chosen.ds_config, chosen.checkpointing)
        return next(
            each
            for each in found(mode, [chosen.micro_batch], kept)
            if (each.ds_config, each.checkpointing) == names
        )

    return Plan(
        recipe=recipe,
        options=tuple(options),
        gpus=gpus,
        device=device,
        network=network,
        gpus_per_node=gpus_per_node,
        pue=pue,
        parameters=sum(map(sum, groups)),
        global_batch=train.global_batch,
        steps=train.steps,
        cost=cost,
        lengths=tuple(lengths),
        text_tokens=passes.text_tokens(),
        candidates=candidates,
        chosen=chosen,
        reason=reason,
        by_mode={each: chosen if each == mode else same(each, kept=False) for each in modes},
        kept_by_mode={each: same(each, kept=True) for each in modes} if cost.kept else {},
    )


def _candidates(
    passes: StepPasses,
    job: TrainingJob,
    sizes: Sequence[int],
    device: Device,
    network: Network,
    mode: Mode,
    kept: bool,
) -> list[Candidate]:
    """Each file of ds_configs/ in a precision, with each micro-batch, with and without activation
    checkpointing, in steps with --patch-keep (`kept`) or with all patches. NVMe offload is not
    planned: its speed is that of the disks."""
    found = []
    for size, recompute in itertools.product(sizes, (False, True)):
        times = {}
        for each in dict.fromkeys(("eager", mode)):
            # alternating co-training counts as video only
            _, operations = passes.operations(size, each, kept=kept, checkpointing=recompute)[0]
            times[each] = compute_time(operations, device, passes.precision)
        for path in sorted(ds_config.FOLDER.glob("*.json")):
            zero = Zero.from_config(ds_config.load(path.stem))
            if zero.precision != passes.precision or "nvme" in path.stem:
                continue
            # mask 1: on a GPU a dropout mask takes one byte per element
            saved = activations(
                passes.config, zero.element, 1, micro_batch=size, checkpointing=recompute
            )
            # blocks are not compiled with ZeRO 3
            compute = times[mode if zero.stage < 3 else "eager"]
            found.append(
                candidate(job, path.stem, zero, size, saved, compute, device, network, recompute)
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
    content = asdict(replace(plan, lengths=())) | {
        "command": plan.command(),
        "outcome": [plan.outcome(mode) for mode in plan.by_mode],
        "bounds": plan.chosen.bounds,
    }
    content["cost"]["total"] = plan.cost.total
    if plan.kept_by_mode:
        content["phases"] = [
            {"kept": kept, "steps": steps, "flops": plan.cost.at(kept), "hours": hours}
            for kept, steps, hours in plan.phases()
        ]
    return content
