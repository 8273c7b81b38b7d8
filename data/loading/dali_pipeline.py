"""The DALI graph: decode (or take decoded frames), crop, resize, flip, colour, normalise. It holds
no state and draws nothing: every choice is an input.

Letters: B clips of a micro-batch, T frames, H and W before, S the side of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from allinone.common.errors import GraphError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import CPU_CODECS, GPU_CODECS
from allinone.data.decoding.gop_trim import Trimmed
from allinone.data.loading.sampling import SampleChoices

Media = NDArray[np.uint8] | Trimmed
"""Decoded frames [T, H, W, 3], or a trimmed stream that DALI decodes."""


def build_pipeline(
    clip: ClipConfig,
    config: DataConfig,
    *,
    max_batch: int,
    device_id: int | None,
    encoded: bool = False,
    on_gpu: bool | None = None,
) -> Pipeline:
    """The graph for one rank. `encoded`: it is fed streams and decodes them (NVDEC with a GPU),
    else decoded frames. device_id None runs it on the CPU; with a GPU, what is fed is uploaded and
    every operator runs there. `on_gpu` overrides where the operators are placed: the GPU graph can
    then be serialized, though not run, on a machine without one."""
    on_gpu = device_id is not None if on_gpu is None else on_gpu
    pipeline = Pipeline(
        batch_size=max_batch,
        num_threads=config.dali_threads,
        device_id=device_id,
        exec_dynamic=True,
        prefetch_queue_depth=1,
        seed=0,
    )
    with pipeline:
        start, end = (
            fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("start", "end")
        )
        flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
        colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
        if encoded:
            content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
            numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
            # a frame beyond the end would be black by default
            frames = fn.decoders.video(
                content, frames=numbers, pad_mode="none", device="mixed" if on_gpu else "cpu"
            )
        else:
            # on the CPU the frames, megabytes, are read where they lie: whoever feeds them holds
            # them until run() returns
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
        # an input that no operator reads would be refused when it is fed
        pipeline.set_outputs(pixels, colour)
    return pipeline


def graph_inputs(
    media: Sequence[Media], choices: Sequence[SampleChoices]
) -> dict[str, list[np.ndarray]]:
    """What the graph is fed for samples of one kind, by input name."""
    boxes = [np.array(c.box, dtype=np.float32) for c in choices]
    inputs: dict[str, list[np.ndarray]] = {
        "start": [box[:2] for box in boxes],
        "end": [box[:2] + box[2:] for box in boxes],
        "flip": [np.array(int(c.flip), dtype=np.int32) for c in choices],
        "colour": [
            np.array([c.brightness, c.contrast, c.saturation], dtype=np.float32) for c in choices
        ],
    }
    streams = [item for item in media if isinstance(item, Trimmed)]
    if not streams:
        inputs["frames"] = [np.asarray(item) for item in media]
    else:
        inputs["content"] = [np.frombuffer(item.content, np.uint8) for item in streams]
        inputs["numbers"] = [np.array(item.frames, dtype=np.int32) for item in streams]
    return inputs


def augments_for(
    clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
) -> list[DaliPipeline]:
    """One graph on a CPU; several on a GPU, since one pipeline alone keeps few of its video
    decoders busy."""
    first = DaliPipeline(clip, config, device, max_batch)
    return [
        first,
        *(
            DaliPipeline(clip, config, device, max_batch)
            for _ in range(1, config.pipelines or (4 if first.on_gpu else 1))
        ),
    ]


DEVICE_FAULTS = (
    "out of memory",
    "OUT_OF_MEMORY",
    "bad_alloc",
    "libnvcuvid",
    "illegal memory access",
    "unspecified launch failure",
    "ECC_UNCORRECTABLE",
)
"""In the messages of errors that say nothing about a sample. libnvcuvid is missing in containers
without the driver capability `video`."""


def _codecs_of_gpu(device: int) -> frozenset[str]:
    """What NVDEC of this card decodes. AV1: GA10x and Ada and what follows Hopper, not GA100 (8.0)
    and Hopper (9.0) (NVIDIA's NVDEC application note)."""
    if not torch.cuda.is_available():  # a graph that is built to be looked at
        return GPU_CODECS
    capability = torch.cuda.get_device_capability(device)
    return GPU_CODECS | {"av1"} if capability >= (8, 6) and capability[0] != 9 else GPU_CODECS


def _of_the_device(error: RuntimeError) -> bool:
    """Whether memory or the device failed, and no sample: training is to start again, not to go on
    with other clips."""
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or any(
        text in str(error) for text in DEVICE_FAULTS
    )


class DaliPipeline:
    """Media + choices → pixels float32 [B, T, 3, S, S] on the training device."""

    def __init__(
        self, clip: ClipConfig, config: DataConfig, device: torch.device, max_batch: int
    ) -> None:
        self.on_gpu = on_gpu = config.backend == "gpu" or (
            config.backend == "auto" and device.type == "cuda"
        )
        self._clip, self._config, self._device, self._max_batch = clip, config, device, max_batch
        self._device_id = (device.index or 0) if on_gpu else None
        self._pipelines: dict[bool, Pipeline] = {}
        self._stream: torch.cuda.Stream | None = None
        self.codecs: frozenset[str] = frozenset()
        """What may come as a trimmed stream; the rest must come decoded."""
        if config.decoder == "dali" or (config.decoder == "auto" and on_gpu):
            self.codecs = (
                _codecs_of_gpu(self._device_id) if self._device_id is not None else CPU_CODECS
            )

    def __call__(self, media: Sequence[Media], choices: Sequence[SampleChoices]) -> Tensor:
        """Raises GraphError that names the samples at fault; the next call works."""
        groups = [
            [i for i, item in enumerate(media) if isinstance(item, Trimmed) is encoded]
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
        except (
            RuntimeError
        ) as error:  # one bad sample fails its whole batch, and the message does not name it
            if _of_the_device(error):
                raise
            bad = self._failing(media, choices)
            if bad:
                raise GraphError(bad) from error
            parts = run()  # what failed may have passed
        if len(parts) == 1:
            return parts[0]
        place = torch.tensor(groups[0] + groups[1]).argsort()
        return torch.cat(parts).index_select(0, place.to(self._device))

    def _failing(self, media: Sequence[Media], choices: Sequence[SampleChoices]) -> dict[int, str]:
        bad = {}
        for i in range(len(media)):
            try:
                self._run([media[i]], [choices[i]])
            except RuntimeError as error:
                if _of_the_device(error):
                    raise
                bad[i] = str(error).strip().splitlines()[-1]
        return bad

    def _run(self, media: Sequence[Media], choices: Sequence[SampleChoices]) -> Tensor:
        encoded = isinstance(media[0], Trimmed)
        if encoded not in self._pipelines:
            self._pipelines[encoded] = build_pipeline(
                self._clip,
                self._config,
                max_batch=self._max_batch,
                device_id=self._device_id,
                encoded=encoded,
            )
            self._pipelines[encoded].build()
        inputs = graph_inputs(media, choices)
        for name, values in inputs.items():
            self._pipelines[encoded].feed_input(name, values)
        pixels, _ = self._pipelines[encoded].run()
        return self._copied(pixels.as_tensor())

    def _copied(self, pixels: object) -> Tensor:
        """DALI's buffer is taken for another batch as soon as it is let go, whatever still waits to
        read it: the copy has ended when this returns. It has a stream of its own, or it would wait
        behind the training steps that are queued, and this thread with it.
        """
        if not self.on_gpu:
            return torch.from_dlpack(pixels).clone().to(self._device, non_blocking=True)
        self._stream = self._stream or torch.cuda.Stream(self._device_id)
        with torch.cuda.stream(self._stream):
            copy = torch.from_dlpack(pixels).clone()
            self._stream.synchronize()
        copy.record_stream(
            torch.cuda.default_stream(self._device_id)
        )  # its memory is not to be reused while training reads it
        return copy.to(self._device, non_blocking=True)
