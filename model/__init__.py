"""The unified transformer and its heads; imports nothing of this project but `allinone.common`."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .all_in_one import AllInOneForPreTraining, AllInOneModel, AllInOneOutput
from .config import SIZES, AllInOneConfig
from .flops import parameters_by_part

AutoConfig.register(AllInOneConfig.model_type, AllInOneConfig, exist_ok=True)
AutoModel.register(AllInOneConfig, AllInOneModel, exist_ok=True)
AutoModelForPreTraining.register(AllInOneConfig, AllInOneForPreTraining, exist_ok=True)

__all__ = [
    "SIZES",
    "AllInOneConfig",
    "AllInOneForPreTraining",
    "AllInOneModel",
    "AllInOneOutput",
    "parameters_by_part",
]
