"""The unified transformer and its heads; imports nothing of this project but `allinone.common`."""

import transformers
from transformers import AutoConfig, AutoModelForPreTraining

from .all_in_one import AllInOneForPreTraining, AllInOneModel, AllInOneOutput
from .config import SIZES, AllInOneConfig
from .flops import parameters_by_part
from .task_models import (
    AUTO_CLASSES,
    AllInOneForCaptioning,
    AllInOneForMaskedLM,
    AllInOneForMultipleChoice,
    AllInOneForQuestionAnswering,
    AllInOneForRetrieval,
    AllInOneForVideoClassification,
)

AutoConfig.register(AllInOneConfig.model_type, AllInOneConfig, exist_ok=True)
AutoModelForPreTraining.register(AllInOneConfig, AllInOneForPreTraining, exist_ok=True)
for _name, _model in AUTO_CLASSES.items():
    getattr(transformers, _name).register(AllInOneConfig, _model, exist_ok=True)

__all__ = [
    "SIZES",
    "AllInOneConfig",
    "AllInOneForCaptioning",
    "AllInOneForMaskedLM",
    "AllInOneForMultipleChoice",
    "AllInOneForPreTraining",
    "AllInOneForQuestionAnswering",
    "AllInOneForRetrieval",
    "AllInOneForVideoClassification",
    "AllInOneModel",
    "AllInOneOutput",
    "parameters_by_part",
]
