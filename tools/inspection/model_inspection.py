"""Describes and compares weights in any format, for `tools/convert.py inspect` and `diff`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allinone.common.formatting import count
from allinone.common.hub import is_hub_id
from allinone.engine.checkpoint.layout import (
    BEST,
    CHECKPOINTS,
    MANIFEST,
    RUN,
    CheckpointError,
    step_of,
)
from allinone.engine.checkpoint.manifest import find_damage, newest_complete
from allinone.engine.checkpoint.weights import FoundWeights, resolve_weights
from allinone.model.convert import LoadReport, grouped, reference_name, rename_reference
from allinone.model.flops import part_of
from allinone.model.weights_file import read_weights

_TRAINING = ("step", "samples", "skipped", "bad_clips", "world", "code")
_RECIPE = (
    "model.size",
    "data",
    "train.global_batch",
    "train.steps",
    "train.lr",
    "train.ds_config",
    "train.seed",
)


@dataclass
class LoadedWeights:
    """Weights with their configuration and training state."""

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    """Options of the run that wrote the weights."""
    notes: list[str] = field(default_factory=list)


def find_checkpoint(path: Path, without: str = "") -> Path | None:
    """Find and verify a training checkpoint.

    Args:
        path: A checkpoint, or a run, of which the newest complete checkpoint is taken.
        without: A file of the checkpoint that may be missing or damaged.

    Returns:
        The checkpoint's folder; None if `path` is neither a checkpoint nor a run.

    Raises:
        CheckpointError: The checkpoint is damaged, or the run has no complete one.
    """
    if (path / "checkpoints").is_dir():
        folder, notes = newest_complete(path)
        if folder is None:
            missing = f"{path} has no complete checkpoint; train first, or give another run"
            raise CheckpointError("; ".join([*notes, missing]))
        return folder
    if not (path / "manifest.json").is_file() and step_of(path) < 0:
        return None
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist; give a checkpoint (runs/NAME/checkpoints/step-…) or its run"
        )
    problem = find_damage(path, without)
    if problem:
        raise CheckpointError(f"checkpoint {path} {problem}; use an earlier one, or copy it again")
    return path


def load_any(path: Path) -> LoadedWeights:
    """Load the weights of a run (its best), a checkpoint, a model folder, one file, or a hub id.

    Raises:
        WeightsError: The file cannot be read.
        CheckpointError: The checkpoint is damaged.
    """
    # a folder without config.json can be inspected as well
    names = (MANIFEST, CHECKPOINTS, BEST)
    trained = any((path / name).exists() for name in names) or step_of(path) >= 0
    found = resolve_weights(path) if trained or is_hub_id(path) else FoundWeights(path, "")
    file = read_weights(found.path)
    folder = found.path.parent
    if found.path.is_dir() and (folder / MANIFEST).is_file():  # which resolve_weights has verified
        facts = json.loads((folder / RUN).read_text())
        training = {name: facts[name] for name in _TRAINING if name in facts}
        return LoadedWeights(
            folder, "training checkpoint", file.tensors, file.facts, training, facts.get("run", {})
        )
    kind = "model folder" if found.path.is_dir() else "weights file"
    config, training = (file.facts, {}) if found.path.is_dir() else ({}, file.facts)
    return LoadedWeights(path, kind, file.tensors, config, training, notes=file.notes)


def describe(loaded: LoadedWeights) -> dict[str, Any]:
    """Facts about weights as plain values: the output of `inspect --json`."""
    parts: dict[str, dict[str, int]] = {}
    # integer tensors are buffers, such as position_ids
    parameters = {
        name: tensor for name, tensor in loaded.tensors.items() if tensor.is_floating_point()
    }
    for name, tensor in parameters.items():
        part_name = part_of(reference_name(name) or name) or name.split(".", 1)[0]
        part = parts.setdefault(part_name, {"parameters": 0, "tensors": 0})
        part["parameters"] += tensor.numel()
        part["tensors"] += 1
    return {
        "path": str(loaded.path),
        "kind": loaded.kind,
        "parameters": sum(tensor.numel() for tensor in parameters.values()),
        "parts": parts,
        "tensors": {
            name: {"shape": list(t.shape), "dtype": _dtype(t)} for name, t in loaded.tensors.items()
        },
        "config": loaded.config,
        "training": loaded.training,
        "run": loaded.run,
        "notes": loaded.notes,
    }


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def table(facts: dict[str, Any]) -> str:
    """The facts of `describe` as text."""
    lines = [f"{facts['path']}: {facts['kind']}, {facts['parameters']:,} parameters", ""]
    lines += [f"  {'part':<28}{'parameters':>14}{'tensors':>9}"]
    lines += [
        f"  {part:<28}{row['parameters']:>14,}{row['tensors']:>9}"
        for part, row in facts["parts"].items()
    ]
    shapes = [f"{name}: {t['shape']} {t['dtype']}" for name, t in facts["tensors"].items()]
    lines += ["", *(f"  {line}" for line in grouped(shapes))]
    for title, values in (
        ("training state", facts["training"]),
        ("recipe", _recipe(facts["run"])),
        ("config", facts["config"]),
    ):
        if values:
            lines += ["", f"  {title}"]
            lines += [f"    {name:<26}{_shown(value)}" for name, value in values.items()]
    lines += [f"  note: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _recipe(run: dict[str, Any]) -> dict[str, Any]:
    """The most important options of a run, by their dotted names."""
    found = {}
    for name in _RECIPE:
        value: Any = run
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def _own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of the original code to this model's names; leave others unchanged."""
    renamed, unexpected = rename_reference(tensors, LoadReport())
    return tensors if unexpected else renamed


def compare(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Any]:
    """Compare two sets of weights: the output of `diff --json`.

    Lists names that only one side has, different shapes, and different values, largest absolute
    difference first. Values are compared, not dtypes: a bfloat16 copy equals its float32 source if
    no value was rounded. Weights of the original code are compared under this model's names.
    """
    a, b = _own_names(a), _own_names(b)
    shapes, values = [], []
    equal = 0
    # one tensor at a time: float64 copies of two complete models could exceed the memory
    for name in (name for name in a if name in b):
        if a[name].shape != b[name].shape:
            shapes.append({"name": name, "a": list(a[name].shape), "b": list(b[name].shape)})
        elif (row := _difference(a[name], b[name])) is None:
            equal += 1
        else:
            values.append({"name": name, **row})
    dtypes = sorted(
        {f"{_dtype(a[n])} / {_dtype(b[n])}" for n in a if n in b and a[n].dtype != b[n].dtype}
    )
    return {
        "only_a": [name for name in a if name not in b],
        "only_b": [name for name in b if name not in a],
        "shapes": shapes,
        "values": sorted(values, key=lambda row: -row["max_abs"]),
        "equal": equal,
        "dtypes": dtypes,
    }


def _difference(a: Tensor, b: Tensor) -> dict[str, float] | None:
    """Largest |a - b| and |a - b| / |a| (2-norms); None if all values are equal.

    NaN equals NaN; the distance between NaN and a number is infinite.
    """
    # float64 holds float32, bfloat16 and int32 exactly, so that no difference is rounded away
    a, b = a.double(), b.double()
    delta = torch.where(
        (a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs().nan_to_num(nan=float("inf"))
    )
    if not delta.any():
        return None
    norm = float(a.norm())
    return {
        "max_abs": float(delta.max()),
        "relative": float(delta.norm()) / norm if norm else float("inf"),
    }


def differs(result: dict[str, Any]) -> bool:
    """Whether `compare` found any difference."""
    return bool(result["only_a"] or result["only_b"] or result["shapes"] or result["values"])


def difference_table(result: dict[str, Any], limit: int) -> str:
    """The result of `compare` as text, with at most `limit` rows of values (0: all)."""
    lines = [f"  only in A: {name}" for name in grouped(result["only_a"])]
    lines += [f"  only in B: {name}" for name in grouped(result["only_b"])]
    shapes = [f"{row['name']} {row['a']} in A, {row['b']} in B" for row in result["shapes"]]
    lines += [f"  shape: {entry}" for entry in grouped(shapes)]
    values = result["values"]
    if values:
        lines += [f"  {'largest |A - B|':>16}{'relative':>11}  tensor"]
        lines += [
            f"  {row['max_abs']:>16.3e}{row['relative']:>11.1e}  {row['name']}"
            for row in values[: limit or None]
        ]
        hidden = len(values) - limit if limit else 0
        lines += [f"  … and {hidden} more (--limit 0 shows all)"] if hidden > 0 else []
    lines += [f"  dtypes differ: {', '.join(result['dtypes'])} (A / B)"] if result["dtypes"] else []
    missing = len(result["only_a"]) + len(result["only_b"])
    lines.append(
        f"{count(result['equal'])} tensors equal, {len(values)} differ,"
        f" {len(result['shapes'])} with different shapes, {missing} on one side only"
    )
    return "\n".join(lines)
