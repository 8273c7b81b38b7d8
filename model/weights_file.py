"""Reads weights from untrusted files: safetensors, and torch.save's zip and legacy formats.

A pickle is a program. These are read by torch's restricted unpickler, which builds tensors and
plain containers and nothing else; every other name in the file is refused and printed. No class
named in a file is ever imported.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from allinone.common.access import describe_denied, exists
from allinone.common.errors import AllInOneError
from allinone.common.hub import unreachable

from .weight_folder import FORMATS, WeightFolderError, unwrapped_names, weight_files

LIGHTNING_CALLBACKS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
)
"""Classes that Lightning before 1.6 uses as keys of callback states; empty classes replace them."""

_CONTAINERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys that hold the weights: Lightning's, DeiT's, DeepSpeed's, and that of torch's tutorials."""
_LFS = b"version https://git-lfs"
"""Start of the small text file that git leaves where `git lfs pull` has not been run."""


class WeightsError(AllInOneError, ValueError):
    """A file holds no weights that can be read.

    The message says what was found and what to give instead.
    """


@dataclass
class WeightsFile:
    """What a file or folder holds."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    """Other plain values: epoch, step, versions; or config.json of a folder."""
    notes: list[str] = field(default_factory=list)
    """What was replaced while reading."""


class _StandIn:
    """Takes the place of a known class: keeps nothing, does nothing."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


def read_weights(path: Path) -> WeightsFile:
    """Read tensors by name, on the CPU. Names are those of the model without wrappers (DDP,
    torch.compile, FSDP); what was removed is in the notes.

    Args:
        path: A .safetensors file, a file of torch.save, or a folder of save_pretrained.

    Raises:
        WeightsError: Nothing is there, it may not be read, it is damaged, the format is unknown, a
            folder holds two sets of weights, or a pickle holds anything but tensors and containers;
            the message names it.
    """
    try:
        file = _read_folder(path) if exists(path) and path.is_dir() else _read_file(path)
        names, notes = unwrapped_names(file.tensors)
    except PermissionError as error:
        raise WeightsError(f"{path} cannot be read: {describe_denied(path)}") from error
    except WeightFolderError as error:
        raise WeightsError(str(error)) from error
    tensors = {new: file.tensors[old] for old, new in names.items()}
    return WeightsFile(path, tensors, file.facts, [*file.notes, *notes])


def _read_file(path: Path) -> WeightsFile:
    _require_readable(path)
    if path.suffix == ".safetensors":
        return WeightsFile(path, _read_safetensors(path))
    content, notes = read_pickle(path)
    tensors, facts, others = _weights_of(content, path)
    return WeightsFile(path, tensors, facts, [*notes, *others])


def _read_folder(folder: Path) -> WeightsFile:
    config = folder / "config.json"
    try:
        facts = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{config} is damaged: its JSON cannot be read ({error}); copy the folder again"
        ) from error
    files, notes = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for name, keys in files.items():
        inner = _read_file(folder / name)
        lacking = sorted((keys or set()) - inner.tensors.keys())
        if lacking:
            raise WeightsError(
                f"{folder / name} is damaged: it lacks {len(lacking)} tensors that the index lists,"
                f" first: {lacking[0]}; copy the folder again"
            )
        tensors |= {key: t for key, t in inner.tensors.items() if keys is None or key in keys}
        facts, notes = {**inner.facts, **facts}, [*inner.notes, *notes]
    if files:
        return WeightsFile(folder, tensors, facts, notes)
    hint = (
        f"; the weights of this checkpoint are in {folder / 'weights'}"
        if (folder / "weights").is_dir()
        else ""
    )
    raise WeightsError(f"{folder} holds none of {', '.join(FORMATS)}{hint}")


def _require_readable(path: Path) -> None:
    """Raise WeightsError for a file that is missing or may not be read. safetensors calls both
    "No such file"."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except PermissionError as error:
        raise WeightsError(f"{path} cannot be read: {describe_denied(path)}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        link = f" (a link to {path.readlink()}, which is not there)" if path.is_symlink() else ""
        raise WeightsError(
            f"{path} does not exist{link}; give a .safetensors file, a file of torch.save, or a"
            " folder of save_pretrained"
        ) from error
    if start == _LFS:
        raise WeightsError(f"{path} is a placeholder of Git LFS; run `git lfs pull` in its folder")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is damaged: not a complete safetensors file ({error}); copy it again"
        ) from error


def read_pickle(
    path: Path, stand_ins: tuple[str, ...] = LIGHTNING_CALLBACKS
) -> tuple[Any, list[str]]:
    """Read a torch.save file that holds only tensors, plain containers and `stand_ins`.

    A zip is mapped into memory, so that unused optimizer states are not read from disk.

    Args:
        path: The file.
        stand_ins: Names of classes to replace by empty classes.

    Returns:
        (content, notes on what was replaced).

    Raises:
        WeightsError: Other classes, named in the message, or an incomplete file.
    """
    _require_readable(path)
    zipped = zipfile.is_zipfile(path)
    classes = {name: type(name.rsplit(".", 1)[-1], (_StandIn,), {}) for name in stand_ins}
    with torch.serialization.safe_globals([(made, name) for name, made in classes.items()]):
        try:
            unsafe = (
                torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if zipped else []
            )
            refuse(path, [name for name in unsafe if name not in classes])
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            refuse(path, re.findall(r"GLOBAL ([\w.]+?)(?=\s)", str(error))[:1])
            raise WeightsError(
                f"{path} cannot be read safely: {_reason(error)}; give a file that torch.save wrote"
                " with its default pickle protocol, or .safetensors"
            ) from error
        # what torch raises for cut or damaged files, depending on where they end
        except (
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            TypeError,
            AssertionError,
        ) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(
                f"{path} is damaged: not a complete file of torch.save ({_reason(error)}); copy it"
                " again, or give .safetensors"
            ) from error
    return content, [
        f"{name}: replaced by an empty class"
        for name, made in classes.items()
        if _holds(content, made)
    ]


def _holds(content: Any, made: type) -> bool:
    """Whether nested containers hold this class or an instance of it."""
    if isinstance(content, Mapping):
        return any(_holds(item, made) for pair in content.items() for item in pair)
    if isinstance(content, (list, tuple, set)):
        return any(_holds(item, made) for item in content)
    return content is made or isinstance(content, made)


def refuse(path: Path, names: list[str]) -> None:
    """Raise WeightsError naming what a pickle may not hold; nothing happens without names."""
    if names:
        raise WeightsError(
            f"{path}: refused: {', '.join(sorted(names))}. Only tensors and plain containers are"
            " read, since loading anything else can run code. If you trust the file, load it where"
            f" that class is installed and save its weights alone: {_rescue(path, names)}"
        )


def _rescue(path: Path, names: list[str]) -> str:
    """The line that saves the weights of a refused file alone, with the key that the file has.

    The file is read with empty classes for what was refused, which run nothing.
    """
    classes = {name: type(name.rsplit(".", 1)[-1], (_StandIn,), {}) for name in names}
    try:
        with torch.serialization.safe_globals([(made, name) for name, made in classes.items()]):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises anything for a strange pickle; this is a hint
        content = None
    held = content if isinstance(content, Mapping) else {}
    key = next((k for k in (*_CONTAINERS, *held) if _has_tensors(held.get(k))), None)
    if key is not None:
        return f"torch.save({{'state_dict': checkpoint[{key!r}]}}, FILE)"
    if _has_tensors(held):
        kept = "{k: v for k, v in checkpoint.items() if torch.is_tensor(v)}"
        return f"torch.save({{'state_dict': {kept}}}, FILE)"
    return "torch.save({'state_dict': WEIGHTS}, FILE), WEIGHTS being its dictionary of tensors"


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _reason(error: Exception) -> str:
    """The cause in torch's long messages, without its advice to load the file unsafely."""
    text = str(error).strip()
    found = re.search(r"WeightsUnpickler error:\s*(\S.*)", text)
    return found[1] if found else text.partition("\n")[0] or type(error).__name__


def _weights_of(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """(tensors, other plain values, notes on other weights) of a checkpoint: the mapping itself, or
    a known key's value."""
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a dictionary of weights; give a file"
            " that holds a state_dict"
        )
    keys = [key for key in _CONTAINERS if isinstance(content.get(key), Mapping)]
    filled = [key for key in keys if _has_tensors(content[key])]
    if len(filled) > 1 and not all(_equal(content[filled[0]], content[k]) for k in filled[1:]):
        raise WeightsError(
            f"{path} holds several sets of weights, under {' and '.join(filled)}; save the one to"
            " read alone: torch.save({'state_dict': checkpoint[KEY]}, FILE)"
        )
    found = next(iter(filled or keys), None)
    weights = content if found is None else content[found]
    if not weights:
        raise WeightsError(
            f"{path} holds no weights: its dictionary is empty; give a file that holds a state_dict"
        )
    strange = [
        f"{key} is a {type(value).__name__}"
        for key, value in weights.items()
        if not isinstance(value, Tensor)
    ]
    if strange:
        given = (
            f"its keys are {', '.join(map(str, list(content)[:8]))}"
            if found is None
            else f"in {found}: {', '.join(strange[:4])}"
        )
        raise WeightsError(
            f"{path} is not a dictionary of tensors: {given}; expected the weights themselves, or"
            f" under {', '.join(_CONTAINERS)}"
        )
    plain = (str, int, float, bool)
    facts = {} if found is None else {str(k): v for k, v in content.items() if isinstance(v, plain)}
    notes = [
        f"{key}: another set of {len(value)} tensors, such as a moving average; not read"
        for key, value in content.items()
        if found is not None and key not in filled and _is_weights(value)
    ]
    return {str(key): value for key, value in weights.items()}, facts, notes


def _is_weights(value: Any) -> bool:
    return _has_tensors(value) and all(isinstance(item, Tensor) for item in value.values())


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        isinstance(value, Tensor) and torch.equal(value, second[name])
        for name, value in first.items()
    )


def locate(source: str) -> Path:
    """Find a file or folder, or fetch the weights of a hub id into huggingface_hub's cache.

    Args:
        source: File, folder, or hub id (owner/name).

    Raises:
        WeightsError: It is none of them, or the hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path
    if (
        path.suffix
        or source.startswith((".", "/", "~"))
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
    ):
        raise WeightsError(
            f"{source} does not exist; give a file, a folder of save_pretrained, or a hub id such"
            " as owner/name"
        )
    return _download(source)


def _download(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    failure: Exception | None = None
    for name in FORMATS:
        reachable = failure is None  # once it is not, ask only the cache, without retries
        try:
            return Path(hf_hub_download(source, name, local_files_only=not reachable))
        except EntryNotFoundError as error:  # the repository or the cache may have the next
            failure = failure or (error if isinstance(error, LocalEntryNotFoundError) else None)
        except (OSError, HFValidationError) as error:  # the hub's own errors are OSErrors
            raise WeightsError(str(unreachable(source, error))) from error
    if failure is not None:
        raise WeightsError(str(unreachable(source, failure)))
    raise WeightsError(
        f"{source} on the hub has none of {', '.join(FORMATS)}; download its weights and give the"
        " file"
    )
