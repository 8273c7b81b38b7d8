"""Values out of range are refused with the name of the option, before anything is loaded."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from allinone.common.errors import DataError
from allinone.data.config import DataConfig
from allinone.data.prepare.pipeline import PrepareOptions
from allinone.engine.config import TrainConfig
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.pretrain.config import CoTrainOptions, PretrainConfig

HERE = Path()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (DataConfig, {"workers": -1}, "--workers must be at least 0, got -1"),
        (DataConfig, {"prefetch": 0}, "--prefetch must be at least 1, got 0"),
        (DataConfig, {"dali_threads": 0}, "--dali-threads must be at least 1, got 0"),
        (DataConfig, {"shuffle_window": -5}, "--shuffle-window must be at least 0, got -5"),
        (DataConfig, {"clip_timeout_s": 0.0}, "--clip-timeout-s must be above 0, got 0.0"),
        (DataConfig, {"clip_timeout_s": math.inf}, "--clip-timeout-s must be above 0, got inf"),
        (DataConfig, {"mask_prob": 1.0}, "--mask-prob must be at least 0 and below 1, got 1.0"),
        (
            DataConfig,
            {"max_bad_share": 2.0},
            "--max-bad-share must be at least 0 and at most 1, got 2.0",
        ),
        (
            DataConfig,
            {"crop_scale": (0.0, 1.0)},
            "--crop-scale must be above 0 and at most 1, got 0.0",
        ),
        (
            DataConfig,
            {"crop_ratio": (2.0, 1.0)},
            "--crop-ratio is a range from low to high, got 2.0 1.0",
        ),
        (DataConfig, {"std": (1.0, 0.0, 1.0)}, "--std must be above 0, got 0.0"),
        (TrainConfig, {"steps": 0}, "--steps must be at least 1, got 0"),
        (TrainConfig, {"lr": math.nan}, "--lr must be at least 0, got nan"),
        (TrainConfig, {"beta2": 1.0}, "--beta2 must be at least 0 and below 1, got 1.0"),
        (TrainConfig, {"seed": -1}, "--seed must be at least 0, got -1"),
        (TrainConfig, {"keep_every": -3}, "--keep-every must be at least 0, got -3"),
        (TrainConfig, {"hang_timeout_s": 0.0}, "--hang-timeout-s must be above 0, got 0.0"),
        (TuneConfig, {"micro_batch": 0}, "--micro-batch must be at least 1, got 0"),
        (
            PretrainConfig,
            {"out": HERE, "data": (), "val_items": -3},
            "--val-items must be at least 0, got -3",
        ),
        (CoTrainOptions, {"image_workers": -1}, "--image-workers must be at least 0, got -1"),
        (FinetuneConfig, {"views": 0}, "--views must be at least 1, got 0"),
        (FinetuneConfig, {"epochs": 0.0}, "--epochs must be above 0, got 0.0"),
        (FinetuneConfig, {"patience": -1}, "--patience must be at least 0, got -1"),
    ],
)
def test_values_out_of_range_name_the_option(
    kind: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"min_frames": 0}, "--min-frames must be at least 1, got 0"),
        ({"shard_clips": -1}, "--shard-clips must be at least 1, got -1"),
        ({"short_side": 8}, "--short-side must be at least 16, got 8"),
        ({"timeout_s": -1.0}, "--timeout-s must be above 0, got -1.0"),
    ],
)
def test_prepare_options_out_of_range_name_the_option(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        PrepareOptions(tmp_path, tmp_path / "out", format="webvid", **given).resolved()
