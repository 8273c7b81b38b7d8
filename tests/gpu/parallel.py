"""Stage (d), several ranks: data and tensor parallelism over all GPUs, one rank each."""

from __future__ import annotations

import os
from functools import partial

from tests.gpu.speed import case
from tests.gpu.stage import CheckFn, Found, Settings, Skip


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    return {
        "ZeRO 1": partial(case, settings),
        "ZeRO 3": partial(case, settings, ds_config="zero3_bf16"),
        "tensor parallel 2": partial(tensor_parallel, settings),
    }


def tensor_parallel(settings: Settings) -> Found:
    """Pairs of ranks share a model."""
    from allinone.engine.distributed import launch

    world = launch.find_rank_info(os.environ).world
    if world % 2:
        raise Skip(f"{world} ranks cannot form pairs")
    return case(settings, tensor_parallel=2)
