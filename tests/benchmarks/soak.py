#!/usr/bin/env python3
"""Runs the data path for a long time: python tests/benchmarks/soak.py [--clips 200000]

Streams training batches from the demo clips, 2 % of which were damaged after preparation: zeros,
noise, truncated, a web page, another clip's header, an index that claims more frames than there
are, an empty file, sound only, a single frame, and one clip whose decoding takes longer than
--clip-timeout-s. Exit code 1 if one of these checks fails:
  - the memory of the process and its readers is flat: over the second half, the upper end of the
    slope's 95 % interval, in KiB per 1,000 clips, is below a limit;
  - no file descriptor is leaked;
  - the bad-clip log has every damaged clip that was read once per epoch, with its reason, and no
    other clip;
  - the digests of all batches equal those of a second run (over the first tenth) with another
    number of workers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import theilslopes

from allinone.common.command_line import parse, run_command
from allinone.common.formatting import duration
from allinone.common.paths import ROOT
from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import VIDEO_SCHEMA, VIDEOS_PER_BATCH, Index, write_mapped
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data import media
from tests.memory import rollup

MICRO_BATCH = 20
BAD_SHARE = 0.02
MAX_SLOPE = 20.0
"""KiB per 1,000 clips: 100,000 clips may cost 2 MiB, epochs of a 400K-step run less than 1 GiB per
rank."""
POINTS, WINDOWS = 400, 20
"""Measurements of the complete run, and windows of the second half. The slope is that of the
windows' minima, because a reader holds more memory between two times that it gives some back."""
IDLE_S = 0.1
"""Readers that use no processor for this long have filled their queues. How full the queues are is
worth megabytes and depends on the machine's load, so memory is measured when they are full."""
PR_SET_THP_DISABLE = 41
"""Option of prctl(2). Otherwise the kernel's khugepaged merges an allocator's pages into huge ones
minutes later, which fills holes between them."""
KINDS = ("zeros", "noise", "cut", "page", "header", "frames", "empty", "sound", "one frame")
TIMEOUT_S = 1.5
SLOW_FRAMES = 300_000
"""Frames of one GOP; decoding to its last third takes longer than TIMEOUT_S."""
PAGE = b"<!DOCTYPE html><html>403 Forbidden</html>"


@dataclass(frozen=True)
class SoakOptions:
    """Options of the command."""

    clips: int = 200_000
    """Clips to stream; with fewer, the slope's interval is wider than its limit."""
    workers: int = 1
    """Reader processes."""


def replacement_files(folder: Path) -> dict[str, bytes]:
    """Files that differ in size from the clip that they replace, by kind."""
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


def write_replacements(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the replacement files into one new shard; return the columns that point to them."""
    path = folder / "shards" / "odd"
    places = {}
    with path.open("wb") as file:
        for kind, content in replacement_files(folder).items():
            shard = f"shards/{path.name}"
            places[kind] = {"shard": shard, "offset": file.tell(), "size": len(content)}
            file.write(content)
    places["slow"] |= {
        "frames": SLOW_FRAMES,
        "keyframes": [0],
        "frame_times": None,
        "frame_rate": 12.0,
    }
    return places


def damaged_content(kind: str, content: bytes, random: np.random.Generator) -> bytes:
    """A clip's bytes, damaged in place: the size stays the same."""
    size = len(content)
    if kind == "zeros":
        return bytes(size)
    if kind == "noise":
        return random.bytes(size)
    if kind == "cut":  # loses the packet table, which an mp4 has at its end
        kept = size // 2 // 4
        return content[:kept] + bytes(size - kept)
    if kind == "page":
        return (PAGE * size)[:size]
    return random.bytes(64) + content[64:]


def damage(folder: Path) -> dict[str, str]:
    """Damage every 50th training clip of a prepared folder, with alternating kinds.

    Returns:
        Key of the clip → kind; the first one is slow.
    """
    index, random = Index(folder, "train"), np.random.default_rng(0)
    videos = pq.read_table(folder / "videos.parquet", schema=VIDEO_SCHEMA).to_pylist()
    places = write_replacements(folder)
    damaged: dict[str, str] = {}
    for turn, item in enumerate(range(0, len(index), round(1 / BAD_SHARE))):
        row = index[item]
        kind = KINDS[turn % len(KINDS)] if turn else "slow"
        damaged[row["key"]] = kind
        if kind in places:
            videos[row["video"]] |= places[kind]
        elif kind == "frames":
            videos[row["video"]]["frames"] *= 50  # chosen frames are beyond the end
        else:
            with (folder / row["shard"]).open("r+b") as file:
                file.seek(row["offset"])
                content = file.read(row["size"])
                file.seek(row["offset"])
                file.write(damaged_content(kind, content, random))
    table = pa.Table.from_pylist(videos, schema=VIDEO_SCHEMA)
    write_mapped(folder / "videos.arrow", VIDEO_SCHEMA, [table], VIDEOS_PER_BATCH)
    return damaged


@dataclass(frozen=True)
class Slope:
    """KiB per 1,000 clips: the Theil-Sen estimate with its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


class MemoryMeter:
    """Anonymous memory in bytes and descriptors of this process and its children, by clips read.

    Anonymous memory is heaps and stacks; what a reader shares with the fork server counts for both.
    PSS and USS would not do: library pages then count by how many processes map them. Neither would
    private memory, which grows when a reader writes to a shared page.
    """

    def __init__(self) -> None:
        self._me = psutil.Process()
        # not a list of tuples, which would be half of the growth that is measured
        self._numbers = array("q")

    @property
    def points(self) -> NDArray[np.int64]:
        """[points, 4]: clips; bytes of this process, of its children; descriptors of all."""
        return np.array(self._numbers).reshape(-1, 4)

    def _readers_cpu_s(self) -> float:
        times = 0.0
        for process in self._me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times += sum(process.cpu_times()[:2])
        return times

    def measure(self, clips: int) -> None:
        """Wait until the readers are idle, and add a point."""
        before = -1.0
        while (now := self._readers_cpu_s()) != before:
            before = now
            time.sleep(IDLE_S)
        memory, files = [0, 0], 0
        for process in [self._me, *self._me.children(recursive=True)]:
            try:
                memory[process != self._me] += rollup(process.pid, "Anonymous")
                files += process.num_fds()
            except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                continue
        self._numbers.extend((clips, *memory, files))

    def slope(self, *columns: int) -> Slope:
        """Slope of the sum of columns 1 (this process) and 2 (its children), second half only."""
        later = self.points[len(self.points) // 2 :].astype(float)
        windows = np.array_split(later, min(WINDOWS, len(later)))
        clips = [float(window[:, 0].mean()) for window in windows]
        kib = [float(window[:, columns].sum(1).min()) / 1024 for window in windows]
        middle, _, low, high = theilslopes(kib, clips, 0.95)
        return Slope(1000 * middle, 1000 * low, 1000 * high)

    def leaked_files(self) -> int:
        """Descriptors at the end, minus those after a tenth of the run."""
        files = self.points[:, 3]
        return int(files[-1] - files[len(files) // 10])


def stream_of(folder: Path, workers: int, log: Path | None) -> TrainStream:
    """The stream under test."""
    config = DataConfig(
        workers=workers, dali_threads=1, max_bad_share=1.0, clip_timeout_s=TIMEOUT_S
    )
    return TrainStream([DatasetSpec(folder)], ClipConfig(3, 32, 16), config, seed=0, bad_clips=log)


def run(
    folder: Path, clips: int, workers: int, log: Path | None, meter: MemoryMeter | None
) -> array[int]:
    """Stream batches.

    Args:
        folder: The prepared folder.
        clips: Clips to stream.
        workers: Reader processes.
        log: Folder of the bad-clip log.
        meter: Measures the memory on the way.

    Returns:
        Digests of all batches.
    """
    digests, seen, start = array("q"), 0, time.monotonic()
    batches = stream_of(folder, workers, log).batches(
        first=0, rank=0, world=1, micro_batch=MICRO_BATCH, device=torch.device("cpu")
    )
    step = max(MICRO_BATCH, clips // POINTS // MICRO_BATCH * MICRO_BATCH)
    for batch in batches:
        digests.append(batch.digest)
        seen += len(batch)
        if meter and seen % step == 0:
            meter.measure(seen)
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


def check_log(log: Path, damaged: dict[str, str], clips: int, size: int) -> list[str]:
    """Compare the bad-clip log with the damage.

    Args:
        log: Folder of the log.
        damaged: Key of the clip → kind.
        clips: Clips that were streamed.
        size: Clips of one epoch.

    Returns:
        What is wrong, a sentence each.
    """
    paths = log.glob("*.jsonl")
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    counts = Counter((line["clip"], line["epoch"]) for line in lines)
    faults = [
        f"{clip} is logged {number} times in epoch {epoch}"
        for (clip, epoch), number in counts.items()
        if number > 1
    ]
    faults += [
        f"{line['clip']} was not damaged but is logged: {line['reason']}"
        for line in lines
        if line["clip"] not in damaged
    ]
    faults += [f"{line['clip']} has no reason" for line in lines if not line["reason"]]
    for epoch in range(clips // size):
        missing = set(damaged) - {clip for clip, number in counts if number == epoch}
        faults += [
            f"{clip} ({damaged[clip]}) is not logged in epoch {epoch}" for clip in sorted(missing)
        ]
    by_kind = Counter(damaged[line["clip"]] for line in lines if line["clip"] in damaged)
    print(f"bad-clip log: {len(lines)} lines; by kind: {dict(by_kind)}")
    return faults


def check_memory(meter: MemoryMeter) -> list[str]:
    """Print the memory's slope; return what is wrong with memory and descriptors."""
    faults = []
    slope, leaked = meter.slope(1, 2), meter.leaked_files()
    if not slope.high <= MAX_SLOPE:  # also true for NaN
        wider = "" if slope.low > 0 else "; more --clips make the interval narrower"
        faults.append(
            f"memory may grow by {slope.high:.1f} KiB per 1,000 clips, more than {MAX_SLOPE}{wider}"
        )
    if leaked > 0:
        faults.append(f"{leaked} descriptors were leaked")
    print(
        f"memory {meter.points[-1, 1:3].sum() / 2**20:.0f} MiB, slope of the second half in KiB per"
        f" 1,000 clips with 95 % interval: {slope}; training process {meter.slope(1)}, readers"
        f" {meter.slope(2)}; descriptors {leaked:+d}"
    )
    return faults


def soak(options: SoakOptions) -> int:
    """Run all checks; return the exit code."""
    clips, workers = options.clips, options.workers
    torch.set_num_threads(1)
    if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):  # children inherit it
        print(
            "warning: transparent huge pages cannot be disabled: memory grows by 2 MiB where the"
            " kernel merges pages",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "demo", Path(name) / "bad_clips"
        prepare(PrepareOptions(ROOT / "data/demo", folder), progress=False)
        damaged = damage(folder)
        size = len(Index(folder, "train"))
        meter = MemoryMeter()
        start = time.monotonic()
        digests = run(folder, clips, workers, log, meter)
        seconds = time.monotonic() - start
        again = run(folder, max(MICRO_BATCH, clips // 10), 1 - min(workers, 1), None, None)
        faults = check_log(log, damaged, clips, size)
    equal = again == digests[: len(again)]
    if not equal:
        faults.append("the second run has other digests")
    print(
        f"{clips:,} clips in {duration(seconds)} ({clips / seconds:.0f} clips/s),"
        f" {len(damaged)} of {size:,} damaged"
    )
    faults += check_memory(meter)
    print(f"digests of {len(again):,} batches equal a second run: {equal}")
    for fault in faults[:20]:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(SoakOptions, arguments, prog="soak.py", description=__doc__ or "")
    return run_command(lambda: soak(options))


if __name__ == "__main__":
    sys.exit(main())
