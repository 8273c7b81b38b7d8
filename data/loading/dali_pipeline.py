"""The DALI graph: decode (or take decoded frames), crop and resize, RandAugment, colour, flip,
normalise.

It holds no state and draws no random numbers: every choice is an input.

Letters: B clips of a micro-batch, T frames, H and W before, S side of the crop.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from allinone.common.errors import GraphError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import CPU_CODECS, GPU_CODECS
from allinone.data.decoding.gop_trim import TrimmedStream
from allinone.data.loading.dali_rand_augment import (
    AugmentOperation,
    operation_inputs,
    operations,
    rand_augment,
)
from allinone.data.loading.frame_region import FrameRegion
from allinone.data.loading.samples import Pixels
from allinone.data.loading.sampling import SampleChoices

DEVICE_FAULTS = (
    "out of memory",
    "OUT_OF_MEMORY",
    "bad_alloc",
    "libnvcuvid",
    "illegal memory access",
    "unspecified launch failure",
    "ECC_UNCORRECTABLE",
)
"""Parts of error messages that blame no sample. libnvcuvid is missing in containers without the
driver capability `video`."""

_BUILD = threading.Lock()


def build_pipeline(
    clip: ClipConfig,
    config: DataConfig,
    *,
    max_batch: int,
    device_id: int | None,
    encoded: bool = False,
    on_gpu: bool | None = None,
) -> Pipeline:
    """Build the graph for one rank.

    Args:
        clip: Image size.
        config: Normalisation, colour jitter, RandAugment and host threads.
        max_batch: Most clips per run.
        device_id: GPU that runs it; None runs it on the CPU.
        encoded: Feed streams and decode them (NVDEC on a GPU) instead of decoded frames.
        on_gpu: Overrides where operators are placed. The GPU graph can then be serialized, though
            not run, on a machine without a GPU.
    """
    on_gpu = device_id is not None if on_gpu is None else on_gpu
    # RandAugment splits the batch by operation, which only DALI's conditionals can do
    graph = pipeline_def(_graph, enable_conditionals=config.uses_randaug)
    return graph(
        clip,
        config,
        encoded,
        on_gpu,
        operations(clip.image_size) if config.uses_randaug else [],
        batch_size=max_batch,
        num_threads=config.dali_threads,
        device_id=device_id,
        exec_dynamic=True,
        # each call feeds one batch and runs once, so there is nothing to run ahead
        prefetch_queue_depth=1,
        # unused: every random choice is an input
        seed=0,
    )


def _graph(
    clip: ClipConfig,
    config: DataConfig,
    encoded: bool,
    on_gpu: bool,
    augmentations: Sequence[AugmentOperation],
) -> tuple[DataNode, DataNode]:
    """Define the graph; arguments are those of `build_pipeline`, and RandAugment's operations."""
    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
    if encoded:
        content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        # By default DALI returns a black frame beyond the end instead of an error.
        frames = fn.decoders.video(
            content, frames=numbers, pad_mode="none", device="mixed" if on_gpu else "cpu"
        )
    else:
        # On the CPU the frames (megabytes) are not copied: the caller must keep them alive until
        # run() returns.
        frames = fn.external_source(
            name="frames", layout="FHWC", dtype=types.UINT8, ndim=4, no_copy=not on_gpu
        )
        if on_gpu:
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
    if config.uses_randaug:
        frames = rand_augment(frames, augmentations, config.randaug_layers)
    if config.color_jitter:
        frames = fn.color_twist(
            frames, brightness=colour[0], contrast=colour[1], saturation=colour[2]
        )
    pixels = fn.crop_mirror_normalize(
        frames,
        mirror=flip,
        mean=[255 * value for value in config.mean],
        std=[255 * value for value in config.std],
        dtype=types.FLOAT,
        output_layout="FCHW",
    )
    # DALI refuses to be fed an input that no operator and no output reads, so `colour` is also an
    # output.
    return pixels, colour


def graph_inputs(
    media: Sequence[Pixels], choices: Sequence[SampleChoices], config: DataConfig
) -> dict[str, list[np.ndarray]]:
    """Return the graph's inputs by name, for clips that are all decoded or all streams.

    Args:
        media: The visuals.
        choices: Crop, flip, colour and operations of each visual.
        config: What the graph was built with.
    """
    boxes = [np.array(c.box, dtype=np.float32) for c in choices]
    inputs: dict[str, list[np.ndarray]] = {
        "start": [box[:2] for box in boxes],
        "end": [box[:2] + box[2:] for box in boxes],
        "flip": [np.array(int(c.flip), dtype=np.int32) for c in choices],
        "colour": [
            np.array([c.brightness, c.contrast, c.saturation], dtype=np.float32) for c in choices
        ],
    }
    if config.uses_randaug:
        inputs |= operation_inputs(choices, config.randaug_layers)
    streams = [item for item in media if isinstance(item, TrimmedStream)]
    if not streams:
        inputs["frames"] = [
            item.complete() if isinstance(item, FrameRegion) else np.asarray(item) for item in media
        ]
    else:
        inputs["content"] = [np.frombuffer(item.content, np.uint8) for item in streams]
        inputs["numbers"] = [np.array(item.frames, dtype=np.int32) for item in streams]
    return inputs


def _codecs_of_gpu(device: int) -> frozenset[str]:
    """Return the codecs that this card's NVDEC decodes (NVIDIA's NVDEC application note).

    AV1 needs GA10x, Ada, or anything after Hopper; GA100 (8.0) and Hopper (9.0) lack it.
    """
    if not torch.cuda.is_available():  # the graph is only serialized
        return GPU_CODECS
    capability = torch.cuda.get_device_capability(device)
    return GPU_CODECS | {"av1"} if capability >= (8, 6) and capability[0] != 9 else GPU_CODECS


def _of_the_device(error: RuntimeError) -> bool:
    """Return whether memory or the device failed rather than a sample.

    Training must then stop and restart instead of replacing clips.
    """
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or any(
        text in str(error) for text in DEVICE_FAULTS
    )


class DaliPipeline:
    """Visuals + choices → pixels float32 [B, T, 3, S, S] on the training device.

    Args:
        clip: Frames per clip and image size.
        config: Backend, decoder, normalisation, colour jitter and RandAugment.
        device: Where the pixels go.
        max_batch: Most clips per call.
    """

    uses_dali = True

    def __init__(
        self, clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
    ) -> None:
        self.on_gpu = on_gpu = config.backend == "gpu" or (
            config.backend == "auto" and device.type == "cuda"
        )
        self._clip = clip
        self._config = config
        self._device = device
        self._max_batch = max_batch
        self._device_id = (device.index or 0) if on_gpu else None
        self._pipelines: dict[bool, Pipeline] = {}
        self._stream: torch.cuda.Stream | None = None
        self.codecs: frozenset[str] = frozenset()
        """Codecs that may come as a trimmed stream; everything else must come decoded."""
        if config.decoder == "dali" or (config.decoder == "auto" and on_gpu):
            self.codecs = (
                _codecs_of_gpu(self._device_id) if self._device_id is not None else CPU_CODECS
            )

    def __call__(self, media: Sequence[Pixels], choices: Sequence[SampleChoices]) -> Tensor:
        """Run the graph.

        Args:
            media: Decoded frames uint8 [T, H, W, 3], parts of them, or trimmed streams, in any
                mix.
            choices: Crop, flip, colour and RandAugment's operations of each clip.

        Returns:
            float32 [B, T, 3, S, S], normalised.

        Raises:
            GraphError: Names the clips that DALI cannot process; the next call works.
        """
        # One graph takes decoded frames, another one streams: clips are grouped and put back in
        # order afterwards.
        groups = [
            [i for i, item in enumerate(media) if isinstance(item, TrimmedStream) is encoded]
            for encoded in (False, True)
        ]

        def run() -> list[Tensor]:
            return [
                self._run([media[i] for i in group], [choices[i] for i in group])
                for group in groups
                if group
            ]

        try:
            parts = run()
        except RuntimeError as error:
            # One bad clip fails its complete batch, and the message does not name it.
            if _of_the_device(error):
                raise
            bad = self._failing(media, choices)
            if bad:
                raise GraphError(bad) from error
            parts = run()  # every clip works alone: the failure was transient
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor(groups[0] + groups[1]).argsort()
        return torch.cat(parts).index_select(0, order.to(self._device))

    def _failing(self, media: Sequence[Pixels], choices: Sequence[SampleChoices]) -> dict[int, str]:
        bad = {}
        for i in range(len(media)):
            try:
                self._run([media[i]], [choices[i]])
            except RuntimeError as error:
                if _of_the_device(error):
                    raise
                bad[i] = str(error).strip().splitlines()[-1]
        return bad

    def _run(self, media: Sequence[Pixels], choices: Sequence[SampleChoices]) -> Tensor:
        encoded = isinstance(media[0], TrimmedStream)
        if encoded not in self._pipelines:
            # Several threads build graphs; DALI does not promise that rewriting a graph's
            # conditionals is thread-safe.
            with _BUILD:
                self._pipelines[encoded] = build_pipeline(
                    self._clip,
                    self._config,
                    max_batch=self._max_batch,
                    device_id=self._device_id,
                    encoded=encoded,
                )
                self._pipelines[encoded].build()
        inputs = graph_inputs(media, choices, self._config)
        for name, values in inputs.items():
            self._pipelines[encoded].feed_input(name, values)
        pixels, _ = self._pipelines[encoded].run()
        return self._copied(pixels.as_tensor())

    def _copied(self, pixels: object) -> Tensor:
        """Copy DALI's output buffer.

        DALI reuses the buffer as soon as it is released, even if a queued copy has not read it yet:
        the copy must have finished when this returns. It runs on a CUDA stream of its own,
        otherwise it (and this thread) would wait behind the training steps that are queued.
        """
        if not self.on_gpu:
            return torch.from_dlpack(pixels).clone().to(self._device, non_blocking=True)
        self._stream = self._stream or torch.cuda.Stream(self._device_id)
        with torch.cuda.stream(self._stream):
            copy = torch.from_dlpack(pixels).clone()
            self._stream.synchronize()
        # The caching allocator must not reuse this memory while the training stream reads it.
        copy.record_stream(torch.cuda.default_stream(self._device_id))
        return copy.to(self._device, non_blocking=True)
