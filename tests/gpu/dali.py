"""Stage (e): DALI's decoder against PyAV, its speed, and the loader that feeds a training step.

On a GPU the decoder is NVDEC. On a CPU it is DALI's own, which reads VP8, VP9 and MJPEG.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from allinone.common.errors import GraphError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import NVDEC_SHORTEST_SIDE, dali_reads
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.gop_trim import TrimmedStream, trim
from allinone.data.loading.sampling import SampleChoices
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.prepare.probe import Limits, probe
from allinone.engine.callbacks.base import Callback, Interval
from allinone.engine.trainer import Trainer
from allinone.model import AllInOneConfig
from tests.benchmarks.train_step import StepOptions, make_trainer
from tests.data.media import corrupt, frame_array, read_frame_number, write_rotated, write_video
from tests.gpu.stage import CheckFn, Found, Settings, Skip

SIDE = 192
"""Pixels of the made-up clips; NVDEC's codecs need 144."""
FRAMES, GOP = 60, 12
WANTED = ((0, 1, 2), (5, 17, 29), (11, 12, 13), (31, 47, 59))
"""Frames of the clips: in one GOP, in three, around a GOP's border, near the end."""
COLOUR_BOUND = 3.0
"""Mean difference of a frame, of 255; chroma upsampling alone differs by 1.3."""
CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "H.264, B-frames": ("h264.mp4", {"b_frames": 3}),
    "H.264, B-frames that others refer to": (
        "pyramid.mp4",
        {"b_frames": 3, "x264": "b-pyramid=normal:ref=4:b-adapt=0:weightp=2"},
    ),
    "H.264, open GOPs": ("open.mp4", {"open_gop": True}),
    "HEVC, open GOPs": ("hevc.mp4", {"codec": "libx265", "open_gop": True}),
    "VP9": ("vp9.webm", {"codec": "libvpx-vp9"}),
    "VP8": ("vp8.webm", {"codec": "libvpx"}),
}
CODECS = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libvpx": "vp8"}
"""Encoder → codec."""
RATE_S = 3.0
"""Seconds of each measurement of the decode rate on a GPU."""


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    found: dict[str, CheckFn] = {
        f"exact frames, {title}": partial(exact_frames, settings, title) for title in CLIPS
    }
    found["a corrupt clip in a batch"] = lambda: corrupt_clip(settings)
    found["colours"] = lambda: colours(settings)
    found["rotation"] = lambda: rotation(settings)
    for pipelines in (1, 2, 4, 8) if settings.on_gpu else (1, 2):
        found[f"decode rate, pipelines: {pipelines}"] = partial(decode_rate, settings, pipelines)
    found["loader and training step"] = lambda: feeding(settings)
    return found


@dataclass(frozen=True)
class Clip:
    """One encoded file and what preparing knows about it."""

    content: bytes
    row: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Clip:
        """Probe a file."""
        content, extension = path.read_bytes(), path.suffix.removeprefix(".")
        return cls(content, probe(content, extension, Limits()))

    def stream(self, wanted: Sequence[int]) -> TrimmedStream:
        """What a reader process sends to DALI."""
        return trim(self.content, wanted, self.row["frames"], Timeline.of(self.row))

    def pyav(self, wanted: Sequence[int]) -> NDArray[np.uint8]:
        """What a reader process decodes, uint8 [T, H, W, 3]."""
        return decode_frames(self.content, wanted, Timeline.of(self.row))


def pipeline(settings: Settings, frames: int = 3, max_batch: int = 8, side: int = SIDE) -> Any:
    """DALI's pipeline that decodes.

    Args:
        settings: Device.
        frames: Frames per clip.
        max_batch: Most clips per call.
        side: Height and width of its output.

    Raises:
        Skip: DALI is not installed.
    """
    try:
        from allinone.data.loading.dali_pipeline import DaliPipeline
    except ImportError as error:
        raise Skip(f"DALI cannot be imported ({error})") from error
    config = DataConfig(
        backend="gpu" if settings.on_gpu else "cpu",
        decoder="dali",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    device = torch.device("cuda", 0) if settings.on_gpu else torch.device("cpu")
    return DaliPipeline(ClipConfig(frames, side, 12), config, device, max_batch)


def choices(frames: Sequence[int]) -> SampleChoices:
    """The complete frame, unchanged."""
    return SampleChoices(0, tuple(frames), (0.0, 0.0, 1.0, 1.0), False, 1.0, 1.0, 1.0)


def decoded(dali: Any, media: Sequence[Any], frames: Sequence[Sequence[int]]) -> NDArray[Any]:
    """Frames as DALI gives them, float [B, T, H, W, 3] of 0 to 255.

    Raises:
        Skip: The driver's video library is missing.
    """
    try:
        pixels = dali(media, [choices(numbers) for numbers in frames])
    except RuntimeError as error:
        if "libnvcuvid" in str(error):
            raise Skip(f"no NVDEC: {str(error).strip().splitlines()[-1][:200]}") from error
        raise
    return 255 * pixels.permute(0, 1, 3, 4, 2).cpu().numpy()


def need_codec(dali: Any, codec: str) -> None:
    """Raise Skip if this device's decoder does not read a codec."""
    if codec not in dali.codecs:
        raise Skip(f"DALI reads {codec} {'not on this card' if dali.on_gpu else 'on GPUs only'}")


def exact_frames(settings: Settings, title: str) -> Found:
    """DALI's frames of trimmed streams: the right ones, with PyAV's pixels."""
    name, options = CLIPS[title]
    path = settings.folder / name
    # before writing: not every PyAV has every encoder
    dali = pipeline(settings)
    need_codec(dali, CODECS[options.get("codec", "libx264")])
    clip = Clip.read(write_video(path, frames=FRAMES, gop=GOP, width=SIDE, height=SIDE, **options))
    streams = [clip.stream(wanted) for wanted in WANTED]
    ours = decoded(dali, streams, WANTED)
    wrong, worst = [], 0.0
    for wanted, frames in zip(WANTED, ours, strict=True):
        expected = clip.pyav(wanted).astype(np.float64)
        for number, frame, other in zip(wanted, frames, expected, strict=True):
            worst = max(worst, float(np.abs(frame - other).mean()))
            try:
                seen: int | str = read_frame_number(frame)
            except ValueError:
                seen = "unreadable"
            if seen != number:
                wrong.append(f"{number}: {seen}")
    trimmed = 100 * sum(len(s.content) for s in streams) / (len(streams) * len(clip.content))
    text = (
        f"{len(wrong)} of {sum(map(len, WANTED))} frames are wrong, mean difference to PyAV at most"
        f" {worst:.2f} of 255 (bound {COLOUR_BOUND:g}), trimmed to {trimmed:.0f} % of the bytes"
    )
    values = {"wrong": wrong, "mean_difference": worst, "trimmed_percent": trimmed}
    return Found(text, values, problem=bool(wrong) or worst > COLOUR_BOUND)


def good_clip(settings: Settings, name: str, **options: Any) -> Clip:
    """A clip that this device's decoder reads: H.264 on a GPU, VP9 on a CPU."""
    codec, suffix = ("libx264", "mp4") if settings.on_gpu else ("libvpx-vp9", "webm")
    given = {"frames": FRAMES, "gop": GOP, "width": SIDE, "height": SIDE, **options}
    return Clip.read(write_video(settings.folder / f"{name}.{suffix}", codec=codec, **given))


def corrupt_clip(settings: Settings) -> Found:
    """The error names the bad clip alone, and the next batch is decoded."""
    dali, clip = pipeline(settings), good_clip(settings, "good")
    good, wanted = clip.stream(WANTED[1]), WANTED[1]
    decoded(dali, [good, good], [wanted, wanted])  # raises Skip without NVDEC
    bad = TrimmedStream(b"no video at all" * 400, wanted)
    try:
        decoded(dali, [good, bad, good], [wanted] * 3)
    except GraphError as error:
        named = sorted(error.bad)
    else:
        return Found("a batch with a clip of garbage raised nothing", problem=True)
    again = decoded(dali, [good, good], [wanted, wanted])
    numbers = [read_frame_number(frame) for frames in again for frame in frames]
    problem = named != [1] or numbers != [*wanted, *wanted]
    text = f"of a batch of 3 the error names {named}; the next batch shows {numbers}"
    return Found(f"{text}; {_damaged(settings, dali, good, wanted)}", problem=problem)


def _damaged(settings: Settings, dali: Any, good: TrimmedStream, wanted: Sequence[int]) -> str:
    """What happens with damaged bytes inside a stream: a decoder may conceal them."""
    path = settings.folder / "damaged.bin"
    path.write_bytes(good.content)
    damaged = TrimmedStream(corrupt(path, share=0.2).read_bytes(), good.frames)
    try:
        frames = decoded(dali, [good, damaged], [wanted, wanted])
    except GraphError as error:
        return f"damaged bytes: refused, names {sorted(error.bad)}"
    neighbours = [read_frame_number(frame) for frame in frames[0]]
    return f"damaged bytes: concealed, its neighbour shows {neighbours}"


def colours(settings: Settings) -> Found:
    """A plain colour comes out as PyAV gives it."""
    dali, worst, values = pipeline(settings), 0.0, {}
    codec, suffix = ("libx264", "mp4") if settings.on_gpu else ("libvpx-vp9", "webm")
    for colour in ((200, 50, 50), (50, 200, 50), (50, 50, 200), (128, 128, 128)):
        path = settings.folder / f"{'-'.join(map(str, colour))}.{suffix}"
        clip = Clip.read(_write_colour(path, codec, colour))
        wanted = (0, 4, 9)
        ours = decoded(dali, [clip.stream(wanted)], [wanted])[0].mean((0, 1, 2))
        other = clip.pyav(wanted).mean((0, 1, 2))
        worst = max(worst, float(np.abs(ours - other).max()))
        values[str(colour)] = {"dali": ours.round(1).tolist(), "pyav": other.round(1).tolist()}
    text = f"largest difference of a channel {worst:.2f} of 255, bound {COLOUR_BOUND:g}"
    return Found(text, values, problem=worst > COLOUR_BOUND)


def _write_colour(path: Path, codec: str, colour: tuple[int, int, int]) -> Path:
    image = np.full((SIDE, SIDE, 3), colour, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotation(settings: Settings) -> Found:
    """A rotated clip goes to PyAV, which turns it upright; DALI would ignore the rotation."""
    wide = {"width": 2 * NVDEC_SHORTEST_SIDE, "height": NVDEC_SHORTEST_SIDE}
    clip = Clip.read(write_rotated(settings.folder / "rotated.mp4", 90, frames=24, **wide))
    dali = pipeline(settings)
    to_dali = dali_reads(clip.row, dali.codecs)
    upright = clip.pyav((3, 7, 11))
    # the encoded grid, turned clockwise by 90 degrees
    expected = np.rot90(frame_array(3, wide["width"], wide["height"]), -1)
    difference = float(np.abs(upright[0].astype(float) - expected).mean())
    turned = upright.shape[1:3] == (wide["width"], wide["height"]) and difference < 20
    text = (
        f"a clip rotated by 90 degrees is {'' if to_dali else 'not '}sent to DALI; PyAV gives it"
        f" {'' if turned else 'not '}upright"
    )
    return Found(text, {"mean_difference": difference}, problem=to_dali or not turned)


def decode_rate(settings: Settings, pipelines: int) -> Found:
    """Clips per second of pipelines in threads of their own; three frames of trimmed streams."""
    large = {"width": 640, "height": 360, "frames": 250, "gop": 25, "rate": 25}
    small = {"frames": FRAMES}
    path = settings.folder / ("rate.mp4" if settings.on_gpu else "rate.webm")
    clip = (
        Clip.read(path)
        if path.exists()
        else good_clip(settings, "rate", **(large if settings.on_gpu else small))
    )
    frames, batch = clip.row["frames"], 8
    third = frames // 3
    # three frames a third of the clip apart, at another place in every clip
    picked = [tuple(third * i + third * k // batch for i in range(3)) for k in range(batch)]
    streams = [clip.stream(numbers) for numbers in picked]
    graphs = [pipeline(settings, max_batch=batch) for _ in range(pipelines)]
    for graph in graphs:
        decoded(graph, streams, picked)  # builds it; raises Skip without NVDEC
    seconds = RATE_S if settings.on_gpu else 0.5
    counts = [0] * pipelines
    chosen = [choices(numbers) for numbers in picked]
    start = time.perf_counter()

    def turn(number: int) -> None:
        while time.perf_counter() - start < seconds:
            graphs[number](streams, chosen)
            counts[number] += batch

    with ThreadPoolExecutor(pipelines) as threads:
        list(threads.map(turn, range(pipelines)))  # raises what a thread has raised
    rate = sum(counts) / (time.perf_counter() - start)
    size = f"{clip.row['width']} x {clip.row['height']}"
    text = f"{rate:.0f} clips/s of {size}, three frames of three GOPs each"
    return Found(text, {"clips_per_s": rate}, measured=True)


class Waiting(Callback):
    """Collects the share of time that training waits for data."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        self.records.append(interval.record)


def feeding(settings: Settings) -> Found:
    """Train on prepared clips: does the loader keep up?"""
    from allinone.data import TrainStream

    side = 256 if settings.on_gpu else SIDE
    data = TrainStream(
        [DatasetSpec(_prepared(settings, side))],
        _clip_config(settings),
        DataConfig(workers=_workers(settings)),
        seed=0,
    )
    every = max(1, settings.steps // 3)
    options = StepOptions(
        size=settings.size,
        micro_batch=settings.micro_batch,
        steps=3 * every if every > 1 else 3,
        log_every=every,
        ds_config="zero1_bf16",
        device=settings.device,
    )
    run = make_trainer(options, settings.folder / "fed", options.steps, data=data)
    waiting = Waiting()
    run.callbacks = (waiting, *run.callbacks)
    run.train()
    # the first interval fills the queues
    measured = waiting.records[1:]
    share = sum(r["data_wait"] * r["elapsed_s"] for r in measured) / sum(
        r["elapsed_s"] for r in measured
    )
    rate = sum(r["samples_per_s"] for r in measured) / len(measured)
    text = (
        f"{rate:.1f} clips/s of {side} px clips, waits for data {100 * share:.1f} % of the time,"
        f" {measured[-1]['bad_clips']} bad clips"
    )
    values = {"clips_per_s": rate, "data_wait": share, "workers": _workers(settings)}
    return Found(text, values, problem=measured[-1]["bad_clips"] > 0, measured=True)


def _workers(settings: Settings) -> int:
    """Reader processes: all cores but two on a GPU machine."""
    return max(1, min(12, len(os.sched_getaffinity(0)) - 2)) if settings.on_gpu else 0


def _clip_config(settings: Settings) -> ClipConfig:
    config = AllInOneConfig.from_size(settings.size)
    return ClipConfig(config.num_frames, config.image_size, config.max_text_len)


def _prepared(settings: Settings, side: int) -> Path:
    """A prepared folder of made-up clips."""
    source = settings.folder / "source"
    lines = ["path,caption"]
    for number in range(24 if settings.on_gpu else 4):
        clip = {"frames": 100 if settings.on_gpu else 12, "gop": 25, "width": side, "height": side}
        write_video(source / f"{number}.mp4", first=number, **clip)
        lines.append(f"{number}.mp4,clip number {number}")
    (source / "clips.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = settings.folder / "prepared"
    prepare(PrepareOptions(source / "clips.csv", out, workers=2), progress=False)
    return out
