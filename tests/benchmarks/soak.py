#!/usr/bin/env python3
"""The data path for a long time: python tests/benchmarks/soak.py [--clips 200000] [--workers 1]

Streams training batches from the embedded clips, 2 % of which were damaged after preparing: zeros,
noise, cut off, a web page, another clip's header, an index that promises more frames than there
are, an empty file, sound only, one frame left of a clip, and one clip whose decoding takes longer
than --clip-timeout-s. Checks, and leaves with 1 where one fails:
  - memory of the process and its readers is flat: the upper end of the slope's 95 % interval over
    the second half, in KiB per 1,000 clips, is below a bound;
  - no file descriptor is leaked;
  - every damaged clip that was met stands in the ledger once per epoch, with its reason, and no
    other clip does;
  - the digests of all batches equal those of a second run (over the first tenth) with another
    number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import theilslopes

from allinone.common.formatting import duration
from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.index import VIDEO_SCHEMA, VIDEOS_PER_BATCH, Index, write_mapped
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data import media
from tests.memory import rollup

MICRO_BATCH = 20
BAD_SHARE = 0.02
LARGEST_SLOPE = 20.0
"""KiB per 1,000 clips: 100,000 clips may cost 2 MiB, epochs of a 400K-step run less than 1 GiB per
rank."""
POINTS, WINDOWS = 400, 20
"""Looks at the memory of the whole run, and windows of the second half whose minima the slope is
of. Between two times that a reader gives free memory back it holds more."""
STILL_S = 0.1
"""Readers that used no processor for so long have made all batches that they may be ahead. How far
they are is worth megabytes, and depends on what else the machine does; to look while they stand
still leaves that out."""
PR_SET_THP_DISABLE = 41
"""Of prctl(2). The kernel's khugepaged fills holes between an allocator's pages to make them huge,
minutes later and unasked."""
KINDS = ("zeros", "noise", "cut", "page", "header", "frames", "empty", "sound", "one frame")
TIMEOUT_S = 1.5
SLOW_FRAMES = 300_000
"""In one GOP; the last third of it takes longer to reach than TIMEOUT_S."""


def odd_files(folder: Path) -> dict[str, bytes]:
    """Files that cannot stand in a clip's place in its tar, by kind."""
    one = media.write_video(folder / "one.mp4", frames=1).read_bytes()
    slow = media.write_video(
        folder / "slow.mp4",
        frames=SLOW_FRAMES,
        gop=SLOW_FRAMES,
        b_frames=0,
        width=32,
        height=32,
        still=True,
    )
    sound = media.write_audio_only(folder / "sound.mp4").read_bytes()
    return {"empty": b"", "sound": sound, "one frame": one, "slow": slow.read_bytes()}


def damage(folder: Path) -> dict[str, str]:
    """Damage every 50th training clip of a prepared folder, in turn by kind, one of them to be
    slow; returns name → kind."""
    index, random = Index(folder, "train"), np.random.default_rng(0)
    damaged: dict[str, str] = {}
    videos = pq.read_table(folder / "videos.parquet", schema=VIDEO_SCHEMA).to_pylist()
    others = folder / "shards" / "odd"
    files, places = odd_files(folder), {}
    with others.open("wb") as file:
        for kind, content in files.items():
            places[kind] = {
                "shard": f"shards/{others.name}",
                "offset": file.tell(),
                "size": len(content),
            }
            file.write(content)
    for turn, item in enumerate(range(0, len(index), round(1 / BAD_SHARE))):
        row, kind = index[item], KINDS[turn % len(KINDS)] if turn else "slow"
        damaged[row["key"]] = kind
        if kind in places:
            videos[row["video"]] |= places[kind]
            if kind == "slow":
                videos[row["video"]] |= {
                    "frames": SLOW_FRAMES,
                    "keyframes": [0],
                    "frame_times": None,
                    "frame_rate": 12.0,
                }
            continue
        if kind == "frames":
            videos[row["video"]]["frames"] *= 50  # chosen frames lie beyond the end
            continue
        with (folder / row["shard"]).open("r+b") as file:
            file.seek(row["offset"])
            content = bytearray(file.read(row["size"]))
            half = len(content) // 2
            if kind == "zeros":
                content[:] = bytes(len(content))
            elif kind == "noise":
                content[:] = random.bytes(len(content))
            elif kind == "cut":  # an mp4 whose table of packets stands at the end loses it
                content[half // 4 :] = bytes(len(content) - half // 4)
            elif kind == "page":
                content[:] = (b"<!DOCTYPE html><html>403 Forbidden</html>" * len(content))[
                    : len(content)
                ]
            else:
                content[:64] = random.bytes(64)
            file.seek(row["offset"])
            file.write(content)
    table = pa.Table.from_pylist(videos, schema=VIDEO_SCHEMA)
    write_mapped(folder / "videos.arrow", VIDEO_SCHEMA, [table], VIDEOS_PER_BATCH)
    return damaged


@dataclass(frozen=True)
class Slope:
    """KiB per 1,000 clips: Theil and Sen's estimate with its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


class Meter:
    """Anonymous memory (bytes) and descriptors of this process and its children, by clips seen:
    heaps and stacks, what a reader shares with the server that forked it counted in both. Not PSS
    or USS, where pages of a library count by who else has it open, nor private memory, which a
    reader gains by writing on a page that it shared."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._numbers = array(
            "q"
        )  # not lists of tuples: they would be half of the growth that is measured

    @property
    def points(self) -> NDArray[np.int64]:
        """[points, 4]: clips; bytes of this process, of its children; descriptors of all."""
        return np.array(self._numbers).reshape(-1, 4)

    def _used(self) -> float:
        """Seconds of processor time of the readers."""
        times = 0.0
        for process in self._me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times += sum(process.cpu_times()[:2])
        return times

    def read(self, clips: int) -> None:
        """Wait until the readers stand still, and add a point."""
        before = -1.0
        while (now := self._used()) != before:
            before = now
            time.sleep(STILL_S)
        memory, files = [0, 0], 0
        for process in [self._me, *self._me.children(recursive=True)]:
            try:
                memory[process != self._me] += rollup(process.pid, "Anonymous")
                files += process.num_fds()
            except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                continue
        self._numbers.extend((clips, *memory, files))

    def slope(self, *columns: int) -> Slope:
        """Of the sum of columns 1 (this process) and 2 (its children), over the second half of the
        points."""
        later = self.points[len(self.points) // 2 :].astype(float)
        windows = np.array_split(later, min(WINDOWS, len(later)))
        clips = [float(window[:, 0].mean()) for window in windows]
        kib = [float(window[:, columns].sum(1).min()) / 1024 for window in windows]
        middle, _, low, high = theilslopes(kib, clips, 0.95)
        return Slope(1000 * middle, 1000 * low, 1000 * high)

    def leaked(self) -> int:
        """Descriptors at the end beyond those at a tenth of the way."""
        files = self.points[:, 3]
        return int(files[-1] - files[len(files) // 10])


def stream_of(folder: Path, workers: int, ledger: Path | None) -> TrainStream:
    """The stream under test."""
    config = DataConfig(
        workers=workers, dali_threads=1, max_bad_share=1.0, clip_timeout_s=TIMEOUT_S
    )
    return TrainStream([DatasetSpec(folder)], ClipConfig(3, 32, 16), config, seed=0, ledger=ledger)


def run(
    folder: Path, clips: int, workers: int, ledger: Path | None, meter: Meter | None
) -> array[int]:
    """Digests of all batches."""
    digests, seen, start = array("q"), 0, time.monotonic()
    batches = stream_of(folder, workers, ledger).batches(
        first=0, rank=0, world=1, micro_batch=MICRO_BATCH, device=torch.device("cpu")
    )
    step = max(MICRO_BATCH, clips // POINTS // MICRO_BATCH * MICRO_BATCH)
    for batch in batches:
        digests.append(batch.digest)
        seen += len(batch)
        if meter and seen % step == 0:
            meter.read(seen)
            if seen % (POINTS // 10 * step) == 0:
                rate = seen / (time.monotonic() - start)
                _, own, readers, files = meter.points[-1]
                print(
                    f"{seen:,}/{clips:,} clips  {rate:.0f} clips/s  {own / 2**20:.0f} +"
                    f" {readers / 2**20:.0f} MiB  {files} descriptors  ETA"
                    f" {duration((clips - seen) / rate)}",
                    flush=True,
                )
        if seen >= clips:
            break
    batches.close()  # type: ignore[attr-defined]
    return digests


def check_ledger(ledger: Path, damaged: dict[str, str], clips: int, size: int) -> list[str]:
    """What is wrong with the ledger."""
    lines = [
        json.loads(line)
        for path in ledger.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    counts = Counter((line["clip"], line["epoch"]) for line in lines)
    faults = [
        f"{clip} stands {number} times in epoch {epoch}"
        for (clip, epoch), number in counts.items()
        if number > 1
    ]
    faults += [
        f"{line['clip']} was not damaged but is named: {line['reason']}"
        for line in lines
        if line["clip"] not in damaged
    ]
    faults += [f"{line['clip']} has no reason" for line in lines if not line["reason"]]
    for epoch in range(clips // size):
        missing = set(damaged) - {clip for clip, number in counts if number == epoch}
        faults += [
            f"{clip} ({damaged[clip]}) is not named in epoch {epoch}" for clip in sorted(missing)
        ]
    by_kind = Counter(damaged[line["clip"]] for line in lines if line["clip"] in damaged)
    print(f"ledger: {len(lines)} lines; by kind: {dict(by_kind)}")
    return faults


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=200_000,
        help=(
            "clips to stream; fewer leave the slope's interval wider than its bound (default:"
            " %(default)s)"
        ),
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="reader processes (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):  # children inherit it
        print(
            "warning: transparent huge pages cannot be left out: memory grows by 2 MiB where the"
            " kernel merges pages",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(PrepareOptions(ROOT / "data/demo", folder / "demo"), progress=False)
        damaged = damage(folder / "demo")
        size = len(Index(folder / "demo", "train"))
        meter = Meter()
        start = time.monotonic()
        digests = run(folder / "demo", args.clips, args.workers, folder / "ledger", meter)
        seconds = time.monotonic() - start
        again = run(
            folder / "demo",
            max(MICRO_BATCH, args.clips // 10),
            1 - min(args.workers, 1),
            None,
            None,
        )
        faults = check_ledger(folder / "ledger", damaged, args.clips, size)
    if again != digests[: len(again)]:
        faults.append("the second run has other digests")
    slope, leaked = meter.slope(1, 2), meter.leaked()
    if not slope.high <= LARGEST_SLOPE:  # nor is no number a pass
        faults.append(
            f"memory may grow by {slope.high:.1f} KiB per 1,000 clips, more than {LARGEST_SLOPE}"
            + ("" if slope.low > 0 else "; more --clips make the interval narrower")
        )
    if leaked > 0:
        faults.append(f"{leaked} descriptors were leaked")
    print(
        f"{args.clips:,} clips in {duration(seconds)} ({args.clips / seconds:.0f} clips/s),"
        f" {len(damaged)} of {size:,} damaged"
    )
    print(
        f"memory {meter.points[-1, 1:3].sum() / 2**20:.0f} MiB, slope of the second half in KiB per"
        f" 1,000 clips with 95 % interval: {slope}; training process {meter.slope(1)}, readers"
        f" {meter.slope(2)}; descriptors {leaked:+d}"
    )
    print(f"digests of {len(again):,} batches equal a second run: {again == digests[: len(again)]}")
    for fault in faults[:20]:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
