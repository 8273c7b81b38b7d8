"""The torch twin of data/loading/dali_pipeline.py, for machines without DALI.

Crops, resizes, flips, jitters colours and normalises like DALI's CPU operators: within one 8-bit
level (two with colour jitter), and 0.1 of a level on average. It has no decoder.

Letters: T frames, H and W before, S side of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.frame_region import FrameRegion
from allinone.data.loading.samples import Pixels
from allinone.data.loading.sampling import SampleChoices

_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], dtype=torch.float64
)
"""DALI's fn.color_twist scales I and Q by the saturation."""
_HALF_RANGE = 128.0
"""DALI's fn.color_twist scales contrast around this grey."""


class TorchPipeline:
    """Frames + choices → pixels float32 [B, T, 3, S, S] on the training device.

    Args:
        clip: Frames per clip and image size.
        config: Normalisation, colour jitter and backend.
        device: Where the pixels go.
        max_batch: Not needed; DALI's pipeline takes the same arguments.
    """

    uses_dali = False

    def __init__(
        self, clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
    ) -> None:
        self.on_gpu = config.backend == "gpu" or (
            config.backend == "auto" and device.type == "cuda"
        )
        self.codecs: frozenset[str] = frozenset()
        """Empty: every clip must come decoded."""
        self._side = clip.image_size
        self._jitter = bool(config.color_jitter)
        self._device = device
        self._compute = (
            torch.device("cuda", device.index or 0) if self.on_gpu else torch.device("cpu")
        )
        # not the training's stream: pixels would wait behind the steps that are queued there
        self._stream = torch.cuda.Stream(self._compute) if self._compute.type == "cuda" else None
        self._mean = self._channels(config.mean)
        self._std = self._channels(config.std)

    def __call__(self, media: Sequence[Pixels], choices: Sequence[SampleChoices]) -> Tensor:
        """Augment clips.

        Args:
            media: Decoded frames uint8 [T, H, W, 3] or parts of them, one per clip; sizes may
                differ.
            choices: Crop, flip and colour of each clip.

        Returns:
            float32 [B, T, 3, S, S], normalised.
        """
        with torch.cuda.stream(self._stream):  # None: no stream
            clips = [
                self._clip(cast("NDArray[np.uint8] | FrameRegion", frames), chosen)
                for frames, chosen in zip(media, choices, strict=True)
            ]
            pixels = torch.stack(clips)
        if self._stream is not None:
            self._stream.synchronize()  # this thread waits, training does not
            pixels.record_stream(torch.cuda.default_stream(self._compute))
        return pixels.to(self._device, non_blocking=True)

    @torch.no_grad()
    def _clip(self, frames: NDArray[np.uint8] | FrameRegion, choices: SampleChoices) -> Tensor:
        if isinstance(frames, FrameRegion):
            frames = frames.complete()
        height, width = frames.shape[1:3]
        # float32 like the inputs of DALI's graph: the box decides which pixels a filter covers.
        top, left, *size = np.array(choices.box, dtype=np.float32)
        rows = resize_weights(float(top), float(top + size[0]), height, self._side)
        columns = resize_weights(float(left), float(left + size[1]), width, self._side)
        y, x = _used(rows), _used(columns)
        crop = torch.tensor(frames[:, y, x])
        if self._stream is not None:
            crop = crop.pin_memory().to(self._compute, non_blocking=True)
        crop = crop.permute(0, 3, 1, 2).float()
        # DALI's operators hand over uint8: every one of them rounds.
        pixels = _to_8_bit(rows[:, y].to(crop) @ (crop @ columns[:, x].T.to(crop)))
        if self._jitter:
            matrix, offset = color_matrix(choices)
            mixed = torch.einsum("oc,tchw->tohw", matrix.to(pixels), pixels)
            pixels = _to_8_bit(mixed + offset)
        if choices.flip:
            pixels = pixels.flip(-1)
        return (pixels - self._mean) / self._std

    def _channels(self, values: Sequence[float]) -> Tensor:
        scaled = [255 * value for value in values]
        return torch.tensor(scaled, dtype=torch.float32, device=self._compute).view(3, 1, 1)


def resize_weights(start: float, end: float, size: int, side: int) -> Tensor:
    """Build the matrix that crops and resizes along one axis as DALI's fn.resize does.

    A triangular filter whose radius is one pixel when enlarging and one output pixel when shrinking
    (antialias=True). Near the crop's edge it also covers pixels outside of the crop, and repeats
    the frame's border beyond it. torch.nn.functional.interpolate cannot do that: it has no
    fractional crops, and it drops the filter's part outside of the picture.

    Args:
        start: Start of the crop as a share of the axis.
        end: End of the crop as a share of the axis.
        size: Pixels of the axis before.
        side: Pixels of the axis after.

    Returns:
        float32 [side, size]; rows sum to 1.
    """
    scale = (end - start) * size / side
    radius = max(1.0, scale)
    center = start * size + (torch.arange(side, dtype=torch.float64) + 0.5) * scale - 0.5
    first = torch.ceil(center - radius)
    pixel = first[:, None] + torch.arange(int(2 * radius) + 2)
    weight = (1 - (pixel - center[:, None]).abs() / radius).clamp(min=0)
    weight /= weight.sum(1, keepdim=True)
    matrix = torch.zeros(side, size, dtype=torch.float64)
    # add, not assign: all pixels beyond the border are clamped to the same column
    matrix.scatter_add_(1, pixel.long().clamp(0, size - 1), weight)
    return matrix.float()


def color_matrix(choices: SampleChoices) -> tuple[Tensor, float]:
    """Return the linear colour transform [3, 3] and the offset of DALI's fn.color_twist.

    Saturation scales I and Q of YIQ, contrast scales around grey 128, brightness multiplies.
    """
    saturation = torch.tensor([1.0, choices.saturation, choices.saturation], dtype=torch.float64)
    matrix = torch.linalg.inv(_RGB_TO_YIQ) @ saturation.diag() @ _RGB_TO_YIQ
    gain = choices.brightness * choices.contrast
    offset = _HALF_RANGE * (1 - choices.contrast) * choices.brightness
    return gain * matrix.float(), offset


def _used(weights: Tensor) -> slice:
    """Return the range of pixels that the weights of an axis refer to."""
    used = weights.any(0).nonzero().flatten()
    return slice(int(used[0]), int(used[-1]) + 1)


def _to_8_bit(x: Tensor) -> Tensor:
    return x.round_().clamp_(0, 255)
