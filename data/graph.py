"""The augmentation graph in DALI: crop, resize, flip, colour, normalise. It holds no state and draws nothing: every choice is an input.

Letters: B clips of a micro-batch, T frames, H and W before, S the side of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from data.choices import SampleChoices
from data.config import ClipConfig, DataConfig

INPUTS = ("frames", "start", "end", "flip", "colour")


def build_pipeline(clip: ClipConfig, config: DataConfig, *, max_batch: int, device_id: int | None) -> Pipeline:
    """The graph for one rank, fed by name (INPUTS). device_id None runs it on the CPU; with a GPU, frames are uploaded and every "
    "operator runs there."""
    pipeline = Pipeline(
        batch_size=max_batch,
        num_threads=config.dali_threads,
        device_id=device_id,
        exec_dynamic=True,
        prefetch_queue_depth=1,
        seed=0,
    )
    with pipeline:
        frames = fn.external_source(name="frames", layout="FHWC", dtype=types.UINT8, ndim=4)
        start, end = (fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("start", "end"))
        flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
        colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
        if device_id is not None:
            frames = frames.gpu()
        frames = fn.resize(
            frames,
            size=[clip.image_size, clip.image_size],
            roi_start=start,
            roi_end=end,
            roi_relative=True,
            antialias=True,
            interp_type=types.INTERP_LINEAR,
        )
        if config.color_jitter:
            frames = fn.color_twist(frames, brightness=colour[0], contrast=colour[1], saturation=colour[2])
        pixels = fn.crop_mirror_normalize(
            frames,
            mirror=flip,
            mean=[255 * value for value in config.mean],
            std=[255 * value for value in config.std],
            dtype=types.FLOAT,
            output_layout="FCHW",
        )
        # an input that no operator reads would be refused when it is fed
        pipeline.set_outputs(pixels, colour)
    return pipeline


def graph_inputs(frames: Sequence[NDArray[np.uint8]], choices: Sequence[SampleChoices]) -> tuple[list[np.ndarray], ...]:
    """What the graph is fed for one micro-batch: frames [T, H, W, 3] each, and the choices as arrays."""
    boxes = [np.array(c.box, dtype=np.float32) for c in choices]
    return (
        list(frames),
        [box[:2] for box in boxes],
        [box[:2] + box[2:] for box in boxes],
        [np.array(int(c.flip), dtype=np.int32) for c in choices],
        [np.array([c.brightness, c.contrast, c.saturation], dtype=np.float32) for c in choices],
    )


class Augment:
    """Frames + choices → pixels float32 [B, T, 3, S, S] on the training device."""

    def __init__(self, clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int) -> None:
        on_gpu = config.backend == "gpu" or (config.backend == "auto" and device.type == "cuda")
        self._device = device
        self._pipeline = build_pipeline(clip, config, max_batch=max_batch, device_id=(device.index or 0) if on_gpu else None)
        self._pipeline.build()

    def __call__(self, frames: Sequence[NDArray[np.uint8]], choices: Sequence[SampleChoices]) -> Tensor:
        for name, values in zip(INPUTS, graph_inputs(frames, choices), strict=True):
            self._pipeline.feed_input(name, values)
        pixels, _ = self._pipeline.run()
        return torch.from_dlpack(pixels.as_tensor()).clone().to(self._device, non_blocking=True)  # DALI reuses its buffer
