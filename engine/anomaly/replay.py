"""Replays a step: recreates its micro-batches from seed and position and computes them again.

The forward and backward passes run on the module without DeepSpeed's engine, whose weights and
gradients are not touched. Letters: B clips of a micro-batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allinone.engine.anomaly.detector import Anomaly
from allinone.engine.anomaly.verdict import judge, middle
from allinone.engine.distributed import contrastive, topology
from allinone.engine.distributed.collectives import all_gather_object
from allinone.engine.monitoring.accumulator import MicroBatchRecord
from allinone.engine.objective import CountingObjective, seed_of

MAX_HIGHEST = 5
"""Clips with the highest losses that the report on a loss spike lists."""
MAX_UNCLEAR = 4
"""Rows that are not finite on every rank at once and are tried rank by rank; each costs a forward
pass per rank."""


@dataclass(frozen=True)
class ReplayContext:
    """What a replay needs, and the circumstances of the step."""

    module: nn.Module
    """Called with a batch, returns (loss, metrics): the module that DeepSpeed drives, without its
    engine."""
    batches_from: Callable[[int], Iterator[Any]]
    """Returns this rank's micro-batches from a step (1, 2, ...) on, recreated."""
    seed: int
    lr: float
    """Learning rate of the step."""
    updates_since: int
    """Number of weight updates since the step, its own included."""
    full_gradients: bool
    """False under ZeRO 3 and tensor parallelism, where a rank holds only parts of a layer: there
    are no gradients by layer then."""
    device: str


def replay_step(
    anomaly: Anomaly,
    records: Sequence[MicroBatchRecord],
    context: ReplayContext,
    report: dict[str, Any],
) -> dict[str, Any]:
    """Compute a step again and decide whether the anomaly is reproduced; collective.

    Args:
        anomaly: What was found.
        records: This rank's micro-batches of the step.
        context: What the replay needs.
        report: What was observed the first time.

    Returns:
        The report's entry "replay", see docs/monitoring.md.
    """
    weights = {"updates_since": context.updates_since, "exact": context.updates_since == 0}

    def failed(reason: str) -> dict[str, Any]:
        return {"weights": weights, "reproduced": None, "verdict": reason}

    # exchange problems before each stage: one rank must not return while others enter collectives
    batches, problem = _recreate_batches(anomaly.step, records, context)
    if problems := [text for text in all_gather_object(problem) if text]:
        return failed(f"the batch could not be recreated: {problems[0]}")
    clips = [micro.clips for micro in records]
    same_clips = all(all_gather_object([tuple(batch.clips) for batch in batches] == clips))
    try:
        if context.device != "cpu":
            # DeepSpeed's buffers stay allocated, and the replay needs gradients of its own
            torch.cuda.empty_cache()
        losses, metrics, gradients = _compute(batches, context)
    except torch.OutOfMemoryError as error:
        if dist.get_world_size() > 1 and (contrastive.in_use() or not context.full_gradients):
            # other ranks are blocked in a collective of this forward pass and would never reach the
            # next line: a restart is better than a hang
            raise
        losses, metrics, gradients, problem = [], [], None, str(error).splitlines()[0]
    if problems := [text for text in all_gather_object(problem) if text]:
        return failed(f"the step could not be computed again: {problems[0]}")
    losses_by_rank = topology.of_data_ranks(losses)
    layers = _layers(context.module, gradients) if gradients is not None else None
    flat = [loss for part in losses_by_rank for loss in part]
    observed = [micro["loss"] for rank in report["ranks"] for micro in rank["micro_batches"]]
    result: dict[str, Any] = {
        "weights": weights,
        "same_clips": same_clips,
        "same_losses": all(
            a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(flat, observed, strict=True)
        ),
        "loss": sum(flat) / len(flat),
        "objectives": means_over_ranks(sums_of(metrics)),
        "losses_by_rank": losses_by_rank,
        "gradient_norm": _total(layers) if layers is not None else None,
        "layers": layers,
        "offending_clips": [],
        "highest": [],
        "clips_alone": {"computed": 0, "unusual": 0},
    }
    # no clip is to blame for weights that are not finite
    result["weights_finite"] = all(all_gather_object(_is_finite(context.module)))
    if all(all_gather_object(all(hasattr(batch, "only") for batch in batches))):
        if not all(math.isfinite(loss) for loss in flat):
            offending = _find_offending_clips(batches, context)
            computed = sum(topology.of_data_ranks(len(_positions(batches))))
            result["offending_clips"] = offending
            result["clips_alone"] = {"computed": computed, "unusual": len(offending)}
        elif anomaly.reason == "loss spike":
            every = _highest(batches, context)
            unusual = sum(entry["loss"] > middle(anomaly) for entry in every)
            result["highest"] = every[:MAX_HIGHEST]
            result["clips_alone"] = {"computed": len(every), "unusual": unusual}
    return {**result, **judge(anomaly, report, result)}


def _is_finite(module: nn.Module) -> bool:
    """Whether this rank's weights are finite."""
    return all(bool(torch.isfinite(weight).all()) for weight in module.parameters())


def _recreate_batches(
    step: int, records: Sequence[MicroBatchRecord], context: ReplayContext
) -> tuple[list[Any], str]:
    """Fetch the micro-batches of a step again.

    Args:
        step: The step.
        records: This rank's micro-batches.
        context: What the replay needs.

    Returns:
        The micro-batches, and what failed on this rank.
    """
    batches = context.batches_from(step)
    try:
        return [_as_trained(next(batches), micro, context) for micro in records], ""
    except Exception as error:  # noqa: BLE001 - reported; a replay never ends the run
        return [], f"{type(error).__name__}: {error}"
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _as_trained(batch: Any, micro: MicroBatchRecord, context: ReplayContext) -> Any:
    """The batch with the numbers of items that the losses were divided by."""
    if micro.mean_items is None:
        return batch
    objective = context.module.objective  # of engine.objective.StepModule
    assert isinstance(objective, CountingObjective)
    return objective.with_mean_items(batch, micro.mean_items)


def _compute(
    batches: Sequence[Any], context: ReplayContext
) -> tuple[list[float], list[dict[str, Tensor]], list[Tensor | None] | None]:
    """(losses, metrics, mean gradient of this rank per parameter).

    torch.autograd.grad is used instead of backward, so that DeepSpeed's hooks are not triggered.
    """
    parameters = [parameter for parameter in context.module.parameters() if parameter.requires_grad]
    losses, metrics = [], []
    total: list[Tensor | None] | None = [None] * len(parameters) if context.full_gradients else None
    for batch in batches:
        # the seed of the training step, so that dropout drops the same elements
        torch.manual_seed(seed_of(context.seed, batch.first_position))
        with torch.set_grad_enabled(context.full_gradients):
            loss, found = context.module(batch)
        if total is not None:
            gradients = torch.autograd.grad(loss / len(batches), parameters, allow_unused=True)
            total = [_plus(before, new) for before, new in zip(total, gradients, strict=True)]
        losses.append(float(loss.detach()))
        metrics.append(found)
    return losses, metrics, total


def _plus(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    if new is None:
        return before
    return new.float() if before is None else before + new.float()


def layer_of(name: str) -> str:
    """A parameter's layer: its name up to the first number, or without its last part.

    For example, model.blocks.3.attn.q.weight → model.blocks.3.
    """
    match = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return match[0] if match else name.rpartition(".")[0] or name


def _layers(module: nn.Module, gradients: Sequence[Tensor | None]) -> list[dict[str, Any]]:
    """Gradient norm per layer: of the mean over ranks, and of each rank."""
    named = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    own: dict[str, float] = {}
    mean: dict[str, float] = {}
    world = dist.get_world_size()
    used = [
        any(column)
        for column in zip(
            *all_gather_object([gradient is not None for gradient in gradients]), strict=True
        )
    ]
    for (name, parameter), gradient, somewhere in zip(named, gradients, used, strict=True):
        # unused on every rank, so every rank skips it and the all-reduces below still match
        if not somewhere:
            continue
        layer = layer_of(name)
        local = torch.zeros_like(parameter, dtype=torch.float32) if gradient is None else gradient
        # before the all-reduce, which overwrites `local`; in float64, because the squares of an
        # exploding gradient overflow float32
        own[layer] = own.get(layer, 0.0) + float(local.double().square().sum())
        if world > 1:
            dist.all_reduce(local)
            local = local / world
        mean[layer] = mean.get(layer, 0.0) + float(local.double().square().sum())
    # every rank has the same keys: `used` is equal on all ranks
    by_rank = all_gather_object(own)
    return [
        {
            "name": layer,
            "norm": math.sqrt(mean[layer]),
            "by_rank": [math.sqrt(part[layer]) for part in by_rank],
        }
        for layer in own
    ]


def _total(layers: Sequence[dict[str, Any]]) -> float:
    return math.sqrt(sum(layer["norm"] ** 2 for layer in layers))


ClipPosition = tuple[int, int]
"""(micro-batch, row) of a clip on its rank."""


def _find_offending_clips(batches: Sequence[Any], context: ReplayContext) -> list[dict[str, Any]]:
    """Clips whose loss is not finite when computed alone, over all ranks.

    Every rank computes the same number of single clips, because losses may contain collectives
    (VTC). If a row is not finite on all ranks at once, one rank's clip may have affected the losses
    of the others: then each rank's clip is computed together with clean clips of the other ranks.
    """
    alone = {place: _loss_alone(batches, place, context) for place in _positions(batches)}
    bad = {place for place, loss in alone.items() if not math.isfinite(loss)}
    layout = topology.current()
    unclear = sorted(set.intersection(*all_gather_object(bad))) if layout.data_world > 1 else []
    bad -= set(unclear)
    clean = next((place for place, loss in alone.items() if math.isfinite(loss)), None)
    if all(all_gather_object(clean is not None)):
        for place in unclear[:MAX_UNCLEAR]:
            for turn in range(layout.data_world):
                mine = turn == layout.data_rank
                loss = _loss_alone(batches, place if mine else clean, context)  # type: ignore[arg-type]
                if mine and not math.isfinite(loss):
                    bad.add(place)
    return _describe_clips(batches, {place: alone[place] for place in sorted(bad)})


def _highest(batches: Sequence[Any], context: ReplayContext) -> list[dict[str, Any]]:
    """All clips with their losses alone, over all ranks, highest first."""
    found = _describe_clips(
        batches, {place: _loss_alone(batches, place, context) for place in _positions(batches)}
    )
    return sorted(found, key=lambda entry: -entry["loss"])


def _positions(batches: Sequence[Any]) -> list[ClipPosition]:
    return [(micro, row) for micro, batch in enumerate(batches) for row in range(len(batch))]


def _loss_alone(batches: Sequence[Any], place: ClipPosition, context: ReplayContext) -> float:
    """The loss of one clip by itself.

    Args:
        batches: This rank's micro-batches.
        place: The clip.
        context: What the replay needs.
    """
    micro, row = place
    # the seed of the complete micro-batch, though one row draws other numbers from it: the loss is
    # that of the same clip with another dropout
    torch.manual_seed(seed_of(context.seed, batches[micro].first_position))
    with torch.no_grad():
        loss, _ = context.module(batches[micro].only(row))
    return float(loss)


def _describe_clips(
    batches: Sequence[Any], losses: Mapping[ClipPosition, float]
) -> list[dict[str, Any]]:
    """Rank, position, name, data set and loss of clips, over all ranks."""
    mine = [
        {
            "rank": dist.get_rank(),
            "position": batches[micro].first_position + row,
            "clip": batches[micro].clips[row],
            "data_set": _data_sets(batches[micro])[row],
            "loss": loss,
        }
        for (micro, row), loss in losses.items()
    ]
    return [entry for part in topology.of_data_ranks(mine) for entry in part]


def _data_sets(batch: Any) -> list[str | None]:
    """Name of each clip's data set; None where the batch does not know it."""
    names: list[str | None] = []
    for part in getattr(batch, "parts", (batch,)):
        known = hasattr(part, "dataset_ids")
        names += (
            [part.dataset_names[k] for k in part.dataset_ids.tolist()]
            if known
            else [None] * len(part.clips)
        )
    return names


def sums_of(metrics: Sequence[Any]) -> dict[str, list[float]]:
    """Name → [sum, count] over micro-batches."""
    names = {name: None for one in metrics for name in one}
    return {
        name: torch.stack([one[name].double() for one in metrics if name in one]).sum(0).tolist()
        for name in names
    }


def _ratios(sums: dict[str, list[float]]) -> dict[str, float]:
    return {name: total / count if count else math.nan for name, (total, count) in sums.items()}


def means_over_ranks(sums: dict[str, list[float]]) -> dict[str, float]:
    """Name → mean over all ranks; collective."""
    parts = all_gather_object(sums)
    return _ratios({name: [sum(part[name][i] for part in parts) for i in (0, 1)] for name in sums})


def means_of(metrics: Sequence[Any]) -> dict[str, float]:
    """Name → mean over micro-batches of this rank."""
    return _ratios(sums_of(metrics))
