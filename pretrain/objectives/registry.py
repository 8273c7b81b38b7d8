"""Registry of the pre-training objectives. Imports no torch.

pretrain/objectives/__init__.py states how to add an objective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import Objective
from allinone.pretrain.objectives.mlm import MaskedLanguageModelling
from allinone.pretrain.objectives.vtc import VideoTextContrast
from allinone.pretrain.objectives.vtm import VideoTextMatching
from allinone.pretrain.objectives.wpa import WordPatchAlignment

if TYPE_CHECKING:
    from allinone.pretrain.objectives.config import ObjectiveConfig

OBJECTIVES: tuple[Objective, ...] = (
    MaskedLanguageModelling(),
    VideoTextMatching(),
    WordPatchAlignment(),
    VideoTextContrast(),
)
"""All objectives, in the order in which they are computed. The order determines random draws and
the rounding of sums: append new objectives, and change it only if results may change."""


def objective_of_head(head: str) -> Objective | None:
    """The objective that trains a module of AllInOneForPreTraining; None for other modules."""
    return next((objective for objective in OBJECTIVES if head in objective.heads), None)


def reads_all_tokens(config: ObjectiveConfig) -> bool:
    """Whether an active objective reads all final tokens of the VTM pass."""
    return any(objective.reads_all_tokens for objective in active_objectives(config))


def active_objectives(config: ObjectiveConfig) -> tuple[Objective, ...]:
    """The objectives with a weight above 0, in the order of computation."""
    return tuple(objective for objective in OBJECTIVES if config.weight(objective.name))
