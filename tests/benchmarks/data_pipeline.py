#!/usr/bin/env python3
"""Speed of the data path: python tests/benchmarks/data_pipeline.py [--sets hd webvid demo]
[--seconds 20] (needs: pip install decord)

Clips per second of one core, as training gets them (three frames at random places, random crop to
224 px, normalised float32), beside decord on the same clips' raw files. This process keeps to one
core, readers take turns of --seconds of that core's time, three rounds, and the medians are shown
as a Markdown table. Time is CPU time of all threads: what else runs on the machine matters little,
waiting for storage is not counted.

hd 720p H.264 at 25 frames/s, 18 s long (the mean of WebVid), B-frames, GOPs of 2 to 5 s. Made here:
the camera sweeps over a landscape of noise,
        a demo clip wanders over it, film grain. decord is opened at 512 x 512, as the original code opens it.
webvid  596 x 336 H.264, 12 s, x264's usual GOP of 250 frames.
demo    the embedded 128 px VP9 clips.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import numpy as np
import torch
from numpy.typing import NDArray

from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import _nal_kinds
from allinone.data.loading.dali_pipeline import DaliPipeline
from allinone.data.loading.index import Index
from allinone.data.loading.loader import Source, _TrainBatches
from allinone.data.loading.mixture import Order, SamplePosition
from allinone.data.loading.prefetch import _pixels
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.sampling import draw, generator
from allinone.data.prepare.pipeline import PrepareOptions, prepare

CLIP = ClipConfig()
ROUNDS = 3
MICRO_BATCH = 8
RATE = 25
BASE = "decord, raw files"


@dataclass(frozen=True)
class Footage:
    """Raw files to be made."""

    clips: int
    seconds: int
    width: int
    height: int
    gops: tuple[int, ...]
    """Frames per GOP, clip after clip."""


HD = Footage(6, 18, 1280, 720, (50, 90, 125))
WEBVID = Footage(12, 12, 596, 336, (250,))


def make(folder: Path, footage: Footage) -> Path:
    """The files beside a CSV; those of an earlier run are used again."""
    if (folder / "clips.csv").exists():
        return folder / "clips.csv"
    folder.mkdir(parents=True, exist_ok=True)
    sources = itertools.cycle(sorted((ROOT / "data/demo/videos").rglob("*.mp4"))[::100])
    lines = ["path,caption"]
    for number in range(footage.clips):
        _encode(
            folder / f"{number}.mp4",
            footage,
            footage.gops[number % len(footage.gops)],
            next(sources),
            number,
        )
        lines.append(f"{number}.mp4,clip number {number}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def _encode(path: Path, footage: Footage, gop: int, source: Path, seed: int) -> None:
    options = {
        "preset": "faster",
        "crf": "23",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0",
        "threads": "1",
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = footage.width, footage.height, "yuv420p"
        for number, picture in enumerate(_pictures(footage, source, np.random.default_rng(seed))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _landscape(height: int, width: int, random: np.random.Generator) -> NDArray[np.int16]:
    """[height, width, 3]: amplitudes fall with frequency about as those of photographs do."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    layers = []
    for _ in range(3):
        spectrum = (
            np.exp(2j * np.pi * random.random(frequency.shape))
            / np.maximum(frequency, 1 / width) ** 1.25
        )
        layer = np.fft.irfft2(spectrum, (height, width))
        layers.append((layer - layer.mean()) / layer.std())
    grey = layers[0][..., None]
    return (128 + 35 * (0.8 * grey + 0.3 * np.stack(layers, -1))).clip(0, 255).astype(np.int16)


def _pictures(
    footage: Footage, source: Path, random: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The camera sweeps over a landscape, a demo clip wanders through the picture, grain is new in
    every frame."""
    width, height = footage.width, footage.height
    side = height * 3 // 4
    with av.open(str(source)) as container:
        actor = [
            np.asarray(frame.to_image().resize((side, side)), dtype=np.int16)
            for frame in container.decode(video=0)
        ]
    landscape = _landscape(2 * height, 2 * width, random)
    grain = random.normal(0, 2, (height + 64, width + 64, 1)).astype(np.int16)
    for k in range(footage.seconds * RATE):
        x, y = int(width / 2 * (1 + np.sin(k / 60))), int(height / 2 * (1 + np.cos(k / 45)))
        picture = landscape[y : y + height, x : x + width].copy()
        left, top = (
            int((width - side) / 2 * (1 + np.sin(k / 20))),
            int((height - side) / 2 * (1 + np.cos(k / 33))),
        )
        picture[top : top + side, left : left + side] = actor[k // 2 % len(actor)]
        down, right = random.integers(64, size=2)
        yield (
            (picture + grain[down : down + height, right : right + width])
            .clip(0, 255)
            .astype(np.uint8)
        )


class InTurn(Order):
    """One clip after the other, as the other reader takes them: grain's shuffle costs 5 ms per clip
    among six, and 6 microseconds among a million."""

    def __getitem__(self, position: int) -> SamplePosition:
        rows = self._sizes[0]
        return SamplePosition(0, position // rows, position % rows)


def stream(out: Path, **options: Any) -> Iterator[int]:
    """Clips per batch of the training stream, made in this thread: what the loader's threads make
    ahead would count for the next reader's turn."""
    config = DataConfig(
        **{"workers": 0, "dali_threads": 1, "backend": "cpu", "decoder": "pyav", **options}
    )
    source, device = Source(DatasetSpec(out), CLIP, config), torch.device("cpu")
    augment = DaliPipeline(CLIP, config, device, MICRO_BATCH)
    source.codecs = augment.codecs
    positions = ReplacementSampler(
        [source],
        InTurn([len(source.index)], [1.0], seed=0),
        seed=0,
        first=0,
        rank=0,
        world=1,
        micro_batch=MICRO_BATCH,
    )
    batches = _TrainBatches(positions)
    batches.names, batches.device = (source.name,), device
    for k in itertools.count():
        yield len(batches.finish(*_pixels(batches[k], batches, augment)) or ())


def decord_files(out: Path, videos: Path, **opened_at: int) -> Iterator[int]:
    """The same clips and choices, read with decord from the raw files, cropped and resized with
    torch."""
    import decord

    decord.bridge.set_bridge("torch")
    index, config = Index(out, "train"), DataConfig()
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.mean, config.std))
    for number in itertools.count():
        epoch, item = divmod(number, len(index))
        row = index[item]
        reader = decord.VideoReader(str(videos / row["source"]), num_threads=1, **opened_at)
        shape = {
            "frames": len(reader),
            "width": row["width"],
            "height": row["height"],
            "wanted": CLIP.num_frames,
        }
        choices = draw(config, generator(0, "b", epoch, item), captions=1, **shape)
        frames = reader.get_batch(list(choices.frames)).permute(0, 3, 1, 2)
        top, left, height, width = (
            round(s * side)
            for s, side in zip(choices.box, (*frames.shape[2:], *frames.shape[2:]), strict=True)
        )
        cut = frames[:, :, top : top + height, left : left + width].float()
        size = (CLIP.image_size, CLIP.image_size)
        pixels = torch.nn.functional.interpolate(cut, size, mode="bilinear", antialias=True)
        (pixels / 255 - mean) / std
        yield 1


def rate_of(source: Iterator[int], seconds: float) -> float:
    """Clips per second of CPU time, over at least `seconds` of it."""
    start, clips = time.process_time(), 0
    while time.process_time() - start < seconds:
        clips += next(source)
    return clips / (time.process_time() - start)


def compare(title: str, readers: dict[str, Iterator[int]], seconds: float) -> None:
    """Interleaved rounds; prints the medians and the ratio to decord."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for source in readers.values():
        next(source)  # warm-up
    for _ in range(ROUNDS):
        for name, source in readers.items():
            rates[name].append(rate_of(source, seconds))
    os.sched_setaffinity(0, cores)
    base = statistics.median(rates[BASE])
    print(
        f"\n{title}\n\n| reader | clips/s of one core | times decord | least to most |\n| --- | ---"
        " | --- | --- |"
    )
    for name, values in rates.items():
        middle = statistics.median(values)
        print(
            f"| {name} | {middle:.1f} | {middle / base:.2f} | {min(values):.1f} to"
            f" {max(values):.1f} |",
            flush=True,
        )


def describe(raw: Path) -> str:
    """What the made files are like: rate, keyframes, share of frames that nothing refers to."""
    total, keys, spare, packets, seconds = 0, [], 0, 0, 0.0
    for path in sorted(raw.parent.glob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for packet in container.demux(stream):
                if packet.size:
                    kinds = [
                        kind for kind in _nal_kinds("h264", bytes(packet)) if kind & 31 in (1, 5)
                    ]
                    total, packets, spare = (
                        total + packet.size,
                        packets + 1,
                        spare + (kinds[0] >> 5 == 0),
                    )
                    keys += [packet.size] if packet.is_keyframe else []
            seconds += float((stream.duration or 0) * (stream.time_base or 0))
    share = f"{100 * spare / packets:.0f} % of the frames are referred to by none"
    return (
        f"{8e-6 * total / seconds:.1f} Mbit/s, keyframes of {statistics.median(keys) / 1e3:.0f} kB,"
        f" {share}"
    )


def bench_hd(work: Path, seconds: float) -> None:
    """The table of the README."""
    raw = make(work / "hd", HD)
    prepare(PrepareOptions(raw, work / "hd-copy"), progress=False)
    for gop in (25, 12):
        prepare(PrepareOptions(raw, work / f"hd-{gop}", short_side=256, gop=gop), progress=False)
    readers = {
        BASE: decord_files(work / "hd-copy", raw.parent, width=512, height=512),
        "ours, the same files, exact frames": stream(work / "hd-copy"),
        "ours, the same files, `--frames-from key`": stream(work / "hd-copy", frames_from="key"),
        "ours, prepared with `--short-side 256 --gop 25`": stream(work / "hd-25"),
        "ours, prepared with `--short-side 256 --gop 12`": stream(work / "hd-12"),
    }
    compare(
        f"720p H.264, GOPs of 2 to 5 s ({describe(raw)}); decord opened at 512 x 512",
        readers,
        seconds,
    )


def bench_webvid(work: Path, seconds: float) -> None:
    """Long GOPs, as WebVid's files have."""
    raw = make(work / "webvid", WEBVID)
    prepare(PrepareOptions(raw, work / "webvid-copy"), progress=False)
    readers = {
        BASE: decord_files(work / "webvid-copy", raw.parent),
        "ours, the same files, exact frames": stream(work / "webvid-copy"),
    }
    compare(f"596 x 336 H.264, GOPs of 250 ({describe(raw)})", readers, seconds)


def bench_demo(work: Path, seconds: float) -> None:
    """Small clips: what a clip costs beside decoding."""
    prepare(PrepareOptions(ROOT / "data/demo", work / "demo"), progress=False)
    readers = {
        BASE: decord_files(work / "demo", ROOT / "data/demo/videos"),
        "ours, PyAV": stream(work / "demo"),
        "ours, DALI's CPU decoder": stream(work / "demo", decoder="dali"),
    }
    compare("128 px VP9, the embedded clips", readers, seconds)


SETS: dict[str, Callable[[Path, float], None]] = {
    "hd": bench_hd,
    "webvid": bench_webvid,
    "demo": bench_demo,
}


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=tuple(SETS),
        default=list(SETS),
        help="what to read (default: all)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep what is made here, and use it again (default: a folder that is deleted)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="seconds per reader and round (default: %(default)s)",
    )
    args = parser.parse_args()
    try:
        import decord  # noqa: F401
    except ImportError:
        print(
            "error: this benchmark compares with decord, which is no dependency of the project: pip"
            " install decord",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    for name in args.sets:
        with tempfile.TemporaryDirectory() as folder:
            SETS[name](args.work or Path(folder), args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
