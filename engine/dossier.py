"""A dossier on a step that went wrong, and the same micro-batches computed again.

OUT/dossiers/step-00000013/dossier.json is written in two goes, each atomic: first what was seen, then `rerun`. A machine that dies in the second go
leaves the first, and the step is not tried again. Nothing but the run's seed and a position is needed to make a batch and its random numbers again.
docs/monitoring.md lists the fields.

The re-run happens on the logging step that found the fault. A skipped step leaves the weights bit-equal, so they are those of the step exactly unless
a later step of the interval moved them; `weights.updates_since` counts those. --log-every 1 makes every dossier exact.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.files import publish_dir, write_atomic
from engine import ds_config
from engine.config import TrainConfig
from engine.faults import decided_by_rank_0, gathered
from engine.monitor import Monitor, finite
from engine.objective import seed_of
from engine.optimizer import learning_rate
from engine.spikes import Suspect, Suspicion
from engine.tally import Micro, Report

PER_INTERVAL = 2
"""Dossiers per logging interval: the third bad step in a row tells nothing new."""
MAX_UNCLEAR = 4
"""Rows that are not finite on every rank at once and are tried rank by rank; each costs a forward pass per rank."""


@dataclass(frozen=True)
class Scene:
    """Where a step happened, and what is needed to compute it again."""

    module: nn.Module
    """Called with a batch, returns (loss, metrics); the module that DeepSpeed drives, without its engine."""
    batches_from: Callable[[int], Iterator[Any]]
    """This rank's micro-batches from a step (1, 2, …) on, made anew."""
    seed: int
    lr: float
    """Of the step."""
    updates_since: int
    """Steps after this one that changed the weights."""
    whole_gradients: bool
    """False under ZeRO 3, whose parameters are not whole outside of the engine: no gradients by layer."""
    device: str


def folder_of(out: Path, step: int) -> Path:
    """Where the dossier of a step lies."""
    return out / "dossiers" / f"step-{step:08d}"


def dossiers(out: Path) -> list[Path]:
    """All dossiers of a run, oldest step first."""
    return sorted((out / "dossiers").glob("step-*/dossier.json"))


class Dossiers:
    """Looks at every logging interval of a run and writes a dossier where a step went wrong."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        engine: Any,
        ds: dict[str, Any],
        batches_from: Callable[[int], Iterator[Any]],
        alive: Callable[[str], None],
    ) -> None:
        """`engine` is DeepSpeed's, `ds` its options; `batches_from` makes this rank's micro-batches from a step on anew; `alive` tells the
        watchdog."""
        self._out, self._config, self._engine, self._batches_from, self._alive = out, config, engine, batches_from, alive
        self._whole_gradients = ds_config.stage(ds) < 3
        self._suspicion = Suspicion(config.spike_deviations, loss_scaling=ds_config.precision(ds) == "fp16")

    def look_into(self, report: Report, kept: Mapping[int, Sequence[Micro]], monitor: Monitor | None) -> None:
        """Collective. `kept` are this rank's micro-batches of the interval; `monitor` is rank 0's."""
        if not self._config.max_dossiers:
            return
        for suspect in self._suspicion.suspects(report)[:PER_INTERVAL]:
            if not decided_by_rank_0(partial(self._has_room, suspect.step)):
                continue
            self._alive(f"the dossier on step {suspect.step}")
            dossier = write(self._out, suspect, kept[suspect.step], self._scene(suspect, report))
            if monitor:
                self._tell(monitor, report.steps[-1], dossier)

    def _has_room(self, step: int) -> bool:
        """One dossier per step, --max-dossiers per run."""
        return not folder_of(self._out, step).exists() and len(dossiers(self._out)) < self._config.max_dossiers

    def _scene(self, suspect: Suspect, report: Report) -> Scene:
        device = next(self._engine.module.parameters()).device
        moved = [step for step, skip in zip(report.steps, report.skips, strict=True) if not skip and step >= suspect.step]
        return Scene(
            module=self._engine.module,
            batches_from=self._batches_from,
            seed=self._config.seed,
            lr=learning_rate(self._config, suspect.step),
            updates_since=len(moved),
            whole_gradients=self._whole_gradients,
            device=str(device) if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}",
        )

    def _tell(self, monitor: Monitor, step: int, dossier: dict[str, Any]) -> None:
        path, verdict = folder_of(self._out, dossier["step"]), dossier["rerun"]["verdict"]
        monitor.event("dossier", step, of_step=dossier["step"], path=str(path), reason=dossier["reason"], verdict=verdict)
        monitor.board.notes(dossier["step"], "run/dossiers", [f"step {dossier['step']}: {dossier['reason']}", verdict])
        monitor.say(f"warning: step {dossier['step']}: {dossier['reason']}; {verdict} (dossier: {path})")


def write(out: Path, suspect: Suspect, kept: Sequence[Micro], scene: Scene) -> dict[str, Any]:
    """Write what was seen, compute the step again, add the verdict. Collective; returns the dossier."""
    mine = {
        "rank": dist.get_rank(),
        "host": socket.gethostname(),
        "device": scene.device,
        "micro_batches": [
            {
                "position": micro.position,
                "seed": seed_of(scene.seed, micro.position),
                "clips": list(micro.clips),
                "loss": float(micro.loss),
                "metrics": _means([micro.metrics]),
            }
            for micro in kept
        ],
    }
    ranks = gathered(mine)
    dossier: dict[str, Any] = {
        "step": suspect.step,
        "reason": suspect.reason,
        "value": suspect.value,
        "usual": suspect.usual,
        "time": time.time(),
        "lr": scene.lr,
        "seed": scene.seed,
        "loss": sum(m["loss"] for r in ranks for m in r["micro_batches"]) / sum(len(r["micro_batches"]) for r in ranks),
        "objectives": _over_ranks(_sums([micro.metrics for micro in kept])),
        "ranks": ranks,
        "rerun": None,
    }
    folder = folder_of(out, suspect.step)
    decided_by_rank_0(lambda: publish_dir(folder, lambda inside: _store(inside / "dossier.json", dossier)))
    start = time.perf_counter()
    rerun = _rerun(suspect, kept, scene, dossier)
    dossier["rerun"] = {**rerun, "seconds": time.perf_counter() - start}
    decided_by_rank_0(lambda: _store(folder / "dossier.json", dossier))
    return dossier


def _store(path: Path, dossier: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(finite(dossier), indent=1) + "\n")


def _rerun(suspect: Suspect, kept: Sequence[Micro], scene: Scene, dossier: dict[str, Any]) -> dict[str, Any]:
    weights = {
        "updates_since": scene.updates_since,
        "exact": scene.updates_since == 0,
    }
    made, problem = _make_again(suspect.step, len(kept), scene)
    problems = [text for text in gathered(problem) if text]
    if problems:
        return {"weights": weights, "reproduced": None, "verdict": f"the batch could not be made again: {problems[0]}"}
    same_clips = all(gathered([tuple(batch.clips) for batch in made] == [micro.clips for micro in kept]))
    losses, metrics, gradients = _compute(made, scene)
    everywhere = gathered(losses)
    layers = _layers(scene.module, gradients) if gradients is not None else None
    flat = [loss for part in everywhere for loss in part]
    seen = [micro["loss"] for rank in dossier["ranks"] for micro in rank["micro_batches"]]
    result: dict[str, Any] = {
        "weights": weights,
        "same_clips": same_clips,
        "same_losses": all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(flat, seen, strict=True)),
        "loss": sum(flat) / len(flat),
        "objectives": _over_ranks(_sums(metrics)),
        "losses_by_rank": everywhere,
        "gradient_norm": _total(layers) if layers is not None else None,
        "layers": layers,
        "guilty": [],
    }
    if not all(math.isfinite(loss) for loss in flat):
        result["guilty"] = _guilty(made, losses, scene)
    return {**result, **_verdict(suspect, dossier, result)}


def _make_again(step: int, number: int, scene: Scene) -> tuple[list[Any], str]:
    """(the micro-batches of the step, what went wrong on this rank)."""
    batches = scene.batches_from(step)
    try:
        return [next(batches) for _ in range(number)], ""
    except Exception as error:  # noqa: BLE001 - a dossier must not end the run; the text goes into it
        return [], f"{type(error).__name__}: {error}"
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _compute(made: Sequence[Any], scene: Scene) -> tuple[list[float], list[dict[str, Tensor]], list[Tensor | None] | None]:
    """(losses, metrics, mean gradient of this rank per parameter). DeepSpeed's own gradients and hooks are not touched."""
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
    """A parameter's layer: its name up to the first number, or without the last part: model.blocks.3.attn.q.weight → model.blocks.3."""
    match = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return match[0] if match else name.rpartition(".")[0] or name


def _layers(module: nn.Module, gradients: Sequence[Tensor | None]) -> list[dict[str, Any]]:
    """Norm of the gradient per layer: of the mean over ranks, and of each rank's own."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    own: dict[str, float] = {}
    mean: dict[str, float] = {}
    world = dist.get_world_size()
    used = [any(column) for column in zip(*gathered([gradient is not None for gradient in gradients]), strict=True)]
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
    by_rank = gathered(own)
    return [
        {"name": layer, "norm": math.sqrt(mean[layer]), "by_rank": [math.sqrt(part[layer]) for part in by_rank]} for layer in own
    ]


def _total(layers: Sequence[dict[str, Any]]) -> float:
    return math.sqrt(sum(layer["norm"] ** 2 for layer in layers))


def _guilty(made: Sequence[Any], losses: Sequence[float], scene: Scene) -> list[dict[str, Any]]:
    """Clips whose loss is not finite when computed alone, over all ranks.

    Every rank computes the same number of single clips, because losses may gather over ranks (VTC). If a row is not finite on all ranks at once, one
    rank's clip may have spoilt the others' loss: then each rank's clip is tried beside the others' clean ones.
    """
    if not all(gathered(all(hasattr(batch, "only") for batch in made))):
        return []
    rows = [(micro, row) for micro, batch in enumerate(made) for row in range(len(batch))]
    finite = [_alone(made, place, scene) for place in rows]
    world = dist.get_world_size()
    table = gathered(finite)  # [rank][row]
    unclear = [k for k in range(len(rows)) if world > 1 and not any(part[k] for part in table)]
    mine = {rows[k] for k, ok in enumerate(finite) if not ok and k not in unclear}
    clean = next((place for place, ok in zip(rows, finite, strict=True) if ok), None)
    if all(gathered(clean is not None)):
        for k in unclear[:MAX_UNCLEAR]:
            for turn in range(world):
                me = turn == dist.get_rank()
                ok = _alone(made, rows[k] if me else clean, scene)  # type: ignore[arg-type]
                if me and not ok:
                    mine.add(rows[k])
    named = [
        {
            "rank": dist.get_rank(),
            "position": made[micro].first_position + row,
            "clip": made[micro].clips[row],
            "data_set": _data_sets(made[micro])[row],
            "micro_batch_loss": losses[micro],
        }
        for micro, row in sorted(mine)
    ]
    return [entry for part in gathered(named) for entry in part]


def _alone(made: Sequence[Any], place: tuple[int, int], scene: Scene) -> bool:
    """Is the loss of one clip by itself finite?"""
    micro, row = place
    torch.manual_seed(seed_of(scene.seed, made[micro].first_position))
    with torch.no_grad():
        loss, _ = scene.module(made[micro].only(row))
    return bool(torch.isfinite(loss))


def _data_sets(batch: Any) -> list[str | None]:
    """Name of each clip's data set, where the batch knows it."""
    names: list[str | None] = []
    for part in getattr(batch, "parts", (batch,)):
        known = hasattr(part, "dataset_ids")
        names += [part.dataset_names[k] for k in part.dataset_ids.tolist()] if known else [None] * len(part.clips)
    return names


def _verdict(suspect: Suspect, dossier: dict[str, Any], rerun: dict[str, Any]) -> dict[str, Any]:
    """(reproduced, verdict in words)."""
    exact, guilty = rerun["weights"]["exact"], rerun["guilty"]
    later = "" if exact else f" (with the weights {_count(rerun['weights']['updates_since'], 'update')} later)"
    if not rerun["same_clips"]:
        return {
            "reproduced": None,
            "verdict": "the data stream gave other clips the second time: its files or options have changed",
        }
    if suspect.reason == "loss not finite":
        again, what = not math.isfinite(rerun["loss"]), "a loss that is not finite"
    elif suspect.reason == "gradient not finite":
        norm = rerun["gradient_norm"]
        again, what = norm is not None and not math.isfinite(norm), "a gradient that is not finite"
        if norm is None:
            return {"reproduced": None, "verdict": "gradients cannot be computed outside of the engine under ZeRO 3"}
    else:
        value = rerun["loss"] if suspect.reason == "loss spike" else rerun["gradient_norm"]
        if value is None:
            return {"reproduced": None, "verdict": "gradients cannot be computed outside of the engine under ZeRO 3"}
        # with dropout and clips the same, equal weights give the same value up to the order of sums; later ones a similar one
        middle = suspect.usual["median"] + (suspect.value - suspect.usual["median"]) / 2
        again, what = bool(value > middle), f"a {suspect.reason} ({value:.4g}, usual {suspect.usual['median']:.4g})"
    if again:
        cause = "the cause is in the data or the loss"
        if guilty:
            first = guilty[0]
            more = f" and {len(guilty) - 1} more" if len(guilty) > 1 else ""
            owner = f" of {first['data_set']}" if first["data_set"] else ""
            cause = f"the loss of clip {first['clip']}{owner} (rank {first['rank']}) is not finite even alone{more}"
        elif suspect.reason == "loss not finite":
            cause = "no clip alone gives it: look at the combination, or at the weights"
        elif suspect.reason == "gradient not finite" and rerun["layers"]:
            bad = [layer["name"] for layer in rerun["layers"] if not math.isfinite(layer["norm"])]
            cause = f"the backward pass overflows; layers that are not finite: {', '.join(bad[:4])}"
        return {"reproduced": True, "verdict": f"reproduced: the same micro-batches give {what} again{later}; {cause}"}
    if not exact:
        return {
            "reproduced": False,
            "verdict": f"not reproduced{later}: a fault that happened once, or one that needed the weights of the step; to tell, "
            "continue a copy of the checkpoint before it with --log-every 1",
        }
    bad = [r for r in dossier["ranks"] if not all(math.isfinite(m["loss"]) for m in r["micro_batches"])]
    where = f"; it was seen on rank {bad[0]['rank']}, host {bad[0]['host']}, {bad[0]['device']}" if bad else ""
    return {
        "reproduced": False,
        "verdict": "not reproduced: the same weights, clips and random numbers now give a usual result. A fault of the hardware, or of a "
        f"kernel that is not deterministic{where}",
    }


def _sums(metrics: Sequence[Any]) -> dict[str, list[float]]:
    """Name → [sum, count] over micro-batches."""
    names = {name: None for one in metrics for name in one}
    return {name: torch.stack([one[name].double() for one in metrics if name in one]).sum(0).tolist() for name in names}


def _ratios(sums: dict[str, list[float]]) -> dict[str, float]:
    return {name: total / count if count else math.nan for name, (total, count) in sums.items()}


def _over_ranks(sums: dict[str, list[float]]) -> dict[str, float]:
    """Means over all ranks."""
    parts = gathered(sums)
    return _ratios({name: [sum(part[name][i] for part in parts) for i in (0, 1)] for name in sums})


def _means(metrics: Sequence[Any]) -> dict[str, float]:
    return _ratios(_sums(metrics))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
