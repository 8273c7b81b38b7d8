"""Checkpoints like those of the original code (Lightning 1.1.4), from key lists in tests/parity."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARITY = Path(__file__).parents[1] / "parity"


@contextmanager
def fake_class(full_name: str) -> Iterator[type]:
    """A class that pickle finds under `full_name` only inside the with block."""
    module_name, name = full_name.rsplit(".", 1)
    parts = module_name.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    made = type(name, (), {"__module__": module_name, "__qualname__": name})
    added = [module for module in names if module not in sys.modules]
    for module in added:
        sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module_name], name, made)
    try:
        yield made
    finally:
        delattr(sys.modules[module_name], name)
        for module in added:
            del sys.modules[module]


def state_dict(size: str, dtype: torch.dtype = torch.float32) -> OrderedDict[str, Tensor]:
    """All keys of a released size with their shapes; the k-th tensor is k everywhere, with one
    element of storage."""
    rows = (
        line.split("\t")
        for line in (PARITY / f"state_dict_{size}.tsv").read_text().splitlines()
        if line
    )
    shapes = [(key, [int(n) for n in shape.split(",")]) for key, shape in rows]
    weights = OrderedDict(
        (key, torch.full((1,), k, dtype=dtype).expand(shape))
        for k, (key, shape) in enumerate(shapes)
    )
    weights["text_embeddings.position_ids"] = torch.arange(40)[None]  # the one buffer among them
    return weights


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    legacy: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint like Lightning 1.1.4: callbacks are keyed by classes that cannot be
    imported when it is read."""
    with fake_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as callback:
        content = {
            "epoch": 3,
            "global_step": 25000,
            "pytorch-lightning_version": "1.1.4",
            "callbacks": {
                callback: {
                    "monitor": "val/the_metric",
                    "best_model_score": torch.tensor(0.5),
                    "dirpath": "result",
                }
            },
            "optimizer_states": [
                {
                    "state": {0: {"step": 25000, "exp_avg": torch.zeros(4)}},
                    "param_groups": [{"lr": 1e-4}],
                }
            ],
            "lr_schedulers": [{"last_epoch": 25000}],
            "native_amp_scaling_state": {"scale": 65536.0},
            "state_dict": weights,
            "hparams_name": "config",
            "hyper_parameters": {
                "config": {
                    "loss_names": {"mlm": 1, "itm": 1},
                    "max_text_len": 40,
                    "vit": "vit_base_patch16_224",
                }
            },
            **(extra or {}),
        }
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
