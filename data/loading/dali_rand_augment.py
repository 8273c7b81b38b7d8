"""RandAugment with DALI's own operators, on the CPU and on a GPU.

What is applied is drawn outside of the graph (data/loading/rand_augment.py) and fed to it. All 14
operations have a CPU variant in DALI 2.4. They treat all frames of a clip alike; equalize and
auto_contrast follow each frame's own histogram, as in pytorchvideo.

Differences from pytorchvideo, whose recipe this is: the crop is augmented instead of the frame of
512 x 512, which is a fifth of the pixels, and translations are shares of the crop; posterize keeps
at least one bit (pytorchvideo gives a black clip at the largest magnitude); sharpness also filters
the outermost pixels; equalize uses OpenCV's formula, whose levels can differ by 10 of 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.auto_aug import augmentations as ops
from nvidia.dali.auto_aug.core import _Augmentation as Augmentation
from nvidia.dali.auto_aug.core import augmentation, select
from nvidia.dali.data_node import DataNode

from allinone.data.loading.rand_augment import MAX_LEVEL, OPERATIONS
from allinone.data.loading.sampling import SampleChoices

FILL = 128
"""Grey of what shear, translation and rotation uncover; pytorchvideo's 0.5."""
TRANSLATION = 0.45
"""Largest translation as a share of the image's side."""


# DALI 2.4's versions of these two call operators by deprecated names, which warns.
@augmentation(
    mag_range=(0, 0.9), randomly_negate=True, mag_to_param=ops.sharpness_kernel, param_device="auto"
)
def sharpness(data: DataNode, kernel: DataNode) -> DataNode:
    """Blend with a blurred copy, as PIL's ImageEnhance.Sharpness does."""
    return fn.filter(data, kernel)


@augmentation
def equalize(data: DataNode, _: object) -> DataNode:
    """Equalize the histogram of each channel of each frame."""
    return fn.equalize(data)


@dataclass(frozen=True)
class AugmentOperation:
    """One of DALI's augmentations with the parameters of all magnitudes."""

    augmentation: Augmentation
    table: NDArray[np.generic]
    """Row `level + 100` has the parameter of a level from -100 to 100 (rand_augment.py)."""
    arguments: Mapping[str, Any]
    """Further arguments of the operator."""

    @classmethod
    def of(cls, augmentation: Augmentation) -> AugmentOperation:
        """Compute the table. Inside the graph DALI would take seconds for it."""
        low, high = augmentation.mag_range or (0, 0)
        levels = np.arange(-MAX_LEVEL, MAX_LEVEL + 1, dtype=np.float32) / MAX_LEVEL
        if not augmentation.randomly_negate:
            levels = np.abs(levels)
        magnitudes = low + (high - low) * levels
        table = np.stack([np.asarray(augmentation.mag_to_param(m)) for m in magnitudes])
        table = table if table.dtype == np.uint8 else table.astype(np.float32)
        moves = augmentation.name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        return cls(
            augmentation,
            table,
            {"fill_value": FILL, "interp_type": types.INTERP_LINEAR} if moves else {},
        )

    def __call__(self, frames: DataNode, row: DataNode) -> DataNode:
        device = self.augmentation.param_device
        device = (frames.device or "cpu") if device == "auto" else device
        parameter = types.Constant(self.table, device=device)[row]
        return self.augmentation.op(frames, parameter, **self.arguments)


def operations(side: int) -> list[AugmentOperation]:
    """Return DALI's augmentations in the order of OPERATIONS, and identity as the last one.

    The ranges are pytorchvideo's. DALI's own RandAugment differs in two: its posterize keeps 8 to 4
    bits instead of 4 to 0, and it has identity in place of invert.

    Args:
        side: Height and width of the frames, pixels.
    """
    shift = (0, TRANSLATION * side)
    known = {
        "brightness": ops.brightness,
        "contrast": ops.contrast,
        "color": ops.color,
        "sharpness": sharpness,
        "auto_contrast": ops.auto_contrast,
        "equalize": equalize,
        "invert": ops.invert,
        "rotate": ops.rotate.augmentation((0, 30), True),
        "posterize": ops.posterize.augmentation((4, 0), False, ops.poster_mask_uint8),
        "solarize": ops.solarize.augmentation((256, 0)),
        "shear_x": ops.shear_x.augmentation((0, 0.3), True),
        "shear_y": ops.shear_y.augmentation((0, 0.3), True),
        "translate_x": ops.translate_x_no_shape.augmentation(shift, True),
        "translate_y": ops.translate_y_no_shape.augmentation(shift, True),
    }
    return [AugmentOperation.of(known[name]) for name in OPERATIONS] + [
        AugmentOperation.of(ops.identity)
    ]


def rand_augment(frames: DataNode, chosen: Sequence[AugmentOperation], layers: int) -> DataNode:
    """Apply each clip's operations, inside a graph with conditionals.

    Args:
        frames: uint8 [T, side, side, 3] per clip.
        chosen: `operations(side)`, made outside of the graph.
        layers: Most operations per clip.
    """
    numbers = fn.external_source(name="operation", dtype=types.INT32, ndim=1)
    rows = fn.external_source(name="level", dtype=types.INT32, ndim=1)
    for layer in range(layers):
        frames = select(chosen, numbers[layer], frames, rows[layer])
    return frames


def operation_inputs(choices: Sequence[SampleChoices], layers: int) -> dict[str, list[np.ndarray]]:
    """Return the inputs of `rand_augment` by name; clips with fewer operations end in identity."""
    inputs: dict[str, list[np.ndarray]] = {"operation": [], "level": []}
    for one in choices:
        numbers = np.full(layers, len(OPERATIONS), dtype=np.int32)
        rows = np.full(layers, MAX_LEVEL, dtype=np.int32)
        for layer, (name, level) in enumerate(one.operations):
            numbers[layer] = OPERATIONS.index(name)
            rows[layer] = MAX_LEVEL + level
        inputs["operation"].append(numbers)
        inputs["level"].append(rows)
    return inputs
