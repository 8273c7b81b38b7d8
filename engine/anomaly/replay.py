"""A step computed again: the same micro-batches, made anew from seed and position, beside
DeepSpeed's engine: its weights and gradients stay."""

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
from allinone.engine.distributed import contrastive, topology
from allinone.engine.distributed.collectives import all_gather_object
from allinone.engine.monitoring.accumulator import MicroBatchRecord
from allinone.engine.objective import seed_of

SHOWN = 5
"""Clips with the highest losses that a loss spike's dossier names."""
MAX_UNCLEAR = 4
"""Rows that are not finite on every rank at once and are tried rank by rank; each costs a forward
pass per rank."""


@dataclass(frozen=True)
class ReplayContext:
    """Where a step happened, and what is needed to compute it again."""

    module: nn.Module
    """Called with a batch, returns (loss, metrics); the module that DeepSpeed drives, without its
    engine."""
    batches_from: Callable[[int], Iterator[Any]]
    """This rank's micro-batches from a step (1, 2, …) on, made anew."""
    seed: int
    lr: float
    """Of the step."""
    updates_since: int
    """Steps after this one that changed the weights."""
    whole_gradients: bool
    """False under ZeRO 3 and tensor parallelism, where a rank has not all of a layer: no gradients
    by layer."""
    device: str


def replay_step(
    suspect: Anomaly,
    kept: Sequence[MicroBatchRecord],
    scene: ReplayContext,
    dossier: dict[str, Any],
) -> dict[str, Any]:
    """Compute the step again and say whether the fault came back. Collective. `dossier` holds what
    was seen the first time."""
    weights = {
        "updates_since": scene.updates_since,
        "exact": scene.updates_since == 0,
    }
    made, problem = _make_again(suspect.step, len(kept), scene)
    problems = [text for text in all_gather_object(problem) if text]
    if problems:
        return {
            "weights": weights,
            "reproduced": None,
            "verdict": f"the batch could not be made again: {problems[0]}",
        }
    same_clips = all(
        all_gather_object([tuple(batch.clips) for batch in made] == [micro.clips for micro in kept])
    )
    try:
        if scene.device != "cpu":
            torch.cuda.empty_cache()
        losses, metrics, gradients = _compute(made, scene)
    except torch.OutOfMemoryError as error:
        if dist.get_world_size() > 1 and (contrastive.in_use() or not scene.whole_gradients):
            # the others wait in this very pass and would not come to the next line: better a
            # restart than a hang
            raise
        losses, metrics, gradients, problem = [], [], None, str(error).splitlines()[0]
    problems = [text for text in all_gather_object(problem) if text]
    if problems:
        return {
            "weights": weights,
            "reproduced": None,
            "verdict": f"the step could not be computed again: {problems[0]}",
        }
    everywhere = topology.of_data_ranks(losses)
    layers = _layers(scene.module, gradients) if gradients is not None else None
    flat = [loss for part in everywhere for loss in part]
    seen = [micro["loss"] for rank in dossier["ranks"] for micro in rank["micro_batches"]]
    result: dict[str, Any] = {
        "weights": weights,
        "same_clips": same_clips,
        "same_losses": all(
            a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(flat, seen, strict=True)
        ),
        "loss": sum(flat) / len(flat),
        "objectives": over_ranks(sums_of(metrics)),
        "losses_by_rank": everywhere,
        "gradient_norm": _total(layers) if layers is not None else None,
        "layers": layers,
        "guilty": [],
        "highest": [],
    }
    if all(all_gather_object(all(hasattr(batch, "only") for batch in made))):
        if not all(math.isfinite(loss) for loss in flat):
            result["guilty"] = _guilty(made, scene)
        elif suspect.reason == "loss spike":
            result["highest"] = _highest(made, scene)
    return {**result, **_verdict(suspect, dossier, result)}


def _make_again(step: int, number: int, scene: ReplayContext) -> tuple[list[Any], str]:
    """(the micro-batches of the step, what went wrong on this rank)."""
    batches = scene.batches_from(step)
    try:
        return [next(batches) for _ in range(number)], ""
    except Exception as error:  # noqa: BLE001 - a dossier must not end the run; the text goes into it
        return [], f"{type(error).__name__}: {error}"
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _compute(
    made: Sequence[Any], scene: ReplayContext
) -> tuple[list[float], list[dict[str, Tensor]], list[Tensor | None] | None]:
    """(losses, metrics, mean gradient of this rank per parameter). DeepSpeed's own gradients and
    hooks are not touched."""
    parameters = [parameter for parameter in scene.module.parameters() if parameter.requires_grad]
    losses, metrics = [], []
    total: list[Tensor | None] | None = [None] * len(parameters) if scene.whole_gradients else None
    for batch in made:
        torch.manual_seed(seed_of(scene.seed, batch.first_position))
        with torch.set_grad_enabled(scene.whole_gradients):
            loss, found = scene.module(batch)
        if total is not None:
            gradients = torch.autograd.grad(loss / len(made), parameters, allow_unused=True)
            total = [_plus(before, new) for before, new in zip(total, gradients, strict=True)]
        losses.append(float(loss.detach()))
        metrics.append(found)
    return losses, metrics, total


def _plus(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    if new is None:
        return before
    return new.float() if before is None else before + new.float()


def layer_of(name: str) -> str:
    """A parameter's layer: its name up to the first number, or without the last part:
    model.blocks.3.attn.q.weight → model.blocks.3."""
    match = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return match[0] if match else name.rpartition(".")[0] or name


def _layers(module: nn.Module, gradients: Sequence[Tensor | None]) -> list[dict[str, Any]]:
    """Norm of the gradient per layer: of the mean over ranks, and of each rank's own."""
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
        if not somewhere:
            continue
        layer = layer_of(name)
        local = torch.zeros_like(parameter, dtype=torch.float32) if gradient is None else gradient
        own[layer] = own.get(layer, 0.0) + float(local.double().square().sum())
        if world > 1:
            dist.all_reduce(local)
            local = local / world
        mean[layer] = mean.get(layer, 0.0) + float(local.double().square().sum())
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


Place = tuple[int, int]
"""(micro-batch, row) of a clip on its rank."""


def _guilty(made: Sequence[Any], scene: ReplayContext) -> list[dict[str, Any]]:
    """Clips whose loss is not finite when computed alone, over all ranks.

    Every rank computes the same number of single clips, because losses may gather over ranks (VTC).
    If a row is not finite on all ranks at once, one rank's clip may have spoilt the others' loss:
    then each rank's clip is tried beside the others' clean ones.
    """
    alone = {place: _alone(made, place, scene) for place in _places(made)}
    bad = {place for place, loss in alone.items() if not math.isfinite(loss)}
    layout = topology.current()
    unclear = sorted(set.intersection(*all_gather_object(bad))) if layout.data_world > 1 else []
    bad -= set(unclear)
    clean = next((place for place, loss in alone.items() if math.isfinite(loss)), None)
    if all(all_gather_object(clean is not None)):
        for place in unclear[:MAX_UNCLEAR]:
            for turn in range(layout.data_world):
                mine = turn == layout.data_rank
                loss = _alone(made, place if mine else clean, scene)  # type: ignore[arg-type]
                if mine and not math.isfinite(loss):
                    bad.add(place)
    return _named(made, {place: alone[place] for place in sorted(bad)})


def _highest(made: Sequence[Any], scene: ReplayContext) -> list[dict[str, Any]]:
    """The clips with the highest losses alone, over all ranks, highest first."""
    found = _named(made, {place: _alone(made, place, scene) for place in _places(made)})
    return sorted(found, key=lambda entry: -entry["loss"])[:SHOWN]


def _places(made: Sequence[Any]) -> list[Place]:
    return [(micro, row) for micro, batch in enumerate(made) for row in range(len(batch))]


def _alone(made: Sequence[Any], place: Place, scene: ReplayContext) -> float:
    """The loss of one clip by itself."""
    micro, row = place
    torch.manual_seed(seed_of(scene.seed, made[micro].first_position))
    with torch.no_grad():
        loss, _ = scene.module(made[micro].only(row))
    return float(loss)


def _named(made: Sequence[Any], losses: Mapping[Place, float]) -> list[dict[str, Any]]:
    """Who these clips are, over all ranks."""
    mine = [
        {
            "rank": dist.get_rank(),
            "position": made[micro].first_position + row,
            "clip": made[micro].clips[row],
            "data_set": _data_sets(made[micro])[row],
            "loss": loss,
        }
        for (micro, row), loss in losses.items()
    ]
    return [entry for part in topology.of_data_ranks(mine) for entry in part]


def _data_sets(batch: Any) -> list[str | None]:
    """Name of each clip's data set, where the batch knows it."""
    names: list[str | None] = []
    for part in getattr(batch, "parts", (batch,)):
        known = hasattr(part, "dataset_ids")
        names += (
            [part.dataset_names[k] for k in part.dataset_ids.tolist()]
            if known
            else [None] * len(part.clips)
        )
    return names


def _verdict(suspect: Anomaly, dossier: dict[str, Any], replayed: dict[str, Any]) -> dict[str, Any]:
    """(reproduced, verdict in words)."""
    exact, guilty = replayed["weights"]["exact"], replayed["guilty"]
    later = (
        ""
        if exact
        else f" (with the weights {_count(replayed['weights']['updates_since'], 'update')} later)"
    )
    if not replayed["same_clips"]:
        return {
            "reproduced": None,
            "verdict": (
                "the data stream gave other clips the second time: its files or options have"
                " changed"
            ),
        }
    if suspect.reason == "loss not finite":
        again, what = not math.isfinite(replayed["loss"]), "a loss that is not finite"
    elif suspect.reason == "gradient not finite":
        norm = replayed["gradient_norm"]
        again, what = norm is not None and not math.isfinite(norm), "a gradient that is not finite"
        if norm is None:
            return {
                "reproduced": None,
                "verdict": "gradients cannot be computed outside of the engine under ZeRO 3",
            }
    else:
        value = replayed["loss"] if suspect.reason == "loss spike" else replayed["gradient_norm"]
        if value is None:
            return {
                "reproduced": None,
                "verdict": "gradients cannot be computed outside of the engine under ZeRO 3",
            }
        # with dropout and clips the same, equal weights give the same value up to the order of
        # sums; later ones a similar one
        middle = suspect.usual["median"] + (suspect.value - suspect.usual["median"]) / 2
        again, what = (
            bool(value > middle),
            f"a {suspect.reason} ({value:.4g}, usual {suspect.usual['median']:.4g})",
        )
    if again:
        cause = "the cause is in the data or the loss"
        if replayed["highest"]:
            first = replayed["highest"][0]
            cause = (
                f"highest alone: clip {first['clip']}{_owner(first)}, rank {first['rank']},"
                f" {first['loss']:.4g}"
            )
        if guilty:
            first = guilty[0]
            more = f" and {len(guilty) - 1} more" if len(guilty) > 1 else ""
            cause = (
                f"the loss of clip {first['clip']}{_owner(first)} (rank {first['rank']}) is not"
                f" finite even alone{more}"
            )
        elif suspect.reason == "loss not finite":
            cause = "no clip alone gives it: look at the combination, or at the weights"
        elif suspect.reason == "gradient not finite" and replayed["layers"]:
            bad = [
                layer["name"] for layer in replayed["layers"] if not math.isfinite(layer["norm"])
            ]
            cause = f"the backward pass overflows; layers that are not finite: {', '.join(bad[:4])}"
        return {
            "reproduced": True,
            "verdict": f"reproduced: the same micro-batches give {what} again{later}; {cause}",
        }
    if not exact:
        return {
            "reproduced": False,
            "verdict": (
                f"not reproduced{later}: a fault that happened once, or one that needed the weights"
                " of the step; to tell, continue a copy of the checkpoint before it with"
                " --log-every 1"
            ),
        }
    bad = [
        r for r in dossier["ranks"] if not all(math.isfinite(m["loss"]) for m in r["micro_batches"])
    ]
    where = (
        f"; it was seen on rank {bad[0]['rank']}, host {bad[0]['host']}, {bad[0]['device']}"
        if bad
        else ""
    )
    return {
        "reproduced": False,
        "verdict": (
            "not reproduced: the same weights, clips and random numbers now give a usual result. A"
            f" fault of the hardware, or of a kernel that is not deterministic{where}"
        ),
    }


def sums_of(metrics: Sequence[Any]) -> dict[str, list[float]]:
    """Name → [sum, count] over micro-batches."""
    names = {name: None for one in metrics for name in one}
    return {
        name: torch.stack([one[name].double() for one in metrics if name in one]).sum(0).tolist()
        for name in names
    }


def _ratios(sums: dict[str, list[float]]) -> dict[str, float]:
    return {name: total / count if count else math.nan for name, (total, count) in sums.items()}


def over_ranks(sums: dict[str, list[float]]) -> dict[str, float]:
    """Means over all ranks."""
    parts = all_gather_object(sums)
    return _ratios({name: [sum(part[name][i] for part in parts) for i in (0, 1)] for name in sums})


def means_of(metrics: Sequence[Any]) -> dict[str, float]:
    """Name → mean over micro-batches of this rank."""
    return _ratios(sums_of(metrics))


def _owner(entry: dict[str, Any]) -> str:
    return f" of {entry['data_set']}" if entry["data_set"] else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
