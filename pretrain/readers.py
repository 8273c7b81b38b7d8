"""How many reader processes a rank needs (`--workers auto`)."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace

import torch

from allinone.engine import ds_config
from allinone.engine.distributed import launch
from allinone.engine.planning.peak_flops import peak_rate
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import training_cost

log = logging.getLogger(__name__)

READER_CLIPS_PER_S = 50
"""Clips that one reader decodes per second: 3 frames of video prepared with --short-side 256 --gop
25, rounded down (docs/speed.md)."""
PLANNED_MFU = 0.5
"""Utilisation that readers must be able to feed: the planner's figure of compiled base on an A100
(docs/performance.md)."""
LEAST = 2


def readers_needed(clips_per_s: float, cores: int) -> int:
    """Reader processes of one rank.

    Args:
        clips_per_s: What the rank trains on; NaN if unknown.
        cores: CPU cores of the rank. One is left to the training process.
    """
    usable = max(LEAST, cores - 1)
    if math.isnan(clips_per_s):
        return usable
    return min(usable, max(LEAST, math.ceil(clips_per_s / READER_CLIPS_PER_S)))


def with_readers(config: PretrainConfig) -> PretrainConfig:
    """The configuration with a number in place of `--workers auto`."""
    train = config.train
    if config.loader.workers != "auto" or train.device == "cpu" or not torch.cuda.is_available():
        return config
    info = launch.find_rank_info(os.environ)
    gpu = torch.device("cuda", launch.gpu_of_rank(info.local_rank, torch.cuda.device_count()))
    rate, _ = peak_rate(gpu, ds_config.precision(ds_config.load(train.ds_config)))
    # a tensor-parallel group divides the work on the clips that each of its ranks reads
    clips_per_s = (
        PLANNED_MFU * rate * train.tensor_parallel / training_cost(config, info.world).total
    )
    cores = len(os.sched_getaffinity(0)) // launch.ranks_of_host(os.environ, info.world)
    readers = readers_needed(clips_per_s, cores)
    log.info(
        "readers: %d per rank for %.0f clips/s (MFU %g), %d cores per rank",
        readers,
        clips_per_s,
        PLANNED_MFU,
        cores,
    )
    return replace(config, loader=replace(config.loader, workers=readers))
