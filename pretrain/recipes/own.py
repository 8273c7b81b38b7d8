"""Your own clips: tiny at 224 px, with as many steps as clips and device allow.

    allinone prepare my.csv --out prepared/mine --val-share 0.1
    allinone train own --data prepared/mine --out runs/mine

Texts have 40 tokens, or more if over 1 % of the captions need them. It is evaluated on the split
val, and the best weights are kept. --init-from weights/vit-tiny starts from ImageNet weights.

Hardware: two CPU cores for some hundred clips, a GPU for more.
Time: the plan in the log says it; on two cores about a second per clip and pass.
Expected result: not measured; it depends on the clips. The log shows chance next to every score.
"""

from __future__ import annotations

from pathlib import Path

from allinone.data.config import DataConfig
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.objectives import ObjectiveConfig
from allinone.pretrain.own_data import OwnTrainConfig

RECIPE = PretrainConfig(
    out=Path(),
    data=(),
    keep_best=True,
    model=ModelOptions(size="tiny", image_size=224),
    objective=ObjectiveConfig(mlm=1.0, vtm=1.0, vtc=1.0),
    loader=DataConfig(workers=2, dali_threads=1, crop_scale=(0.5, 1.0), max_bad_share=0.05),
    train=OwnTrainConfig(lr=3e-4, warmup=0.1),
)
