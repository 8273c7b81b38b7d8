"""Which files of a folder are its weights, and what wrappers added to the names of tensors.

One rule for every reader of weights. It needs nothing of this project, because transformers copies
this folder with models that are saved with their code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FORMATS = ("model.safetensors", "pytorch_model.bin")
"""safetensors first: no pickle is read where there is a choice."""
INDEX = ".index.json"
"""Suffix of the file that lists the shards of a format."""
WRAPPERS = (
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning's Fabric
)
"""Modules that wrap another one and show up at any place in a name."""
LEADING = ("module.", "model.")
"""Prefixes of DistributedDataParallel, AveragedModel and Lightning, removed if all names have
them."""
AVERAGES = ("ema.", "ema_model.", "model_ema.", "module_ema.")
"""Prefixes of a moving average that is stored with the weights."""
_COUNTER = "n_averaged"
"""Buffer of torch's AveragedModel."""


class WeightFolderError(ValueError):
    """The weights of a folder are missing or ambiguous; the message names the files."""


def weight_files(folder: Path) -> tuple[dict[str, set[str] | None], list[str]]:
    """Find the files that hold the weights of a folder.

    Args:
        folder: A folder of save_pretrained.

    Returns:
        File name → names of the tensors to read from it, None for all; empty without weights. And
        notes on other files with weights, which are not read.

    Raises:
        WeightFolderError: Two sets of weights in one format, of which one is probably stale; or a
            shard is missing; or the index cannot be read.
        OSError: A file cannot be read.
    """
    present = {path.name for path in folder.iterdir()}
    for name in FORMATS:
        stem, suffix = name.rsplit(".", 1)
        shards = {n for n in present if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", n)}
        index = f"{name}{INDEX}"
        if name in present and (index in present or shards):
            other = index if index in present else f"{len(shards)} shards ({min(shards)} …)"
            raise WeightFolderError(
                f"{folder} holds two sets of weights: {name} and {other}. One of them is left over"
                " from an earlier export; move it away"
            )
        if index in present:
            chosen: dict[str, set[str] | None] = dict(_shards(folder, index, present))
        elif name in present:
            chosen = {name: None}
        elif shards:
            raise WeightFolderError(
                f"{folder} holds shards of weights but {index} is missing; copy the folder again"
            )
        else:
            continue
        return chosen, [
            f"{other}: more weights in the same folder, not read"
            for other in sorted(present - chosen.keys())
            if other.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))
        ]
    return {}, []


def _shards(folder: Path, index: str, present: set[str]) -> dict[str, set[str]]:
    try:
        places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for key, name in places.items():
            shards.setdefault(str(name), set()).add(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightFolderError(
            f"{folder / index} is damaged: its JSON cannot be read ({error}); copy the folder again"
        ) from error
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise WeightFolderError(
            f"{folder / index} names a file outside of its folder: {outside[0]}"
        )
    missing = sorted(shards.keys() - present)
    if missing:
        raise WeightFolderError(
            f"{len(missing)} of the {len(shards)} shards that {folder / index} lists are missing:"
            f" {', '.join(missing[:4])}; copy the folder again"
        )
    return shards


def unwrapped_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Remove what wrappers added to the names of tensors.

    Args:
        names: Names in a file.

    Returns:
        Name in the file → name without wrappers, without the tensors that are no weights of the
        model itself; and notes on what was removed.

    Raises:
        WeightFolderError: Two tensors would have the same name.
    """
    found, notes = {name: name for name in names}, []
    for wrapper in WRAPPERS:
        inner = {name: _without(value, wrapper) for name, value in found.items()}
        if changed := sum(inner[name] != value for name, value in found.items()):
            notes.append(f"{wrapper}.: removed from {changed} names")
        found = inner
    averages = {name for name, value in found.items() if value.startswith(AVERAGES)}
    if averages and len(averages) < len(found):
        prefix = found[min(averages)].split(".", 1)[0]
        notes.append(f"{prefix}.: {len(averages)} tensors of a moving average, not read")
        found = {name: value for name, value in found.items() if name not in averages}
    counted = {name: value for name, value in found.items() if value != _COUNTER}
    while prefix := _common_prefix(counted):
        notes.append(f"{prefix}: removed from {len(counted)} names")
        counted = {name: value.removeprefix(prefix) for name, value in counted.items()}
        found = counted  # the counter is dropped with the wrapper that it belongs to
    if len(set(found.values())) < len(found):
        values = list(found.values())
        twice = next(value for value in values if values.count(value) > 1)
        raise WeightFolderError(f"two tensors are called {twice} without the names of wrappers")
    return found, notes


def _without(name: str, wrapper: str) -> str:
    return ".".join(part for part in name.split(".") if part != wrapper)


def _common_prefix(names: Mapping[str, str]) -> str:
    """A prefix of LEADING or AVERAGES that all names have; empty if there is none."""
    if not names:
        return ""
    return next(
        (p for p in (*LEADING, *AVERAGES) if all(n.startswith(p) for n in names.values())), ""
    )
