"""Saving, loading and pruning checkpoints: each is complete or absent, published by one rename.

The content of a checkpoint is described in engine/checkpoint/layout.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from allinone.common.atomic_io import (
    TEMPORARY,
    delete,
    fsync_dir,
    open_to_umask,
    remove_leftovers,
    temporary_path,
    write_atomic,
)
from allinone.common.paths import ROOT
from allinone.engine import deepspeed_adapter as adapter
from allinone.engine.checkpoint import reshard
from allinone.engine.checkpoint.layout import (
    BEST,
    EMA,
    LAYOUT,
    RUN,
    STATE,
    WEIGHTS,
    CheckpointError,
    checkpoints,
    step_folder,
    step_of,
)
from allinone.engine.checkpoint.manifest import write_manifest
from allinone.engine.checkpoint.weight_average import WeightAverage
from allinone.engine.checkpoint.write_failure import WriteFailure, attempt, write_twice
from allinone.engine.checkpoint.zero_reader import PICKLED_CLASSES
from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import all_gather_object, run_on_rank0
from allinone.model.weights_file import WeightsError, read_pickle

log = logging.getLogger(__name__)
T = TypeVar("T")


def full_weights(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Gather fp32 weights over ZeRO partitions and tensor-parallel ranks. Collective.

    Args:
        module: The model inside DeepSpeed's engine.
        optimizer: The engine's optimizer.

    Returns:
        On rank 0, parameter name → fp32 tensor on the CPU, the same for every layout; {} on the
        other ranks.
    """
    weights: dict[str, Tensor] = {}
    is_rank0 = dist.get_rank() == 0
    layout = topology.current()
    masters = adapter.fp32_masters(optimizer)
    for name, parameter in module.named_parameters():
        if adapter.is_partitioned(parameter):
            # collective: every rank gathers every parameter in the same order, though only rank 0
            # keeps the result
            full = adapter.full_fp32_parameter(parameter)
        else:
            full = masters.get(parameter)
        value = (parameter if full is None else full).detach()
        value = value.reshape(adapter.full_shape(parameter))
        if (division := topology.division_of(parameter)) is not None:
            value = topology.gather(value, division, layout)
        if is_rank0:
            # a copy also of fp32 weights on a CPU, which EMA exchanges while this result is kept
            weights[name] = value.to("cpu", torch.float32, copy=True)
    return weights


WeightSets = Mapping[str, dict[str, Tensor]]
"""Folder in a checkpoint → parameter name → fp32 tensor."""


def _weight_sets(module: nn.Module, optimizer: Any, average: WeightAverage | None) -> WeightSets:
    """The weights and, if there is one, their average, gathered by rank 0. Collective."""
    sets = {WEIGHTS: full_weights(module, optimizer)}
    if average is not None:
        with average.applied():
            sets[EMA] = full_weights(module, optimizer)
    return sets


class StateWriter:
    """Records a failed write of DeepSpeed's save_checkpoint instead of raising it.

    save_checkpoint runs barriers after its writes. A rank that raised in between would leave the
    other ranks waiting in them until the time-out.
    """

    def __init__(self, engine: Any) -> None:
        self.failure: WriteFailure | None = None
        adapter.wrap_state_writer(engine, self._write)
        adapter.omit_recovery_script(engine)  # weights/ replaces zero_to_fp32.py

    def _write(self, save: Callable[..., Any], state_dict: Any, path: str) -> None:
        failure = attempt(lambda: save(state_dict, path), Path(path).parent)
        self.failure = self.failure or failure


def code_version() -> dict[str, str]:
    """Version of the package and, in a git checkout, its commit."""
    try:
        version = importlib.metadata.version("allinone-pretrain")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return {"version": version}
    if found.returncode != 0:
        return {"version": version}
    return {"version": version, "commit": found.stdout.strip()}


def save(
    engine: Any,
    writer: StateWriter,
    module: nn.Module,
    out: Path,
    facts: Mapping[str, Any],
    layout: Mapping[str, Any],
    average: WeightAverage | None = None,
) -> Path:
    """Write a checkpoint with all ranks and publish it. Collective.

    Args:
        engine: DeepSpeed's engine.
        writer: The engine's `StateWriter`.
        module: The model inside the engine.
        out: The run's folder.
        facts: Content of run.json; `step` names the folder.
        layout: Content of layout.json, see `reshard.describe`.
        average: Moving average of the weights; None: the run has none.

    Returns:
        The published folder.

    Raises:
        CheckpointError: Writing failed, on every rank. Earlier checkpoints are not affected.
    """
    target = step_folder(out, facts["step"])
    notes = {RUN: facts, LAYOUT: layout}
    write_twice(lambda: _save(engine, writer, module, target, notes, average), target, out)
    return target


def _save(
    engine: Any,
    writer: StateWriter,
    module: nn.Module,
    target: Path,
    notes: Mapping[str, Mapping[str, Any]],
    average: WeightAverage | None,
) -> WriteFailure | None:
    """Try to write and publish a checkpoint; collective. Arguments as for `save` and `_publish`.

    Returns:
        The failure of the lowest rank that has one, on every rank.
    """
    is_rank0 = dist.get_rank() == 0
    # all ranks learn of a failure here, or they would enter collectives that rank 0 never joins
    temporary = run_on_rank0(lambda: _make_folder(target))
    if isinstance(temporary, WriteFailure):
        return temporary
    sets = _weight_sets(module, engine.optimizer, average)
    writer.failure = None
    # no file `latest`: it would name a tag that is the same in every checkpoint
    engine.save_checkpoint(str(temporary), tag=STATE, save_latest=False)
    # rank 0 must not publish before all ranks have written their partitions
    failure = _first(writer.failure)
    if failure is None and is_rank0:
        failure = attempt(lambda: _publish(temporary, target, module, sets, notes), target.parent)
    failure = _first(failure)
    if failure is not None and is_rank0:
        delete(temporary)  # what is left goes with the next checkpoint
    return failure


def save_best(
    module: nn.Module,
    optimizer: Any,
    out: Path,
    facts: Mapping[str, Any],
    average: WeightAverage | None = None,
) -> Path:
    """Publish the current weights as the run's best weights, and delete older ones. Collective.

    Args:
        module: The model inside DeepSpeed's engine.
        optimizer: The engine's optimizer.
        out: The run's folder.
        facts: Content of run.json; `step` names the folder.
        average: Moving average of the weights; None: the run has none.

    Returns:
        The published folder.

    Raises:
        CheckpointError: Writing failed twice, on every rank.
    """
    target = step_folder(out, facts["step"], BEST)
    sets = _weight_sets(module, optimizer, average)

    def publish() -> WriteFailure | None:
        temporary = _make_folder(target)
        if isinstance(temporary, WriteFailure):
            return temporary
        notes = {RUN: facts}
        failure = attempt(lambda: _publish(temporary, target, module, sets, notes), target.parent)
        if failure is not None:
            delete(temporary)
        return failure

    write_twice(lambda: run_on_rank0(publish), target, out)
    if dist.get_rank() == 0:
        # last: until the rename above, the former best weights are the only ones
        _discard_all(checkpoints(out, BEST)[1:])
    return target


def _make_folder(target: Path) -> Path | WriteFailure:
    """Make an unfinished folder for a checkpoint. Rank 0 only."""
    # next to the target: a rename is atomic only within one file system
    temporary = temporary_path(target)

    def make() -> None:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(temporary.parent)
        temporary.mkdir()

    return attempt(make, target.parent) or temporary


def _publish(
    temporary: Path,
    target: Path,
    module: nn.Module,
    sets: WeightSets,
    notes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write weights, notes and manifest, then rename. Rank 0 only.

    Args:
        temporary: The unfinished folder.
        target: Its final name.
        module: The model, for its config.json.
        sets: The folders of weights.
        notes: File name → content as JSON values.
    """
    for name, weights in sets.items():
        _save_weights(module, weights, temporary / name)
    for name, content in notes.items():
        write_atomic(temporary / name, json.dumps(content, indent=1) + "\n")
    open_to_umask(temporary)
    write_manifest(temporary)
    if target.exists():  # by the same steps, before the run was killed or an fsync failed
        _discard(target)
    # the manifest is written last and the rename follows it, so a visible folder is complete
    temporary.rename(target)
    # without it a power loss could undo the rename after older checkpoints were deleted
    fsync_dir(target.parent)


def _save_weights(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Write a folder of weights.

    Args:
        module: The model; one of transformers also writes its config.json.
        weights: Parameter name → fp32 tensor on the CPU.
        folder: The new folder.
    """
    if isinstance(module, PreTrainedModel):
        from transformers.utils import logging

        logging.disable_progress_bar()  # else a bar per checkpoint between our log lines
        module.save_pretrained(folder, state_dict=weights)
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        # save_file refuses tensors that are not contiguous
        contiguous = {name: value.contiguous() for name, value in weights.items()}
        save_file(contiguous, folder / "model.safetensors")


def _first(value: T | None) -> T | None:
    """The value of the lowest rank that has one, on all ranks; else None. Collective."""
    return next((one for one in all_gather_object(value) if one), None)


def load(
    engine: Any, module: nn.Module, folder: Path, layout: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Restore the state of a verified checkpoint. Collective.

    At the layout that wrote the checkpoint, DeepSpeed loads its own files and training continues
    bit for bit. At any other layout the state is redistributed (engine/checkpoint/reshard.py).

    Args:
        engine: DeepSpeed's engine.
        module: The model inside the engine.
        folder: The checkpoint.
        layout: Layout of this run, see `reshard.describe`.

    Returns:
        Content of run.json, and the differences between the layouts ('' if there are none).

    Raises:
        CheckpointError: The checkpoint cannot be loaded at this layout, or a file of it holds a
            program.
    """
    facts = json.loads((folder / RUN).read_text())
    before = reshard.read_layout(folder)
    changed = reshard.difference(before, layout)
    if changed:
        reshard.load(engine, module, folder, before, layout)
        # load_checkpoint would have set these counters
        adapter.set_progress(engine, facts["step"], facts["samples"])
        return facts, changed
    _refuse_programs(folder)
    if not adapter.load_checkpoint(engine, str(folder), STATE, PICKLED_CLASSES):
        raise CheckpointError(
            f"DeepSpeed could not load {folder}; was it written with another --ds-config?"
        )
    if before["offload"] == "nvme":
        reshard.load_kept_in_memory(engine, folder)
    return facts, ""


def _refuse_programs(folder: Path) -> None:
    """Check DeepSpeed's files, each rank a share of them; collective.

    A pickle is a program, and a manifest only shows that the files are the ones it lists.

    Raises:
        CheckpointError: A file holds anything but tensors, plain containers and DeepSpeed's own
            classes, on every rank.
    """
    error: str | None = None
    files = sorted((folder / STATE).rglob("*.pt"))
    for file in files[dist.get_rank() :: dist.get_world_size()]:
        try:
            read_pickle(file, PICKLED_CLASSES)
        except WeightsError as refusal:
            error = error or str(refusal)
    if error := _first(error):
        raise CheckpointError(
            f"{folder} is not loaded: {error}. If its weights/ can be trusted, start a new run with"
            f" --init-from {folder / WEIGHTS}"
        )


DELETING = f"{TEMPORARY}old-"
"""Prefix of a checkpoint that is being deleted, so that a partly deleted one is never used."""


def prune(out: Path, keep_last: int, keep_every: int) -> None:
    """Delete old checkpoints, as far as possible; the next call deletes what is left.

    Args:
        out: The run's folder.
        keep_last: Number of newest checkpoints to keep.
        keep_every: Also keep checkpoints at multiples of this many steps; 0 keeps no others.
    """
    old = checkpoints(out)[keep_last:]
    _discard_all([one for one in old if not keep_every or step_of(one) % keep_every])


def _discard_all(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            _discard(folder)
        except OSError as error:
            log.warning("%s is not deleted now: %s", folder, error)
        for left in folder.parent.glob(f"{DELETING}*"):
            delete(left)


def _discard(folder: Path) -> None:
    """Take a checkpoint out of use, and delete it as far as possible."""
    # the rename is atomic, deleting is not: an interrupted deletion leaves no half checkpoint
    gone = temporary_path(folder.with_name(f"old-{folder.name}"))
    folder.rename(gone)
    delete(gone)
