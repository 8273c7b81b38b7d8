"""Checkpoints that are whole or absent: DeepSpeed's ZeRO state, fp32 weights, the run's options, a
manifest; published by one rename.

OUT/checkpoints/step-00001000/
  manifest.json sizes and sha256 of every other file; a folder without it is unfinished run.json
  options, step, samples consumed, world size, versions layout.json who held what: ZeRO stage, data
  ranks, tensor parallel size, what engine/checkpoint/zero_reader.py needs to join the partitions
  weights/ fp32 weights as safetensors with the model's config.json: what every other tool reads;
  the same at every layout deepspeed/ optimizer state and partitions, one file per rank
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from allinone.common.atomic_io import fsync_dir, fsync_file, remove_leftovers, write_atomic
from allinone.common.errors import AllInOneError, ConfigError
from allinone.common.formatting import size
from allinone.common.paths import ROOT
from allinone.engine import ds_config
from allinone.engine.config import HARMLESS
from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import all_gather_object

STATE = "deepspeed"
BEST = "best"
"""Folder inside a run with the weights that the validation chose."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
LAYOUT = "layout.json"


class CheckpointError(AllInOneError, RuntimeError):
    """A checkpoint cannot be written or used. `disk` tells the first case."""

    def __init__(self, message: str, disk: bool = False) -> None:
        super().__init__(message)
        self.disk = disk


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Sizes and hashes of all files below `folder`, each forced to the disk first."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        fsync_file(path)
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        fsync_dir(path)
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in files
    }
    write_atomic(folder / "manifest.json", json.dumps(entries, indent=1) + "\n")


def find_damage(folder: Path, without: str = "") -> str | None:
    """What is wrong with a checkpoint, in words, or None. Every file's size and hash is compared
    with the manifest; `without` names one file that is not looked at."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return "has no manifest.json: it was not finished"
    try:
        entries = json.loads(manifest.read_text())
        for name, entry in entries.items():
            if name == without:
                continue
            path = folder / name
            if not path.is_file():
                return f"misses {name}"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _hash(path) != entry["sha256"]:
                return f"{name} does not have the content that was written"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def step_of(folder: Path) -> int:
    """Step in a checkpoint's name, -1 if it has none."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else -1


def checkpoints(out: Path, kind: str = "checkpoints") -> list[Path]:
    """Published checkpoints of a run (or, with BEST, its best weights), newest first; whole or
    not."""
    folders = [path for path in (out / kind).glob("step-*") if step_of(path) >= 0]
    return sorted(folders, key=step_of, reverse=True)


def newest_complete(out: Path, kind: str = "checkpoints") -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and a line about each damaged one that was passed over."""
    notes: list[str] = []
    for folder in checkpoints(out, kind):
        problem = find_damage(folder)
        if problem is None:
            return folder, notes
        notes.append(f"checkpoint {folder} {problem}; looking for the one before")
    return None, notes


def newest_for_resume(out: Path) -> tuple[Path | None, list[str]]:
    """As `newest_complete`, and damaged checkpoints are renamed to damaged-step-*, so that they
    count as none when old ones are deleted.

    Raises CheckpointError if there are checkpoints and none is whole: starting again from step 0 is
    for a person to decide.
    """
    folder, notes = newest_complete(out)
    if folder is None:
        if notes:
            raise CheckpointError(
                f"{'; '.join(notes)}: none is left. Delete {out / 'checkpoints'} to start again"
                " from step 0"
            )
        return None, []
    for bad in (path for path in checkpoints(out) if step_of(path) > step_of(folder)):
        aside = bad.with_name(f"damaged-{bad.name}")
        if aside.exists():
            shutil.rmtree(aside)
        bad.rename(aside)
    return folder, [f"{note}; it is kept as damaged-*" for note in notes]


def newest_weights(out: Path) -> Path:
    """Folder with the fp32 weights of a run's newest whole checkpoint, for from_pretrained;
    CheckpointError if there is none."""
    folder, notes = newest_complete(out)
    if folder is None:
        raise CheckpointError(
            "; ".join([*notes, f"no checkpoint in {out / 'checkpoints'}; train first"])
        )
    return folder / "weights"


def best_weights(out: Path) -> Path:
    """The weights that a run's validation chose, or, where it has none, `newest_weights`."""
    folder, notes = newest_complete(out, BEST)
    if folder is None and notes:
        raise CheckpointError("; ".join(notes))
    return folder / "weights" if folder else newest_weights(out)


def find_weights(path: Path) -> Path:
    """The folder to give to from_pretrained: `path` itself, `weights/` of a checkpoint, or those of
    a run: its best ones where a validation chose them, else those of the newest whole checkpoint.

    Raises CheckpointError for anything else, and for a checkpoint that is damaged; its message goes
    on from the name of the path.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}"
            f" {'is a file; give the folder that holds it' if path.is_file() else 'does not exist'}"
        )
    if (path / "config.json").is_file():
        if not any((path / name).is_file() for name in WEIGHT_FILES):
            raise CheckpointError(
                f"{path} has a config.json but no weights ({' or '.join(WEIGHT_FILES)})"
            )
        return path
    if (path / "manifest.json").is_file():
        if problem := find_damage(path):
            raise CheckpointError(
                f"{path} is damaged: it {problem}; give another checkpoint of the run, or the run's"
                " folder"
            )
        return find_weights(path / "weights")
    if (path / BEST).is_dir() or (path / "checkpoints").is_dir():
        try:
            return best_weights(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(
        f"{path} holds no weights; give a folder of save_pretrained (config.json and"
        " model.safetensors), a checkpoint (step-…, with weights/), or a run's folder (with"
        " checkpoints/)"
    )


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level: {"train": {"lr": 1}} → {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat.update(flatten(item, f"{name}.") if isinstance(item, Mapping) else {name: item})
    return flat


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name: old → new` for every option that changes the result and differs."""
    before, now = flatten(old), flatten(new)
    names = sorted(
        name for name in before.keys() | now.keys() if name.rsplit(".", 1)[-1] not in HARMLESS
    )
    return [
        f"{name}: {before.get(name)} → {now.get(name)}"
        for name in names
        if not _same(name, before.get(name), now.get(name))
    ]


def _same(name: str, old: Any, new: Any) -> bool:
    """Equal, or two DeepSpeed files that compute alike: ZeRO stage, buckets and offload may
    change."""
    if old == new or name.rsplit(".", 1)[-1] != "ds_config" or None in (old, new):
        return old == new
    try:
        return ds_config.arithmetic(ds_config.load(old)) == ds_config.arithmetic(
            ds_config.load(new)
        )
    except ConfigError:  # the old file is gone
        return False


def _masters(optimizer: Any) -> dict[nn.Parameter, torch.Tensor]:
    """fp32 weights that DeepSpeed's optimizer of ZeRO 0 in 16 bits keeps; {} for every other."""
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: full for group in pairs for low, full in zip(*group, strict=True)}


def full_weights(module: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """fp32 weights of the wrapped model on the CPU, gathered over ZeRO's partitions and
    tensor-parallel ranks, so that they are the same at every layout. Collective over all ranks; the
    others than rank 0 get {}."""
    weights, keep, layout, masters = (
        {},
        dist.get_rank() == 0,
        topology.current(),
        _masters(optimizer),
    )
    for name, parameter in module.named_parameters():
        partitioned = hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")
        full = _whole(parameter) if partitioned else masters.get(parameter)
        value = (
            (parameter if full is None else full)
            .detach()
            .reshape(getattr(parameter, "ds_shape", parameter.shape))
        )
        if (division := topology.division_of(parameter)) is not None:
            value = topology.gather(value, division, layout)
        if keep:
            weights[name] = value.float().cpu()
    return weights


def _whole(parameter: nn.Parameter) -> torch.Tensor | None:
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if (
        hasattr(parameter, "ds_id") and not parameter.requires_grad
    ):  # ZeRO 3 keeps no fp32 copy of what is frozen
        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return safe_get_full_fp32_param(parameter)


class StateWriter:
    """Makes DeepSpeed's save_checkpoint safe on a full disk: a failed write is remembered instead
    of raised.

    save_checkpoint holds barriers after its writes. A rank that raised in between would leave the
    others waiting in them until the time-out.
    """

    def __init__(self, engine: Any) -> None:
        self.error = ""
        self._write = engine.checkpoint_engine.save
        engine.checkpoint_engine.save = self._save
        engine._copy_recovery_script = lambda save_path: (
            None
        )  # zero_to_fp32.py in each checkpoint: weights/ serves its purpose

    def _save(self, state_dict: Any, path: str) -> None:
        self.error = self.error or attempt(lambda: self._write(state_dict, path))


def attempt(action: Callable[[], object]) -> str:
    """What went wrong with a write, or ''. A full disk is an OSError, to torch a RuntimeError, to
    safetensors an error of its own."""
    try:
        action()
    except (OSError, RuntimeError, SafetensorError) as failure:
        return f"{type(failure).__name__}: {str(failure).splitlines()[0]}"
    return ""


def code_version() -> dict[str, str]:
    """Version of the package and, in a git checkout, its commit."""
    try:
        version = importlib.metadata.version("allinone-pretrain")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git on this machine
        return {"version": version}
    return (
        {"version": version, "commit": found.stdout.strip()}
        if found.returncode == 0
        else {"version": version}
    )


def _save_weights(module: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    if isinstance(module, PreTrainedModel):
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar per checkpoint between our own lines
        module.save_pretrained(folder, state_dict=weights)
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(
            {name: value.contiguous() for name, value in weights.items()},
            folder / "model.safetensors",
        )


def save(
    engine: Any,
    writer: StateWriter,
    module: nn.Module,
    out: Path,
    facts: Mapping[str, Any],
    layout: Mapping[str, Any],
) -> Path:
    """Write a checkpoint with all ranks and publish it. A failure leaves the earlier ones alone and
    raises CheckpointError on every rank."""
    target = out / "checkpoints" / f"step-{facts['step']:08d}"
    temporary = target.with_name(f".tmp-{target.name}")
    first = dist.get_rank() == 0
    error = _first_error(attempt(lambda: _make_folder(temporary)) if first else "")
    if not error:
        weights = full_weights(module, engine.optimizer)
        writer.error = ""
        engine.save_checkpoint(str(temporary), tag=STATE, save_latest=False)
        error = _first_error(
            writer.error
        )  # before rank 0 publishes: all partitions must have been written
    if not error:
        error = _first_error(
            attempt(
                lambda: _finish(
                    temporary, target, module, weights, {"run.json": facts, LAYOUT: layout}
                )
            )
            if first
            else ""
        )
    if error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target.name} could not be written ({error}); most often the disk or a"
            f" quota is full: {size(shutil.disk_usage(out).free)} are free in {out}. Earlier"
            " checkpoints are whole: free space, then run the same command again",
            disk=True,
        )
    return target


def save_best(module: nn.Module, optimizer: Any, out: Path, facts: Mapping[str, Any]) -> Path:
    """Publish the weights of this step as the run's best ones, with all ranks; older ones are
    deleted then. Fails as `save` does."""
    target = out / BEST / f"step-{facts['step']:08d}"
    temporary = target.with_name(f".tmp-{target.name}")
    weights = full_weights(module, optimizer)

    def publish() -> None:
        _make_folder(temporary)
        if target.exists():  # written before a kill, by the same steps
            shutil.rmtree(target)
        _finish(temporary, target, module, weights, {"run.json": facts})
        for old in checkpoints(out, BEST)[1:]:
            shutil.rmtree(old)

    error = _first_error(attempt(publish) if dist.get_rank() == 0 else "")
    if error:
        raise CheckpointError(
            f"{target} could not be written ({error}); free space, then run the same command again",
            disk=True,
        )
    return target


def _make_folder(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(temporary.parent)
    temporary.mkdir()


def _finish(
    temporary: Path,
    target: Path,
    module: nn.Module,
    weights: dict[str, torch.Tensor],
    notes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Rank 0's part after all partitions are written: weights, notes (file name → content),
    manifest, rename."""
    _save_weights(module, weights, temporary / "weights")
    for name, content in notes.items():
        write_atomic(temporary / name, json.dumps(content, indent=1) + "\n")
    write_manifest(temporary)
    temporary.rename(target)
    fsync_dir(target.parent)


def _first_error(error: str) -> str:
    """The same error on all ranks: the first one's."""
    return next((text for text in all_gather_object(error) if text), "")


def load(
    engine: Any, module: nn.Module, folder: Path, layout: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Restore the state of a verified checkpoint; returns run.json, and in words what has changed
    in the layout since.

    At the layout that wrote it DeepSpeed loads its own files, bit for bit; at another one
    engine/checkpoint/reshard.py joins and divides the partitions.
    """
    from allinone.engine.checkpoint import reshard

    facts = json.loads((folder / "run.json").read_text())
    if not (folder / LAYOUT).is_file():
        raise CheckpointError(
            f"{folder} was written by an earlier version, without {LAYOUT}; begin a new run from"
            f" its weights in {folder / 'weights'}"
        )
    before = json.loads((folder / LAYOUT).read_text())
    changed = reshard.difference(before, layout)
    if changed:
        reshard.load(engine, module, folder, before, layout)
        engine.global_steps, engine.global_samples = facts["step"], facts["samples"]
        return facts, changed
    path, _ = engine.load_checkpoint(str(folder), tag=STATE)
    if path is None:
        raise CheckpointError(
            f"DeepSpeed could not load {folder}; was it written with another ds_config?"
        )
    if before["offload"] == "nvme":
        reshard.load_kept_in_memory(engine, folder)
    return facts, ""


DOOMED = ".tmp-old-"
"""Prefix of a checkpoint that is being deleted: a half-deleted one is never taken for whole."""


def prune(out: Path, keep_last: int, keep_every: int) -> None:
    """Delete old checkpoints: the newest `keep_last` stay, and those at multiples of `keep_every`
    steps."""
    for folder in checkpoints(out)[keep_last:]:
        if not keep_every or step_of(folder) % keep_every:
            folder.rename(folder.with_name(f"{DOOMED}{folder.name}"))
    for doomed in (out / "checkpoints").glob(f"{DOOMED}*"):
        shutil.rmtree(
            doomed, ignore_errors=True
        )  # NFS keeps what somebody still reads; the next time
