#!/usr/bin/env python3
"""Speed of the data path, compared with decord (needs: pip install decord).

    python tests/benchmarks/data_pipeline.py [--sets hd webvid demo] [--seconds 20]

Prints, as a Markdown table, clips per second of one core as training gets them: three frames at
random places, a random crop to 224 px, normalised float32. decord reads the same clips' raw files.
This process keeps to one core; the readers take turns of --seconds, three rounds, and medians are
shown. Time is CPU time of all threads: other work of the machine matters little, and waiting for
storage is not counted.

hd      720p H.264 at 25 frames/s, 18 s long (the mean of WebVid), B-frames, GOPs of 2 to 5 s. Made
        here: the camera pans over a landscape of noise, a demo clip moves across it, with film
        grain. decord opens it at 512 x 512, as the original code does.
webvid  596 x 336 H.264, 12 s, x264's usual GOP of 250 frames.
demo    the embedded 128 px VP9 clips.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import numpy as np
import torch
from numpy.typing import NDArray

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import nal_units
from allinone.data.index import Index
from allinone.data.loading.augmentation import augmentation_for
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.loader import ClipSource, collate_clips
from allinone.data.loading.mixture import Order, SamplePosition
from allinone.data.loading.prefetch import augment
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.sampling import generator
from allinone.data.prepare.pipeline import PrepareOptions, prepare

CLIP = ClipConfig()
ROUNDS = 3
MICRO_BATCH = 8
RATE = 25
BASE = "decord, raw files"


@dataclass(frozen=True)
class Footage:
    """Raw files to make."""

    clips: int
    seconds: int
    width: int
    height: int
    gops: tuple[int, ...]
    """Frames per GOP, clip after clip."""


HD = Footage(6, 18, 1280, 720, (50, 90, 125))
WEBVID = Footage(12, 12, 596, 336, (250,))


def make(folder: Path, footage: Footage) -> Path:
    """Write the files and their CSV, unless an earlier run has; return the CSV."""
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
        for number, image in enumerate(_images(footage, source, np.random.default_rng(seed))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _landscape(height: int, width: int, random: np.random.Generator) -> NDArray[np.int16]:
    """Return noise [height, width, 3] whose spectrum resembles a photograph's."""
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


def _images(
    footage: Footage, source: Path, random: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Yield frames: a pan over a landscape, a demo clip that moves across it, and film grain."""
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
        image = landscape[y : y + height, x : x + width].copy()
        left = int((width - side) / 2 * (1 + np.sin(k / 20)))
        top = int((height - side) / 2 * (1 + np.cos(k / 33)))
        image[top : top + side, left : left + side] = actor[k // 2 % len(actor)]
        down, right = random.integers(64, size=2)
        yield (
            (image + grain[down : down + height, right : right + width])
            .clip(0, 255)
            .astype(np.uint8)
        )


class InTurn(Order):
    """One clip after another, as decord's reader takes them.

    Grain's shuffle costs 5 ms per clip among six clips, and 6 microseconds among a million.
    """

    def __getitem__(self, position: int) -> SamplePosition:
        rows = self._sizes[0]
        return SamplePosition(0, position // rows, position % rows)


def stream(out: Path, **options: Any) -> Iterator[int]:
    """Yield the number of clips of each batch of the training stream, made in this thread.

    What the loader's threads make ahead would be counted in the next reader's turn.
    """
    config = DataConfig(
        **{"workers": 0, "dali_threads": 1, "backend": "cpu", "decoder": "pyav", **options}
    )
    source, device = ClipSource(DatasetSpec(out), CLIP, config), torch.device("cpu")
    augmentation = augmentation_for(CLIP, config, device, MICRO_BATCH)
    source.codecs = augmentation.codecs
    maker = ReplacementSampler(
        [source],
        InTurn([len(source)], [1.0], seed=0),
        seed=0,
        first=0,
        rank=0,
        world=1,
        micro_batch=MICRO_BATCH,
    )
    collate = partial(collate_clips, names=(source.name,), device=device)
    for k in itertools.count():
        yield len(collate(*augment(maker[k], maker, augmentation)) or ())


def decord_files(out: Path, videos: Path, **opened_at: int) -> Iterator[int]:
    """Read the same clips with decord from the raw files; crop and resize with torch."""
    import decord

    decord.bridge.set_bridge("torch")
    index, config = Index(out, "train"), DataConfig()
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.mean, config.std))
    for number in itertools.count():
        epoch, item = divmod(number, len(index))
        row = index[item]
        reader = decord.VideoReader(str(videos / row["source"]), num_threads=1, **opened_at)
        window = ClipWindow(0, len(reader), row["width"], row["height"])
        random = generator(0, "b", epoch, item)
        (choices,) = choose_frames(window, config, CLIP.num_frames, random)
        frames = reader.get_batch(list(choices.frames)).permute(0, 3, 1, 2)
        sides = (*frames.shape[2:], *frames.shape[2:])
        top, left, height, width = (
            round(share * side) for share, side in zip(choices.box, sides, strict=True)
        )
        cut = frames[:, :, top : top + height, left : left + width].float()
        size = (CLIP.image_size, CLIP.image_size)
        pixels = torch.nn.functional.interpolate(cut, size, mode="bilinear", antialias=True)
        (pixels / 255 - mean) / std
        yield 1


def rate_of(source: Iterator[int], seconds: float) -> float:
    """Return clips per second of CPU time, over at least `seconds` of it."""
    start, clips = time.process_time(), 0
    while time.process_time() - start < seconds:
        clips += next(source)
    return clips / (time.process_time() - start)


def compare(title: str, readers: dict[str, Iterator[int]], seconds: float) -> None:
    """Run interleaved rounds; print the medians and the ratio to decord."""
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
    """Describe the files: bit rate, keyframes, share of frames that no other frame refers to."""
    total, keys, spare, packets, seconds = 0, [], 0, 0, 0.0
    for path in sorted(raw.parent.glob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for packet in container.demux(stream):
                if packet.size:
                    headers = [unit[0] for unit in nal_units(bytes(packet))]
                    slices = [header for header in headers if header & 31 in (1, 5)]
                    total += packet.size
                    packets += 1
                    spare += slices[0] >> 5 == 0
                    keys += [packet.size] if packet.is_keyframe else []
            seconds += float((stream.duration or 0) * (stream.time_base or 0))
    share = f"{100 * spare / packets:.0f} % of the frames are not referred to"
    return (
        f"{8e-6 * total / seconds:.1f} Mbit/s, keyframes of {statistics.median(keys) / 1e3:.0f} kB,"
        f" {share}"
    )


def bench_hd(work: Path, seconds: float) -> None:
    """Run the 720p set: the table of the documentation."""
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
    """Run the WebVid-like set: long GOPs."""
    raw = make(work / "webvid", WEBVID)
    prepare(PrepareOptions(raw, work / "webvid-copy"), progress=False)
    readers = {
        BASE: decord_files(work / "webvid-copy", raw.parent),
        "ours, the same files, exact frames": stream(work / "webvid-copy"),
    }
    compare(f"596 x 336 H.264, GOPs of 250 ({describe(raw)})", readers, seconds)


def bench_demo(work: Path, seconds: float) -> None:
    """Run the embedded clips: small, so that costs other than decoding show."""
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


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure."""

    sets: tuple[str, ...] = tuple(SETS)
    """Which clips to read: hd, webvid, demo."""
    work: Path | None = None
    """Folder that keeps what is made here for later runs; default: a temporary folder."""
    seconds: float = 20.0
    """Seconds per reader and round."""


def run(options: BenchmarkOptions) -> int:
    """Measure and print one table per set."""
    unknown = set(options.sets) - SETS.keys()
    if unknown:
        raise InputError(f"--sets {sorted(unknown)[0]} is unknown; sets: {', '.join(SETS)}")
    try:
        import decord  # noqa: F401
    except ImportError as error:
        raise InputError(
            "this benchmark compares with decord, which the project does not depend on: pip install"
            " decord"
        ) from error
    torch.set_num_threads(1)
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            SETS[name](options.work or Path(folder), options.seconds)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    arguments = sys.argv[1:] if argv is None else argv
    prog = "tests/benchmarks/data_pipeline.py"
    options = parse(BenchmarkOptions, arguments, prog=prog, description=str(__doc__))
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
