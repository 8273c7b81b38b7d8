"""The demo: nano on the 1,638 training clips of the embedded data set.

    make demo

or, step by step:

    python tools/prepare.py data/demo --out runs/demo/data
    python pretrain/train.py demo

Hardware: two CPU cores, 2 GiB.
Time and expected result: see README.md.
"""

from __future__ import annotations

from pathlib import Path

from allinone.data.config import DataConfig
from allinone.engine.config import TrainConfig
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.objectives import ObjectiveConfig

RECIPE = PretrainConfig(
    out=Path("runs/demo/train"),
    data=("runs/demo/data:train",),
    val=("runs/demo/data:val",),
    model=ModelOptions(size="nano", dropout=0.0, drop_path=0.0),
    objective=ObjectiveConfig(mlm=1.0, vtm=1.0, vtc=1.0),
    loader=DataConfig(workers=1, dali_threads=1, crop_scale=(0.8, 1.0)),
    train=TrainConfig(
        steps=650,
        global_batch=32,
        micro_batch=32,
        lr=2e-3,
        warmup=0.1,
        ds_config="zero1_fp32",
        log_every=25,
        save_every=325,
        eval_every=100,
        eval_at_start=True,
        keep_last=2,
    ),
)
