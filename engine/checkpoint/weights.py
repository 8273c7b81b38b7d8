"""Finding the weights to load: of a model folder, a checkpoint, or a run."""

from __future__ import annotations

from pathlib import Path

from allinone.common.access import describe_denied, exists
from allinone.engine.checkpoint.layout import (
    BEST,
    CHECKPOINTS,
    MANIFEST,
    WEIGHT_FILES,
    WEIGHTS,
    CheckpointError,
)
from allinone.engine.checkpoint.manifest import find_damage, newest_complete


def newest_weights(out: Path) -> Path:
    """Folder with the fp32 weights of a run's newest complete checkpoint, for from_pretrained.

    Raises:
        CheckpointError: There is no complete checkpoint.
    """
    folder, notes = newest_complete(out)
    if folder is None:
        missing = f"there is no complete checkpoint in {out / CHECKPOINTS}; train first"
        raise CheckpointError("; ".join([*notes, missing]))
    return folder / WEIGHTS


def best_weights(out: Path) -> Path:
    """Folder with the weights of a run's best evaluation; `newest_weights` if it has none.

    Raises:
        CheckpointError: The best weights are damaged, or there are no weights at all.
    """
    folder, notes = newest_complete(out, BEST)
    # no fall-back to the newest weights: results would be those of weights that nobody selected
    if folder is None and notes:
        raise CheckpointError("; ".join(notes))
    return folder / WEIGHTS if folder else newest_weights(out)


def find_weights(path: Path) -> Path:
    """Find the folder to give to from_pretrained.

    Args:
        path: A model folder (returned as it is), a checkpoint, or a run's folder. Of a run, the
            best weights are used if there are any, else those of the newest complete checkpoint.

    Raises:
        CheckpointError: `path` is none of these, or damaged; the message begins with `path`.
    """
    try:
        return _find_weights(path)
    except PermissionError as error:
        denied = Path(error.filename or path)
        raise CheckpointError(f"{path} cannot be read: {describe_denied(denied)}") from error


def _find_weights(path: Path) -> Path:
    if not exists(path) or not path.is_dir():
        what = "is a file; give its folder" if path.is_file() else "does not exist"
        raise CheckpointError(f"{path} {what}")
    # first, because a model folder has no manifest to check: save_pretrained writes none
    if (path / "config.json").is_file():
        if not any((path / name).is_file() for name in WEIGHT_FILES):
            raise CheckpointError(
                f"{path} has a config.json but no weights ({' or '.join(WEIGHT_FILES)})"
            )
        return path
    if (path / MANIFEST).is_file():
        if problem := find_damage(path):
            raise CheckpointError(
                f"{path} is damaged: it {problem}; give another checkpoint of the run, or the run's"
                " folder"
            )
        return find_weights(path / WEIGHTS)
    if (path / BEST).is_dir() or (path / CHECKPOINTS).is_dir():
        try:
            return best_weights(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(
        f"{path} holds no weights; give a folder of save_pretrained (config.json and"
        " model.safetensors), a checkpoint (step-…, with weights/), or a run's folder (with"
        " checkpoints/)"
    )
