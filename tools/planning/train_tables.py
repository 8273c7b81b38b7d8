"""The text of `tools/plan.py train`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from allinone.common.formatting import count, duration
from allinone.engine.planning.hardware import NETWORKS, Network
from allinone.engine.planning.step_time import Candidate
from allinone.pretrain.config import PretrainConfig
from allinone.tools.planning.train_plan import Plan, make_plan

GIB = 2**30
PARTS = ("weights", "gradients", "optimizer", "activations", "buckets", "reserve")
NOTES = """\
GiB/rank: tensors that a rank passes to collectives in a step. A ring all-reduce sends twice that
over its link, a gather once. Exposed: not overlapped with compute; reductions overlap only with the
backward pass of the first pass, in which gradients become final. `!`: does not fit. Reserve: 1.5
GiB for CUDA context and NCCL and 5 % for fragmentation (assumed). All numbers are computed from
data sheets and were not measured on GPUs (docs/planning.md)."""


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _ms(value: float) -> str:
    return f"{1e3 * value:.1f}"


def _same_size(chosen: Candidate, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates with the micro-batch and checkpointing of the chosen one."""
    return [
        each
        for each in candidates
        if (each.micro_batch, each.checkpointing) == (chosen.micro_batch, chosen.checkpointing)
    ]


def _on_network(plan: Plan, config: PretrainConfig, network: Network) -> list[Candidate]:
    """The chosen micro-batch at every ZeRO stage with another network."""
    other = make_plan(plan.recipe, config, plan.gpus, plan.device, network, plan.mfu, plan.pue)
    return _same_size(plan.chosen, other.candidates)


def memory_table(candidates: Sequence[Candidate]) -> list[list[str]]:
    """Peak memory per rank, by part."""
    rows = [["GiB per rank at the peak", *PARTS, "all", "on the host"]]
    for each in candidates:
        recomputed = ", recomputed" * each.checkpointing
        label = f"{each.ds_config}, micro-batch {each.micro_batch}{recomputed}"
        peak = _gib(each.peak) + (" " if each.fits else "!")
        parts = [_gib(each.memory[part]) for part in PARTS]
        rows.append([label, *parts, peak, _gib(each.host)])
    return rows


def fit_table(candidates: Sequence[Candidate]) -> list[list[str]]:
    """Peak memory by ZeRO stage and micro-batch, with and without activation checkpointing."""
    sizes = sorted({each.micro_batch for each in candidates})
    names = list(dict.fromkeys(each.ds_config for each in candidates))
    found = {(each.ds_config, each.checkpointing, each.micro_batch): each for each in candidates}
    rows = [["GiB at the peak, micro-batch", *map(str, sizes)]]
    for recompute in (False, True):
        for name in names:
            cells = [found[name, recompute, size] for size in sizes]
            rows.append(
                [f"{name}, blocks {'recomputed' if recompute else 'kept'}"]
                + [f"{each.peak / GIB:.1f}{' ' if each.fits else '!'}" for each in cells]
            )
    return rows


def time_table(plan: Plan, config: PretrainConfig) -> list[list[str]]:
    """Time of a step by ZeRO stage and network, at the chosen micro-batch."""
    titles = "one step|network|GiB/rank|comm. ms|of it exposed|compute ms|update ms|step ms"
    rows = [[*titles.split("|"), "samples/s", "MFU"]]
    for network in NETWORKS.values():
        for each in _on_network(plan, config, network):
            if each.offload and network != plan.network:
                continue
            sent = sum(collective.bytes for collective in each.collectives)
            communication = each.exposed_s + each.hidden_s
            seconds = (communication, each.exposed_s, each.compute_s, each.update_s, each.step_s)
            rates = [f"{each.samples_per_s:,.0f}", f"{each.mfu:.3f}"]
            rows.append([each.ds_config, network.name, _gib(sent), *map(_ms, seconds), *rates])
    return rows


def phase_table(plan: Plan, config: PretrainConfig) -> list[list[str]]:
    """The two phases of a run with --patch-keep."""
    patches = config.model_config().num_patches
    rows = [["phase", "patches", "steps", "FLOPs per clip", "step ms", "hours"]]
    for keeps, steps, hours in plan.phases():
        used = config.objective.kept_patches(patches) if keeps else patches
        rows.append(
            [
                f"--patch-keep {config.objective.patch_keep:g}" if keeps else "all patches",
                f"{used} of {patches}",
                f"{steps:,}",
                count(plan.cost.at(keeps)),
                _ms(plan.step_s(plan.mfu, keeps)),
                f"{hours:,.1f}",
            ]
        )
    return rows


def outcome_table(plan: Plan) -> list[list[str]]:
    """The complete run at a range of MFU; * marks the assumed one."""
    titles = "MFU of the passes|of the step|step ms|samples/s|all steps|hours|GPU-hours|kWh"
    rows = [titles.split("|")]
    for mfu in plan.mfus:
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
    """The planned run in sentences."""
    cost, device, network = plan.cost, plan.device, plan.network
    video = ", ".join(f"{name.upper()} {count(value)}" for name, value in cost.video.items())
    images = ", ".join(f"{name.upper()} {count(value)}" for name, value in cost.images.items())
    lines = [
        f"{plan.recipe}: {count(plan.parameters)} parameters (heads included), {plan.steps:,} steps"
        f" of {plan.global_batch:,} clips on {plan.gpus} x {device.name}",
        f"FLOPs per clip, forward and backward, FMA = 2: {video}",
    ]
    if images:
        lines.append(
            f"and per image: {images}; {cost.images_per_clip:g} images per clip of the global batch"
        )
    if plan.kept:
        lines.append(
            f"with --patch-keep: {count(cost.at(True))}FLOPs per clip in"
            f" {100 * cost.kept_share:g} % of the steps, {count(cost.at(False))} in the others; the"
            " tables of memory and of one step are those of all patches"
        )
    lines += [
        f"in total {count(cost.total)}FLOPs per clip and"
        f" {count(cost.total * plan.global_batch)}FLOPs per step",
        f"{device.name}: {device.memory / 1e9:.0f} GB, {count(device.rate)}FLOP/s dense 16 bit,"
        f" {device.watts:.0f} W ({device.source}); network {network.name}: {network.source},"
        f" {100 * network.efficiency:.0f} % of the line rate reached (assumed)",
    ]
    return "\n".join(lines)


def as_text(
    plan: Plan, config: PretrainConfig, table: Callable[[Sequence[Sequence[str]]], str]
) -> str:
    """The complete plan as text.

    Args:
        plan: The plan.
        config: The recipe with its options.
        table: Formats rows; the first one holds the titles.
    """
    same_micro_batch = [
        each for each in plan.candidates if each.micro_batch == plan.chosen.micro_batch
    ]
    best = plan.outcome(plan.mfu)
    recommendation = (
        f"recommended: {plan.command()}\n  {plan.reason}\n  planned: {best['hours']:,.1f} h at MFU"
        f" {plan.mfu:g} on {plan.gpus} {plan.device.name}, {best['samples_per_s']:,.0f} samples/s,"
        f" {best['gpu_hours']:,.0f} GPU-hours, {best['kwh']:,.0f} kWh at {plan.device.watts:.0f} W"
        f" and PUE {plan.pue:g}"
    )
    tables = [
        memory_table(same_micro_batch),
        fit_table(plan.candidates),
        time_table(plan, config),
        *([phase_table(plan, config)] if plan.kept else []),
        outcome_table(plan),
    ]
    return "\n\n".join([head(plan), *map(table, tables), recommendation, NOTES])
