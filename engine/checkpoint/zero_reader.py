"""Read weights and AdamW moments from a checkpoint's partitions by parameter name, without
DeepSpeed and without a process group.

A checkpoint's `weights/` holds the gathered fp32 weights already. This module is for a checkpoint
whose weights/ is lost, for an independent check of it, and for a run that continues at another
layout (engine/checkpoint/reshard.py). Files are memory-mapped: only the numbers that are asked for
are read from the disk.

Layout of the partitions: DeepSpeed 0.19, deepspeed/utils/zero_to_fp32.py; of tensor-parallel parts:
layout.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from allinone.engine.checkpoint.layout import LAYOUT, STATE, CheckpointError
from allinone.engine.distributed.topology import Division
from allinone.model.weights_file import read_pickle

Key = Literal["weight", "exp_avg", "exp_avg_sq"]
Storage = Literal["replicated", "per group", "per parameter"]
"""ZeRO 0: one tensor per parameter. ZeRO 1, 2: each group is one flat tensor, divided over the data
ranks. ZeRO 3: each parameter is divided over the data ranks."""

PICKLED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes that DeepSpeed 0.19 pickles into its files; the restricted unpickler replaces them."""

_PREFIX = "model."  # of engine.objective.StepModule


@dataclass
class _Location:
    """Where a parameter is stored: consecutive pieces (data rank, number of its flat tensor, from,
    to)."""

    shape: torch.Size
    pieces: list[tuple[int, int, int, int]] = field(default_factory=list)


class SavedState:
    """The state in a checkpoint of any ZeRO stage, number of ranks and tensor-parallel size.

    Raises:
        CheckpointError: Files of a rank are missing, or the model has frozen or shared parameters,
            which DeepSpeed stores elsewhere.
    """

    def __init__(self, checkpoint: Path) -> None:
        layout = checkpoint / LAYOUT
        self._facts: dict[str, Any] = json.loads(layout.read_text()) if layout.is_file() else {}
        divided = self._facts.get("divided", {})
        self._divisions = {name: Division(dim, blocks) for name, (dim, blocks) in divided.items()}
        folder = checkpoint / STATE
        # only the file says how many tensor-parallel parts there are: layout.json may be missing
        models = [self._model(folder, 0)]
        models += [self._model(folder, number) for number in range(1, models[0]["mp_world_size"])]
        self._parts = [
            _Part(folder, number, model, self._facts) for number, model in enumerate(models)
        ]

    @staticmethod
    def _model(folder: Path, part: int) -> dict[str, Any]:
        files = sorted(folder.glob(f"*mp_rank_{part:02d}_model_states.pt"), key=_data_rank)
        if not files:
            missing = (
                f"tensor-parallel part {part}: no *mp_rank_{part:02d}_model_states.pt"
                if part
                else "no *_model_states.pt"
            )
            raise CheckpointError(
                f"{folder} holds {missing}; give a complete checkpoint of this program"
                " (runs/NAME/checkpoints/step-…)"
            )
        model = {"mp_world_size": 1, **read_pickle(files[0], PICKLED_CLASSES)[0]}
        special = [name for name in ("frozen_param_shapes", "shared_params") if model.get(name)]
        if special:
            raise CheckpointError(
                f"{folder} has {' and '.join(special)}, which DeepSpeed stores outside its"
                " partitions; use weights/"
            )
        return model

    @property
    def names(self) -> list[str]:
        """Every parameter, named as in the model."""
        return list(self._parts[0].locations)

    @property
    def step(self) -> float:
        """AdamW's count of updates."""
        return self._parts[0].step

    def full_tensor(self, name: str, key: Key) -> Tensor:
        """A parameter's fp32 weight or moment in its full shape, as at tensor parallel 1."""
        parts = [part.read(name, key) for part in self._parts]
        if name not in self._divisions or len(parts) == 1:
            return parts[0]
        return self._divisions[name].join(parts)


class _Part:
    """Files of the data ranks that share one tensor-parallel part of the model.

    Args:
        folder: The checkpoint's folder deepspeed/.
        number: Tensor-parallel rank.
        model: Content of its model_states.pt.
        facts: Content of layout.json.

    Raises:
        CheckpointError: Files of a data rank are missing.
    """

    def __init__(
        self, folder: Path, number: int, model: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        self._folder, self._model, self._facts = folder, model, facts
        self._mapped: dict[Key, Sequence[Sequence[Tensor]]] = {}
        files = sorted(folder.glob(f"*mp_rank_{number:02d}_optim_states.pt"), key=_data_rank)
        ranks = [_data_rank(path) for path in files]
        # a missing rank would shift every later piece and give wrong weights, not an error
        if files and ranks != list(range(model["dp_world_size"])):
            raise CheckpointError(
                f"{folder} holds the partitions of ranks {ranks}, but {model['dp_world_size']}"
                " ranks wrote it"
            )
        self._ranks = [
            read_pickle(path, PICKLED_CLASSES)[0]["optimizer_state_dict"] for path in files
        ]

    @cached_property
    def _storage(self) -> Storage:
        if not self._ranks:
            return "replicated"
        return "per parameter" if "fp32_flat_groups" in self._ranks[0] else "per group"

    @cached_property
    def locations(self) -> dict[str, _Location]:
        """Name → position in the flat tensors; in the order of the optimizer's groups."""
        if self._storage == "per parameter":
            return self._locations_per_parameter()
        return self._locations_per_group()

    @cached_property
    def _groups(self) -> list[dict[str, torch.Size]]:
        if self._ranks:
            return [
                {_model_name(name): shape for name, shape in group.items()}
                for group in self._model["param_shapes"]
            ]
        # ZeRO 0 writes no optim_states.pt and no param_shapes: shapes come from the weights
        module = self._model["module"].items()
        weights = {_model_name(name): value for name, value in module if value is not None}
        if "groups" not in self._facts:
            if "fp32_groups" in (self._model["optimizer"] or {}):
                raise CheckpointError(
                    f"{self._folder.parent} has no {LAYOUT}, which names its fp32 weights; use"
                    " weights/"
                )
            return [{name: value.shape for name, value in weights.items()}]
        return [{name: weights[name].shape for name in group} for group in self._facts["groups"]]

    def _locations_per_group(self) -> dict[str, _Location]:
        """ZeRO 1, 2: a group is divided into shares of equal size. ZeRO 0: nothing is divided."""
        found: dict[str, _Location] = {}
        for number, group in enumerate(self._groups):
            divided = self._storage != "replicated"
            # equal on all ranks: DeepSpeed pads a group to a multiple of the data ranks
            share = self._flats("weight")[0][number].numel() if divided else 0
            offset = 0
            for name, shape in group.items():
                location = found[name] = _Location(shape)
                if not divided:
                    location.pieces.append((0, len(found) - 1, 0, shape.numel()))
                    continue
                at, end = offset, offset + shape.numel()
                # a parameter may cross the border of two or more ranks' shares
                while at < end:
                    rank = at // share
                    stop = min(end, (rank + 1) * share)
                    location.pieces.append((rank, number, at - rank * share, stop - rank * share))
                    at = stop
                offset = end
        return found

    def _locations_per_parameter(self) -> dict[str, _Location]:
        """ZeRO 3: a rank's flat tensor holds its share of each parameter, the last one padded."""
        found: dict[str, _Location] = {}
        flats = self._flats("weight")
        flat = offset = 0
        for group in self._groups:
            for name, shape in group.items():
                # DeepSpeed may split a group into several flat tensors, never inside a parameter
                if offset == flats[0][flat].numel():
                    flat, offset = flat + 1, 0
                # each parameter is padded on its own; `read` cuts the padding off again
                share = math.ceil(shape.numel() / len(flats))
                found[name] = _Location(
                    shape, [(rank, flat, offset, offset + share) for rank in range(len(flats))]
                )
                offset += share
        return found

    @property
    def step(self) -> float:
        """AdamW's count of updates."""
        return float(self._states(self._ranks[0] if self._ranks else None)[0]["step"])

    def _states(self, rank: dict[str, Any] | None) -> list[dict[str, Any]]:
        """AdamW's state of a rank: one entry per flat tensor, or per parameter at ZeRO 0."""
        if rank is not None:
            per_parameter = self._storage == "per parameter"
            optimizer = rank["optimizer_state_dict" if per_parameter else "base_optimizer_state"]
        else:
            saved = self._model["optimizer"]
            optimizer = saved.get("optimizer_state_dict", saved)  # in 16 bits, in fp32
        state = optimizer["state"]
        if not state:
            raise CheckpointError(
                f"{self._folder} holds no optimizer state: it was written before the first step"
            )
        return [state[index] for index in sorted(state)]

    def _flats(self, key: Key) -> Sequence[Sequence[Tensor]]:
        """Flat tensors of every rank."""
        if key not in self._mapped:
            self._mapped[key] = self._find_flats(key)
        return self._mapped[key]

    def _find_flats(self, key: Key) -> Sequence[Sequence[Tensor]]:
        if key != "weight":
            return [[state[key] for state in self._states(rank)] for rank in self._ranks or [None]]
        if self._ranks:
            per_parameter = self._storage == "per parameter"
            name = "fp32_flat_groups" if per_parameter else "single_partition_of_fp32_groups"
            return [rank[name] for rank in self._ranks]
        # in 16 bits the module holds rounded weights: the fp32 copies are the optimizer's
        if masters := (self._model["optimizer"] or {}).get("fp32_groups"):
            return [[weight for group in masters for weight in group]]
        weights = {_model_name(name): value for name, value in self._model["module"].items()}
        return [[weights[name] for group in self._groups for name in group]]

    def read(self, name: str, key: Key) -> Tensor:
        """This part's numbers of a parameter, in fp32."""
        if name not in self.locations:
            raise CheckpointError(
                f"{self._folder} holds no parameter {name}; was it written by another model?"
            )
        location, flats = self.locations[name], self._flats(key)
        pieces = [
            flats[rank][flat].detach().flatten()[start:stop]
            for rank, flat, start, stop in location.pieces
        ]
        numel = location.shape.numel()
        # the last piece of a ZeRO 3 parameter ends in padding
        found = torch.cat(pieces)[:numel] if pieces else torch.empty(0)
        if found.numel() != numel:
            raise CheckpointError(
                f"the partitions end before {name}: they hold {found.numel()} of its {numel}"
                " numbers"
            )
        # no silent cast: a run that continues from rounded weights would not match the old one
        if found.dtype != torch.float32:
            raise CheckpointError(
                f"{self._folder} holds {name} in {found.dtype} only; use weights/"
            )
        return found.view(location.shape)


def _data_rank(path: Path) -> int:
    match = re.search(r"pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else 0


def _model_name(name: str) -> str:
    return name.removeprefix(_PREFIX)


def weights_from_shards(checkpoint: Path) -> dict[str, Tensor]:
    """Parameter name (of the model, as in weights/) → fp32 tensor, of a checkpoint of any layout.

    Raises:
        CheckpointError: As `SavedState`.
    """
    saved = SavedState(checkpoint)
    return {name: saved.full_tensor(name, "weight") for name in saved.names}
