"""`tools/plan.py train`: memory, traffic, time, energy and the configuration to take for a recipe
on GPUs that need not be at hand."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from allinone.common.command import at_least_one
from allinone.common.errors import ConfigError, InputError
from allinone.common.formatting import count, duration
from allinone.common.tables import markdown, plain
from allinone.engine import ds_config
from allinone.engine.planning.hardware import (
    DEVICES,
    NETWORKS,
    USUAL_NETWORK,
    Device,
    Network,
    find_device,
    find_network,
)
from allinone.engine.planning.memory import Zero, groups_of
from allinone.engine.planning.step_time import Candidate, TrainingJob, candidate, recommend
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.cost import SampleCost, activations, training_cost

MFU_RANGE = (0.3, 0.4, 0.5)
PUE = 1.2
"""Power usage effectiveness of the hall, unless --pue says otherwise."""
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Everything that is printed."""

    recipe: str
    options: tuple[str, ...]
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

    def outcome(self, mfu: float) -> dict[str, float]:
        """Expected rates and totals of the chosen configuration, if forward and backward passes ran
        at that MFU."""
        compute = self.chosen.compute_s * self.mfu / mfu
        step = self.chosen.step_s - self.chosen.compute_s + compute
        hours = self.steps * step / 3600
        return {
            "mfu": mfu,
            "mfu_of_step": self.chosen.mfu * self.chosen.step_s / step,
            "step_s": step,
            "samples_per_s": self.global_batch / step,
            "hours": hours,
            "gpu_hours": hours * self.gpus,
            "kwh": hours * self.gpus * self.device.watts / 1000 * self.pue,
        }

    def command(self) -> str:
        """The exact options to give."""
        each = self.chosen
        recompute = " --activation-checkpointing True" if each.checkpointing else ""
        own = "".join(f" {option}" for option in self.options)
        return (
            f"pretrain/train.py {self.recipe}{own} --ds-config {each.ds_config} --micro-batch"
            f" {each.micro_batch}{recompute}"
        )


def micro_batches(share: int, least: int, wanted: int) -> list[int]:
    """Micro-batches that divide a rank's share of the global batch: powers of two, the recipe's own
    and the whole share."""
    powers = {2**power for power in range(share.bit_length())}
    return sorted(size for size in powers | {wanted, share} if share % size == 0 and size >= least)


@functools.cache
def _groups(options: ModelOptions, image_heads: bool) -> tuple[tuple[int, ...], ...]:
    """Parameter sizes of a recipe's model by optimizer group."""
    with torch.device("meta"):  # shapes only
        return tuple(
            map(tuple, groups_of(AllInOneForPreTraining(options.build_config(image_heads))))
        )


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
    """Every configuration of ds_configs/ in the precision that the device trains in. Raises
    InputError where nothing can be planned."""
    train = config.train
    if train.global_batch % gpus:
        raise InputError(
            f"--global-batch {train.global_batch} is not a multiple of --gpus {gpus}; change one of"
            " the two"
        )
    groups = _groups(
        replace(config.model, init_from=None),
        config.cotrain.image_heads == "separate" and bool(config.cotrain.images),
    )
    precision = Zero.from_config(ds_config.load(train.ds_config)).precision
    if not device.has_bf16 and precision == "bf16":
        precision = "fp16"
    cost = training_cost(config, gpus)
    passes = list(cost.video.values())
    job = TrainingJob(
        groups, gpus, train.global_batch, cost.total, mfu, 2 / 3 * passes[0] / sum(passes)
    )
    least = 2 if config.objective.vtm else 1
    sizes = micro_batches(train.global_batch // gpus, least, train.micro_batch)
    if not sizes:
        raise InputError(
            f"--gpus {gpus} leave {train.global_batch // gpus} clips per rank, fewer than the"
            f" {least} that VTM needs"
        )
    found = []
    for path in sorted(ds_config.FOLDER.glob("*.json")):
        zero = Zero.from_config(ds_config.load(path.stem))
        if zero.precision != precision or "nvme" in path.stem:  # NVMe's speed is the disks'
            continue
        for size in sizes:
            for recompute in (False, True):
                kept = activations(
                    config, zero.element, 1, micro_batch=size, checkpointing=recompute
                )
                found.append(
                    candidate(job, path.stem, zero, size, kept, device, network, recompute)
                )
    try:
        chosen, reason = recommend(found)
    except ValueError as error:
        raise InputError(
            f"{device.name}: {error}; take more GPUs, a device with more memory, or a smaller model"
        ) from error
    return Plan(
        recipe,
        tuple(options),
        gpus,
        device,
        network,
        mfu,
        pue,
        sum(map(sum, groups)),
        train.global_batch,
        train.steps,
        cost,
        found,
        chosen,
        reason,
    )


def on_network(plan: Plan, config: PretrainConfig, network: Network) -> list[Candidate]:
    """The chosen micro-batch at every stage over another network."""
    other = make_plan(plan.recipe, config, plan.gpus, plan.device, network, plan.mfu, plan.pue)
    return _alike(plan.chosen, other.candidates)


def _alike(chosen: Candidate, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The same micro-batch and recomputation at every stage."""
    return [
        each
        for each in candidates
        if (each.micro_batch, each.checkpointing) == (chosen.micro_batch, chosen.checkpointing)
    ]


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _ms(value: float) -> str:
    return f"{1e3 * value:.1f}"


def memory_table(candidates: Sequence[Candidate]) -> list[list[str]]:
    """Memory per rank at the highest moment, by part."""
    parts = ("weights", "gradients", "optimizer", "activations", "buckets", "reserve")
    rows = [["GiB per rank at the peak", *parts, "all", "on the host"]]
    for each in candidates:
        label = (
            f"{each.ds_config}, micro-batch {each.micro_batch}"
            + ", recomputed" * each.checkpointing
        )
        rows.append(
            [
                label,
                *(_gib(each.memory[part]) for part in parts),
                _gib(each.peak) + " " * each.fits + "!" * (not each.fits),
                _gib(each.host),
            ]
        )
    return rows


def fit_table(candidates: Sequence[Candidate]) -> list[list[str]]:
    """Peak memory by stage and micro-batch, blocks kept and recomputed."""
    sizes = sorted({each.micro_batch for each in candidates})
    names = list(dict.fromkeys(each.ds_config for each in candidates))
    rows = [["GiB at the peak, micro-batch", *map(str, sizes)]]
    for recompute in (False, True):
        for name in names:
            row = {
                each.micro_batch: each
                for each in candidates
                if each.ds_config == name and each.checkpointing == recompute
            }
            rows.append(
                [f"{name}, blocks {'recomputed' if recompute else 'kept'}"]
                + [f"{row[size].peak / GIB:.1f}{' ' if row[size].fits else '!'}" for size in sizes]
            )
    return rows


def time_table(plan: Plan, config: PretrainConfig) -> list[list[str]]:
    """A step by stage and network, at the chosen micro-batch."""
    rows = [
        [
            "one step",
            "network",
            "GiB/rank",
            "comm. ms",
            "of it exposed",
            "compute ms",
            "update ms",
            "step ms",
            "samples/s",
            "MFU",
        ]
    ]
    for network in NETWORKS.values():
        for each in on_network(plan, config, network):
            if each.offload and network != plan.network:
                continue
            sent = sum(collective.bytes for collective in each.collectives)
            rows.append(
                [
                    each.ds_config,
                    network.name,
                    _gib(sent),
                    _ms(each.exposed_s + each.hidden_s),
                    _ms(each.exposed_s),
                    _ms(each.compute_s),
                    _ms(each.update_s),
                    _ms(each.step_s),
                    f"{each.samples_per_s:,.0f}",
                    f"{each.mfu:.3f}",
                ]
            )
    return rows


def outcome_table(plan: Plan) -> list[list[str]]:
    """The whole run at a range of MFU."""
    rows = [
        [
            "MFU of the passes",
            "of the step",
            "step ms",
            "samples/s",
            "whole run",
            "hours",
            "GPU-hours",
            "kWh",
        ]
    ]
    for mfu in sorted({*MFU_RANGE, plan.mfu}):
        each = plan.outcome(mfu)
        rows.append(
            [
                f"{mfu:g}{' *' if mfu == plan.mfu else ''}",
                f"{each['mfu_of_step']:.3f}",
                _ms(each["step_s"]),
                f"{each['samples_per_s']:,.0f}",
                duration(3600 * each["hours"]),
                f"{each['hours']:,.1f}",
                f"{each['gpu_hours']:,.0f}",
                f"{each['kwh']:,.0f}",
            ]
        )
    return rows


def head(plan: Plan) -> str:
    """What is planned, in sentences."""
    cost, device, network = plan.cost, plan.device, plan.network
    video = ", ".join(f"{name.upper()} {count(value)}" for name, value in cost.video.items())
    images = ", ".join(f"{name.upper()} {count(value)}" for name, value in cost.images.items())
    lines = [
        (
            f"{plan.recipe}: {count(plan.parameters)} parameters (heads included), {plan.steps:,}"
            f" steps of {plan.global_batch:,} clips on {plan.gpus} x {device.name}"
        ),
        f"FLOPs per clip, forward and backward, FMA = 2: {video}",
    ]
    if images:
        lines.append(
            f"and per image: {images}; {cost.images_per_clip:g} images per clip of the global batch"
        )
    lines += [
        (
            f"in all {count(cost.total)}FLOPs per clip and"
            f" {count(cost.total * plan.global_batch)}FLOPs per step"
        ),
        (
            f"{device.name}: {device.memory / 1e9:.0f} GB, {count(device.rate)}FLOP/s dense 16 bit,"
            f" {device.watts:.0f} W ({device.source}); network {network.name}: {network.source},"
            f" {100 * network.efficiency:.0f} % of the line rate reached (assumed)"
        ),
    ]
    return "\n".join(lines)


NOTES = """GiB/rank: tensors that a rank hands to collectives in a step. A ring all-reduce puts twice that on its link, a gather once. Exposed: not
behind the backward pass; gradients finish while the first of the passes runs backward, and only there can their reduction hide. `!`: does not fit.
Reserve: 1.5 GiB for CUDA context and NCCL and 5 % for fragmentation, assumed. Arithmetic on data sheets: no GPU was at hand (docs/planning.md)."""


def text(plan: Plan, config: PretrainConfig, table: object = plain) -> str:
    """The whole plan as text; `table` lays out rows."""
    show = markdown if table is markdown else plain
    near = [each for each in plan.candidates if each.micro_batch == plan.chosen.micro_batch]
    best = plan.outcome(plan.mfu)
    return "\n\n".join(
        [
            head(plan),
            show(memory_table(near)),
            show(fit_table(plan.candidates)),
            show(time_table(plan, config)),
            show(outcome_table(plan)),
            (
                f"recommended: {plan.command()}\n  {plan.reason}\n  planned: {best['hours']:,.1f} h"
                f" at MFU {plan.mfu:g} on {plan.gpus} {plan.device.name},"
                f" {best['samples_per_s']:,.0f} samples/s, {best['gpu_hours']:,.0f} GPU-hours,"
                f" {best['kwh']:,.0f} kWh at {plan.device.watts:.0f} W and PUE {plan.pue:g}"
            ),
            NOTES,
        ]
    )


def as_json(plan: Plan) -> dict[str, object]:
    """All candidates and the outcome, for machines."""
    content = asdict(plan) | {
        "command": plan.command(),
        "outcome": [plan.outcome(mfu) for mfu in sorted({*MFU_RANGE, plan.mfu})],
    }
    content["cost"]["total"] = plan.cost.total
    return content


def add_train_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; options that it does not know are the recipe's."""
    parser = subparsers.add_parser(
        "train",
        help="what a recipe needs on GPUs: memory, time, energy, and which configuration to take",
        description=(
            "Plans a recipe of pretrain/train.py without a GPU. Options that are not listed here"
            " are the recipe's own (--frames 8, --size large, --global-batch 4096 ...)."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe of pretrain/train.py")
    parser.add_argument(
        "--gpus", type=at_least_one, default=128, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--device",
        default="a100-80g",
        metavar="NAME",
        help=f"{', '.join(DEVICES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--network", metavar="NAME", help=f"{', '.join(NETWORKS)} (default: the device's usual one)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="of forward and backward passes (default: %(default)s)",
    )
    parser.add_argument(
        "--pue",
        type=float,
        default=PUE,
        help="power usage effectiveness of the hall (default: %(default)s)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw the scaling from 8 to 1,024 GPUs (.png, .webp, .pdf, .svg)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.set_defaults(plan=plan_train, takes_recipe_options=True)


def plan_train(args: argparse.Namespace) -> None:
    """Parse the recipe, plan, print, draw."""
    from allinone.pretrain.train import parse

    for name, low, high in (("mfu", 0, 1), ("pue", 1, 10)):
        if not low < getattr(args, name) + (name == "pue") * 1e-9 <= high:
            raise InputError(
                f"--{name} must be above {low} and at most {high}, got {getattr(args, name)}"
            )
    try:
        device = find_device(args.device)
        network = find_network(args.network or USUAL_NETWORK.get(args.device, "ib-hdr"))
    except ValueError as error:
        raise InputError(f"{error}; see --device, --network") from error
    try:
        config = parse([args.recipe, *args.recipe_options])
        config.model_config()
        plan = make_plan(
            args.recipe, config, args.gpus, device, network, args.mfu, args.pue, args.recipe_options
        )
    except InputError:
        raise
    except (ConfigError, ValueError) as error:
        raise InputError(str(error)) from error
    if args.picture:
        from allinone.tools.planning.scaling_figure import draw_scaling

        draw_scaling(args.picture, args.recipe, config, device, args.mfu)
    if args.json:
        print(json.dumps(as_json(plan)))
    else:
        print(text(plan, config, markdown if args.markdown else plain))
    if args.picture and not args.json:
        print(f"\nscaling: {args.picture}")


def scaled(config: PretrainConfig, gpus: int, per_gpu: int | None) -> PretrainConfig:
    """The recipe with its own global batch, or with that many clips per GPU; its images scale
    along."""
    if per_gpu is None:
        return config
    batch = per_gpu * gpus
    images = max(1, round(config.cotrain.image_batch * batch / config.train.global_batch))
    return replace(
        config,
        train=replace(config.train, global_batch=batch, micro_batch=per_gpu),
        cotrain=replace(config.cotrain, image_batch=images),
    )
