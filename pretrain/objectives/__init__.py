"""The pre-training objectives: MLM, VTM, VTC and word-patch alignment.

How to add an objective:

1. Write a subclass of `Objective` (base.py) in a module of this folder. It states its name, title
   and heads, and computes its loss, its evaluation metrics, its FLOPs and its activation bytes.
2. Add an instance to `OBJECTIVES` (registry.py). The order is the order of computation.
3. Add a field with the objective's name to `ObjectiveConfig` (config.py): its weight, which is also
   the command-line option.

Training, evaluation, planner and reports iterate over the registry. The modules of the objectives
do not import torch, so that --help, the planner's options and reports can read the registry without
it; the methods that compute tensors import what they need.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "Draws",
    "Objective",
    "ObjectiveConfig",
    "PretrainObjective",
    "draw_matching_pairs",
]

_HOME = {
    "Draws": "allinone.pretrain.objectives.draws",
    "Objective": "allinone.pretrain.objectives.base",
    "ObjectiveConfig": "allinone.pretrain.objectives.config",
    "PretrainObjective": "allinone.pretrain.objectives.combined",
    "draw_matching_pairs": "allinone.pretrain.objectives.matching_pairs",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ObjectiveConfig can be read without torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
