"""The text of `tools/plan.py train`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from allinone.common.formatting import count, duration
from allinone.engine.planning.hardware import NETWORKS, Network
from allinone.engine.planning.step_time import Candidate
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import TYPICAL_TOKENS
from allinone.tools.planning.data_plan import Loading
from allinone.tools.planning.failure_plan import FailurePlan, failure_text
from allinone.tools.planning.train_plan import Plan, make_plan

GIB = 2**30
SAME_TIME = 0.01
"""Networks that change a step by less than this share are not shown by themselves."""
PARTS = ("weights", "gradients", "optimizer", "activations", "buckets", "reserve")
NOTES = """\
GiB/rank: tensors that a rank passes to collectives in a step. A ring all-reduce sends twice that
over its link, a gather once. Exposed: not overlapped with compute; reductions overlap only with the
backward pass of the first pass, in which gradients become final. `!`: does not fit. Reserve: 1.5
GiB for CUDA context and NCCL and 5 % for fragmentation (assumed). Times are computed from the
operations of this code and from data sheets, with assumed shares of their rates, and were not
measured on GPUs (docs/planning.md)."""


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
    other = make_plan(
        plan.recipe,
        config,
        plan.gpus,
        plan.device,
        network,
        plan.gpus_per_node,
        plan.pue,
        lengths=plan.lengths,
    )
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
    """Time of a step by ZeRO stage, and with the other networks where they change it by 1 %."""
    titles = "one step|network|GiB/rank|comm. ms|of it exposed|compute ms|update ms|step ms"
    equal, different = [plan.network.name], []
    for network in NETWORKS.values() if plan.gpus > plan.gpus_per_node else ():
        (other,) = (
            each
            for each in _on_network(plan, config, network)
            if each.ds_config == plan.chosen.ds_config
        )
        if network != plan.network and abs(other.step_s / plan.chosen.step_s - 1) < SAME_TIME:
            equal.append(network.name)
        elif network != plan.network:
            different.append((other, network.name))
    name = ", ".join(equal) if plan.gpus > plan.gpus_per_node else "none: one node"
    rows = [[*titles.split("|"), "samples/s", "MFU"]]
    own = [(each, name) for each in _same_size(plan.chosen, plan.candidates)]
    for each, between in (*own, *different):
        sent = sum(collective.bytes for collective in each.collectives)
        communication = each.exposed_s + each.hidden_s
        seconds = (communication, each.exposed_s, each.compute_s, each.update_s, each.step_s)
        rates = [f"{each.samples_per_s:,.0f}", f"{each.mfu:.3f}"]
        rows.append([each.ds_config, between, _gib(sent), *map(_ms, seconds), *rates])
    return rows


def bounds_table(plan: Plan) -> list[list[str]]:
    """What a step consists of, eager and compiled."""
    rows = [
        [
            "ms of a step",
            *(f"{name} *" if each is plan.chosen else name for name, each in plan.by_mode.items()),
        ]
    ]
    for part in plan.chosen.bounds:
        rows.append([part, *(_ms(each.bounds[part]) for each in plan.by_mode.values())])
    rows.append(["all", *(_ms(each.step_s) for each in plan.by_mode.values())])
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
                _ms(plan.in_phase(plan.mode, keeps).step_s),
                f"{hours:,.1f}",
            ]
        )
    return rows


def outcome_table(plan: Plan) -> list[list[str]]:
    """The complete run, eager and compiled; * marks the recipe's."""
    titles = "passes|bound by|MFU|step ms|samples/s|all steps|hours|GPU-hours|kWh"
    rows = [titles.split("|")]
    for mode, candidate in plan.by_mode.items():
        each = plan.outcome(mode)
        rows.append(
            [
                f"{mode}{' *' if candidate is plan.chosen else ''}",
                str(each["bound"]),
                f"{each['mfu']:.3f}",
                _ms(float(each["step_s"])),
                f"{each['samples_per_s']:,.0f}",
                duration(3600 * float(each["hours"])),
                f"{each['hours']:,.1f}",
                f"{each['gpu_hours']:,.0f}",
                f"{each['kwh']:,.0f}",
            ]
        )
    return rows


def texts_line(plan: Plan, config: PretrainConfig) -> str:
    """The length of the texts, and where it comes from."""
    limit, padding = config.model_config().max_text_len, config.loader.text_padding
    known = plan.lengths[0] if plan.lengths else None
    if known is not None:
        source = f"a sample of {len(known):,} captions has {known.mean():.1f} on average"
    else:
        source = (
            f"captions of {TYPICAL_TOKENS} on average are assumed; give --data DIR to take those of"
            " prepared data"
        )
    return (
        f"texts: {plan.text_tokens:.1f} of {limit} tokens computed per caption"
        f" (--text-padding {padding}); {source}"
    )


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
    lines += [
        f"in total {count(cost.total)}FLOPs per clip and"
        f" {count(cost.total * plan.global_batch)}FLOPs per step",
        f"{device.name}: {device.memory / 1e9:.0f} GB, {count(device.rate)}FLOP/s dense 16 bit,"
        f" {device.bandwidth / 1e9:,.0f} GB/s ({device.source}); {device.shares_from}:"
        f" {100 * device.gemm_share:.0f} % of the rate in matrix products,"
        f" {100 * device.attention_share:.0f} % in attention,"
        f" {100 * device.memory_share:.0f} % of the bandwidth; network {network.name}:"
        f" {network.source}, {100 * network.efficiency:.0f} % of the line rate reached (assumed)",
    ]
    return "\n".join(lines)


def as_text(
    plan: Plan,
    config: PretrainConfig,
    table: Callable[[Sequence[Sequence[str]]], str],
    failures: FailurePlan,
    loading: Loading | None = None,
) -> str:
    """The complete plan as text.

    Args:
        plan: The plan.
        config: The recipe with its options.
        table: Formats rows; the first one holds the titles.
        failures: Cost of failures and checkpoints.
        loading: What loading prepared clips costs; None if it was not measured.
    """
    same_micro_batch = [
        each for each in plan.candidates if each.micro_batch == plan.chosen.micro_batch
    ]
    tables = [
        outcome_table(plan),
        *([phase_table(plan, config)] if plan.kept_by_mode else []),
        bounds_table(plan),
        memory_table(same_micro_batch),
        fit_table(plan.candidates),
        time_table(plan, config),
    ]
    first = [
        recommendation(plan),
        data_text(plan, config, loading),
        f"{texts_line(plan, config)}\n{head(plan)}",
    ]
    parts = [*first, *map(table, tables), failure_text(failures, table), NOTES]
    return "\n\n".join(parts)


def recommendation(plan: Plan) -> str:
    """The recommended command and what to expect of it."""
    chosen, device = plan.chosen, plan.device
    best = plan.outcome(plan.mode)
    energy = (
        f", {best['kwh']:,.0f} kWh at {device.watts:.0f} W and PUE {plan.pue:g}"
        if device.watts
        else ""
    )
    part, seconds = next(iter(chosen.bounds.items()))
    return (
        f"recommended: {plan.command()}\n  {plan.reason}\n  planned: {best['hours']:,.1f} h on"
        f" {plan.gpus} {device.name}, {best['samples_per_s']:,.0f} samples/s, MFU"
        f" {best['mfu']:.2f}, {best['gpu_hours']:,.0f} GPU-hours{energy}\n  a step is bound by"
        f" {part}: {_ms(seconds)} of {_ms(chosen.step_s)} ms"
    )


def data_text(plan: Plan, config: PretrainConfig, loading: Loading | None) -> str:
    """Whether prepared data keeps up."""
    frames, units = config.model_config().num_frames, plan.device.decoders
    need = (
        f"data: a node needs {plan.clips_per_node:,.0f} clips/s, {frames} frames each"
        f" ({plan.clips_per_node / min(plan.gpus, plan.gpus_per_node):,.0f} per GPU)"
    )
    if loading is None:
        return f"{need}; give --prepared DIR to measure whether prepared data keeps up"
    cost, enough = loading.cost, loading.throughput
    # from the keyframe on: half a GOP on average
    decoded = plan.clips_per_node * frames * (cost.gop + 1) / 2
    lines = [
        f"{need}: reading, decoding and augmenting them keeps {enough.cores_needed:.1f} of"
        f" {enough.cores} cores busy, "
        + (
            "which is enough"
            if enough.enough
            else f"{enough.reachable_clips_per_s:,.0f} clips/s"
            " are possible: the data bounds the step"
        ),
    ]
    if units:
        lines.append(
            f"  with --decoder dali, NVDEC decodes {100 * cost.on_gpu_share:.0f} % of the clips:"
            f" {decoded / (units * min(plan.gpus, plan.gpus_per_node)):,.0f} frames/s of"
            f" {cost.width} x {cost.height} for each of the {units} units of a GPU"
        )
    return "\n".join(lines)
