"""Finding the weights to load: of a run, a checkpoint, a model folder, a file, or the model hub.

One rule for every command that takes weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allinone.common.access import describe_denied, exists
from allinone.common.errors import InputError
from allinone.common.hub import hub_folder, is_hub_id
from allinone.engine.checkpoint.layout import (
    BEST,
    CHECKPOINTS,
    EMA,
    MANIFEST,
    WEIGHT_FILES,
    WEIGHTS,
    CheckpointError,
    WeightsKind,
    step_of,
)
from allinone.engine.checkpoint.manifest import find_damage, newest_complete

_AVERAGE_OF: dict[WeightsKind, str] = {"raw": "", "ema": "moving average (EMA) of the "}


@dataclass(frozen=True)
class FoundWeights:
    """Weights that an option names."""

    path: Path
    """A folder for from_pretrained, or a file of weights."""
    what: str
    """What they are, for the user: `best weights of runs/a, step 400`."""

    def __str__(self) -> str:
        return self.what


def weights_of(checkpoint: Path, kind: WeightsKind = "raw") -> Path:
    """Folder with the weights of a checkpoint, or with their moving average.

    Raises:
        CheckpointError: The checkpoint has no average.
    """
    folder = checkpoint / (EMA if kind == "ema" else WEIGHTS)
    if kind == "ema" and not exists(folder):
        raise CheckpointError(
            f"{checkpoint} has no averaged weights (--weights ema): its run was trained without"
            " --ema"
        )
    return folder


def newest_weights(out: Path, kind: WeightsKind = "raw") -> Path:
    """Folder with the fp32 weights of a run's newest complete checkpoint, for from_pretrained.

    Raises:
        CheckpointError: There is no complete checkpoint, or it has no such weights.
    """
    folder, notes = newest_complete(out)
    if folder is None:
        missing = f"there is no complete checkpoint in {out / CHECKPOINTS}; train first"
        raise CheckpointError("; ".join([*notes, missing]))
    return weights_of(folder, kind)


def best_weights(out: Path, kind: WeightsKind = "raw") -> Path:
    """Folder with the weights of a run's best evaluation; `newest_weights` if it has none.

    Raises:
        CheckpointError: The best weights are damaged, or there are no such weights.
    """
    folder, notes = newest_complete(out, BEST)
    # no fall-back to the newest weights: results would be those of weights that nobody selected
    if folder is None and notes:
        raise CheckpointError("; ".join(notes))
    return weights_of(folder, kind) if folder else newest_weights(out, kind)


def find_weights(path: Path) -> Path:
    """The folder to give to from_pretrained; as `resolve_weights`, without files.

    Raises:
        CheckpointError: `path` names no weights, or damaged ones; the message begins with `path`.
    """
    found = resolve_weights(path)
    if found.path.is_file():
        raise CheckpointError(f"{path} is a file; give its folder")
    return found.path


def resolve_weights(source: str | Path, kind: WeightsKind = "raw") -> FoundWeights:
    """Find the weights that an option names.

    Args:
        source: A run's folder: its best weights if there are any, else those of the newest complete
            checkpoint. Or a checkpoint, a model folder, a file of weights, or the id of a
            repository on the model hub, owner/name.
        kind: Which weights of a run or checkpoint. A model folder or file has one set, "raw".

    Raises:
        CheckpointError: It is none of these, damaged, or without such weights; the message begins
            with `source`.
    """
    path = Path(source)
    try:
        if is_hub_id(source):
            found = FoundWeights(_with_weights(hub_folder(str(source))), f"{source} on the hub")
        else:
            found = _resolve(path, kind)
    except PermissionError as error:
        denied = Path(error.filename or path)
        raise CheckpointError(f"{path} cannot be read: {describe_denied(denied)}") from error
    except InputError as error:
        raise CheckpointError(str(error)) from error
    if kind == "ema" and found.path.name != EMA:
        raise CheckpointError(
            f"{source} holds one set of weights; --weights ema chooses among those of a run or a"
            " checkpoint"
        )
    return found


def _resolve(path: Path, kind: WeightsKind) -> FoundWeights:
    if not exists(path):
        raise CheckpointError(
            f"{path} does not exist; give a run, a checkpoint, a model folder, a file of weights,"
            " or a hub id (owner/name)"
        )
    if not path.is_dir():
        return FoundWeights(path, f"file {path}")
    # first, because a model folder has no manifest to check: save_pretrained writes none
    if (path / "config.json").is_file():
        return FoundWeights(_with_weights(path), f"model folder {path}")
    if (path / MANIFEST).is_file():
        if problem := find_damage(path):
            raise CheckpointError(
                f"{path} is damaged: it {problem}; give another checkpoint of the run, or the run's"
                " folder"
            )
        what = f"{_AVERAGE_OF[kind]}checkpoint {path}"
        return FoundWeights(_with_weights(weights_of(path, kind)), what)
    if (path / BEST).is_dir() or (path / CHECKPOINTS).is_dir():
        try:
            found = best_weights(path, kind)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        best = found.parent.parent.name == BEST
        name = "best weights" if best else "newest checkpoint"
        why = "" if best else " (it selected no best weights)"
        what = f"{_AVERAGE_OF[kind]}{name} of {path}, step {step_of(found.parent)}{why}"
        return FoundWeights(found, what)
    raise CheckpointError(
        f"{path} holds no weights; give a folder of save_pretrained (config.json and"
        " model.safetensors), a checkpoint (step-…, with weights/), or a run's folder (with"
        " checkpoints/)"
    )


def _with_weights(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise CheckpointError(
            f"{folder} has a config.json but no weights ({' or '.join(WEIGHT_FILES)})"
        )
    return folder
