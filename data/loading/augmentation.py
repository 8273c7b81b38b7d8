"""Chooses what turns decoded clips into pixels: DALI, or its torch twin where DALI is missing.

DALI is imported here and in data/loading/dali_*.py only, and only in processes that make pixels:
it loads slowly and may load a GPU's driver.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.samples import Pixels
from allinone.data.loading.sampling import SampleChoices

log = logging.getLogger(__name__)

DALI_PACKAGE = "nvidia-dali-cuda130"


class Augmentation(Protocol):
    """Turns the visuals of a micro-batch into pixels on the training device."""

    codecs: frozenset[str]
    """Codecs that may come as a trimmed stream; everything else must come decoded."""
    on_gpu: bool
    uses_dali: bool

    def __call__(self, media: Sequence[Pixels], choices: Sequence[SampleChoices]) -> Tensor:
        """Return float32 [B, T, 3, S, S], normalised; raises GraphError for bad streams."""
        ...


def augmentation_for(
    clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
) -> Augmentation:
    """Build the augmentation that `config.augment_backend` asks for.

    Args:
        clip: Frames per clip and image size.
        config: Normalisation, colour jitter, RandAugment, backend, and who augments: `dali`,
            `torch`, or `auto` for DALI where it is installed.
        device: Where the pixels go.
        max_batch: Most clips per call.

    Raises:
        ConfigError: The options ask for DALI, and DALI is not installed or not chosen.
    """
    if config.augment_backend != "torch":
        try:
            from allinone.data.loading.dali_pipeline import DaliPipeline
        except ImportError as error:
            if config.augment_backend == "dali":
                raise ConfigError(
                    f"--augment-backend dali needs DALI, which cannot be imported ({error});"
                    f" install {DALI_PACKAGE}, or give --augment-backend torch"
                ) from error
        else:
            return DaliPipeline(clip, config, device, max_batch)
    if config.decoder == "dali":
        raise ConfigError(
            f"--decoder dali needs DALI's pipeline; install {DALI_PACKAGE} and leave out"
            " --augment-backend torch, or give --decoder pyav"
        )
    if config.uses_randaug:
        raise ConfigError(
            f"--augment randaug needs DALI's operators; install {DALI_PACKAGE} and leave out"
            " --augment-backend torch, or give --augment none"
        )
    from allinone.data.loading.torch_pipeline import TorchPipeline

    return TorchPipeline(clip, config, device, max_batch)


def training_augmentations(
    clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
) -> list[Augmentation]:
    """Build like `eval_augmentations`, for training; warns once if DALI is missing."""
    found = _several(clip, config, device, max_batch)
    if config.augment_backend == "auto" and not found[0].uses_dali:
        _warn_about_dali()
    return found


def eval_augmentations(
    clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
) -> list[Augmentation]:
    """Build the augmentations that work in parallel in one rank, without RandAugment.

    One on a CPU; several DALI graphs on a GPU, because a single one keeps few of its video decoders
    busy. Arguments and errors are those of `augmentation_for`.
    """
    return _several(clip, replace(config, augment="none"), device, max_batch)


def _several(
    clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
) -> list[Augmentation]:
    first = augmentation_for(clip, config, device, max_batch)
    count = config.pipelines or (4 if first.on_gpu and first.uses_dali else 1)
    return [first, *(augmentation_for(clip, config, device, max_batch) for _ in range(1, count))]


@functools.cache
def _warn_about_dali() -> None:
    log.warning(
        "DALI is not installed: torch crops, resizes and normalises clips, which is slower;"
        " install %s, or give --augment-backend torch to keep this without a warning",
        DALI_PACKAGE,
    )
