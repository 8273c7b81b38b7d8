#!/usr/bin/env python3
"""Speed of the data path: python tests/benchmarks/data_pipeline.py [--clips 48] [--seconds 20]     (needs: pip install decord)

Clips/s of the training stream from prepared shards, beside decord reading the same clips' raw files: each process alone with one thread, three
frames at random places, random crop to 224 px, normalised float32. Two sets: the embedded 128 px VP9 clips, and 596 x 336 H.264 at 25 frames/s
with x264's usual 250-frame GOPs, 12 s long, as WebVid has them (made here: demo clips enlarged, moving, with noise, so that their rate is natural).

The readers take turns, three rounds of --seconds each; the median is shown. Ratios, not rates, can be compared between machines.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import av
import numpy as np
import torch
from PIL import Image

from data import TrainStream
from data.choices import draw, generator
from data.config import ClipConfig, DataConfig, DatasetSpec
from data.index import Index
from data.prepare import PrepareOptions, prepare

CLIP = ClipConfig()
ROUNDS = 3
MICRO_BATCH = 8


def make_webvid_like(folder: Path, clips: int, seconds: int = 12, rate: int = 25, width: int = 596, height: int = 336) -> Path:
    """H.264 files beside a CSV. A demo clip, enlarged, wanders over its own still; film grain keeps x264 busy."""
    folder.mkdir(parents=True)
    sources = itertools.cycle(sorted((ROOT / "data/demo/videos").rglob("*.mp4")))
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "caption"])
        for number in range(clips):
            with av.open(str(next(sources))) as container:
                stills = [frame.to_image().resize((height, height)) for frame in container.decode(video=0)]
            _encode(folder / f"{number}.mp4", stills, seconds * rate, rate, width, height, seed=number)
            table.writerow([f"{number}.mp4", f"clip number {number}"])
    return folder / "clips.csv"


def _encode(path: Path, stills: list[Image.Image], frames: int, rate: int, width: int, height: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    background = np.asarray(stills[0].resize((width, height)), dtype=np.int16)
    grain = random.normal(0, 4, (8, height, width, 1)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            picture = np.roll(background, k * 2, axis=1).copy()
            left = int((width - height) / 2 * (1 + np.sin(k / 20)))
            picture[:, left : left + height] = np.asarray(stills[k // 2 % len(stills)], dtype=np.int16)
            noisy = (picture + grain[k % 8]).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shards(out: Path, decoder: str) -> Iterator[int]:
    """Clips per batch of the training stream, read in this process."""
    config = DataConfig(workers=0, dali_threads=1, backend="cpu", decoder=decoder)  # type: ignore[arg-type]
    stream = TrainStream([DatasetSpec(out)], CLIP, config, seed=0)
    for batch in stream.batches(first=0, rank=0, world=1, micro_batch=MICRO_BATCH, device=torch.device("cpu")):
        yield len(batch)


def decord_files(out: Path, videos: Path) -> Iterator[int]:
    """The same clips and choices, read with decord from the raw files, cropped and resized with torch."""
    import decord

    decord.bridge.set_bridge("torch")
    index, config = Index(out, "train"), DataConfig()
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.mean, config.std))
    for item in itertools.cycle(range(len(index))):
        row = index[item]
        reader = decord.VideoReader(str(videos / row["source"]), num_threads=1)
        shape = {"frames": len(reader), "width": row["width"], "height": row["height"], "wanted": CLIP.num_frames}
        choices = draw(config, generator(0, "b", 0, item), captions=1, **shape)
        frames = reader.get_batch(list(choices.frames)).permute(0, 3, 1, 2)
        top, left, height, width = (
            round(share * side) for share, side in zip(choices.box, (row["height"], row["width"]) * 2, strict=True)
        )
        cut = frames[:, :, top : top + height, left : left + width].float()
        size = (CLIP.image_size, CLIP.image_size)
        pixels = torch.nn.functional.interpolate(cut, size, mode="bilinear", antialias=True)
        (pixels / 255 - mean) / std
        yield 1


def rate_of(source: Iterator[int], seconds: float) -> float:
    """Clips/s over at least `seconds`, after one batch of warm-up."""
    next(source)
    start, clips = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        clips += next(source)
    return clips / (time.perf_counter() - start)


def compare(title: str, readers: dict[str, Callable[[], Iterator[int]]], seconds: float) -> None:
    """Interleaved rounds; prints the medians and the ratio to decord."""
    sources = {name: make() for name, make in readers.items()}
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, source in sources.items():
            rates[name].append(rate_of(source, seconds))
    base = statistics.median(rates["decord, raw files"])
    print(f"\n{title}")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(
            f"  {name:<34}{middle:8.1f} clips/s   {middle / base:5.2f} x decord   ({min(values):.1f} to {max(values):.1f})",
            flush=True,
        )


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48, help="H.264 clips to make (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per reader and round (default: %(default)s)")
    args = parser.parse_args()
    try:
        import decord  # noqa: F401
    except ImportError:
        print(
            "error: this benchmark compares with decord, which is no dependency of the project: pip install decord",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        raw = make_webvid_like(work / "raw", args.clips)
        prepare(PrepareOptions(ROOT / "data/demo", work / "demo"), progress=False)
        prepare(PrepareOptions(raw, work / "h264"), progress=False)
        sets = {
            "128 px VP9 (embedded clips)": (work / "demo", ROOT / "data/demo/videos", ("pyav", "dali")),
            "596 x 336 H.264, GOP 250": (work / "h264", raw.parent, ("pyav",)),
        }
        for title, (out, videos, decoders) in sets.items():
            readers: dict[str, Callable[[], Iterator[int]]] = {
                f"prepared shards, {name}": lambda out=out, name=name: shards(out, name)  # type: ignore[misc]
                for name in decoders
            }
            readers["decord, raw files"] = lambda out=out, videos=videos: decord_files(out, videos)  # type: ignore[misc]
            compare(title, readers, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
