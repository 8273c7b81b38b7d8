"""What RandAugment does to a clip, drawn outside of DALI's graph (Cubuk et al. 2020).

The recipe of pytorchvideo's RandAugment, which the original's v100 back end uses with its defaults:
n = 2 of 14 operations without repetition, each applied with probability 0.5 at a magnitude from
N(9, 0.5) on a scale of 10, with a random sign where the operation has one.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from allinone.data.config import DataConfig

OPERATIONS = (
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""Names in DALI's words. Their order is part of the random choices."""
SIGNED = frozenset(
    {
        "brightness",
        "contrast",
        "color",
        "sharpness",
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    }
)
"""Operations that work in two directions."""
MAX_LEVEL = 100
"""Magnitudes are levels, tenths of the original's scale of 10: DALI finds them in a table."""
_PROBABILITY = 0.5
_SPREAD = 0.5

Operation = tuple[str, int]
"""Name and signed level, -100 to 100."""


def draw_operations(config: DataConfig, random: np.random.Generator) -> tuple[Operation, ...]:
    """Draw what RandAugment applies to one clip.

    Args:
        config: n and m of RandAugment.
        random: The sample's generator. Its state does not change: the draws come from a stream
            2**128 blocks ahead of it (streams of two rows are 2**192 apart), so that no other
            choice depends on RandAugment.

    Returns:
        Up to n operations in the order in which they are applied.
    """
    ahead = np.random.Generator(cast("np.random.Philox", random.bit_generator).jumped())
    layers = config.randaug_layers
    order = ahead.random(len(OPERATIONS)).argsort(kind="stable")[:layers]
    applied = ahead.random(layers) < _PROBABILITY
    negative = ahead.random(layers) < 0.5
    magnitudes = ahead.normal(config.randaug_magnitude, _SPREAD, layers).clip(0, 10)
    levels = np.rint(magnitudes * MAX_LEVEL / 10).astype(int)
    return tuple(
        (OPERATIONS[k], -int(level) if minus and OPERATIONS[k] in SIGNED else int(level))
        for k, used, minus, level in zip(order, applied, negative, levels, strict=True)
        if used
    )
