#!/usr/bin/env python3
"""Size, time and memory of a large index: opening, searching, finding what changed.

    python tests/benchmarks/video_index.py [--clips 100000] [--width 768]

The embeddings are random: decoding and embedding are not measured, `allinone plan data` and
`train_step.py` do that. The search is compared with the bound of any exact search, one product of
a float32 matrix that is already in memory; memory is the growth of this process.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from allinone.common.command_line import parse, run_command
from allinone.common.formatting import size
from allinone.tools.video_index.build import PART_CLIPS
from allinone.tools.video_index.search import similarities
from allinone.tools.video_index.store import (
    IndexedClip,
    IndexSettings,
    Manifest,
    VideoIndex,
    add_part,
    write_manifest,
)

QUERIES = 5


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the benchmark."""

    clips: int = 100_000
    """Clips of the index; two of each file."""
    width: int = 768
    """Width of the embeddings: that of the base size."""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def make(folder: Path, options: BenchmarkOptions) -> None:
    manifest = Manifest("/videos", "none", IndexSettings("0", options.width, 10.0, "fp16"))
    write_manifest(folder, manifest)
    torch.manual_seed(0)
    for first in range(0, options.clips, PART_CLIPS):
        rows = [
            IndexedClip(
                f"folder {k // 2000:04d}/video {k // 2:08d}.mp4", 1 << 20, k, 10.0 * (k % 2)
            )
            for k in range(first, min(first + PART_CLIPS, options.clips))
        ]
        embedded = torch.nn.functional.normalize(torch.randn(len(rows), options.width), dim=-1)
        manifest = add_part(folder, manifest, rows, embedded)


def run(options: BenchmarkOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_s, _ = timed(lambda: make(folder, options))
        stored = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{options.clips:,} clips of width {options.width}: {size(stored)} on disk")
        print(f"write {write_s:.2f} s in parts of {PART_CLIPS:,}")
        before = resident()
        open_s, index = timed(lambda: VideoIndex(folder))
        print(f"open {open_s:.2f} s, +{size(resident() - before)}")
        known_s, known = timed(index.known)
        print(f"table of {len(known):,} files for an update {known_s:.2f} s")
        query = torch.nn.functional.normalize(torch.randn(options.width), dim=0)
        first_s, found = timed(lambda: similarities(index.embeddings, query))
        every = torch.cat([part.float() for part in index.embeddings])
        times, bounds = [], []
        for _ in range(QUERIES):  # interleaved: both see the same load of the machine
            times.append(timed(lambda: similarities(index.embeddings, query))[0])
            bounds.append(timed(lambda: every @ query)[0])
        torch.testing.assert_close(found, every @ query, atol=1e-4, rtol=0)
        search_s, bound_s = sorted(times)[QUERIES // 2], sorted(bounds)[QUERIES // 2]
        print(f"first query {1000 * first_s:.0f} ms, later ones {1000 * search_s:.0f} ms (median)")
        print(f"product of a float32 matrix in memory {1000 * bound_s:.0f} ms")
        print(f"ratio {search_s / bound_s:.1f}; {size(resident() - before)} more than before, of")
        print(f"which {size(every.nbytes)} are the bound's matrix")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        lambda: run(parse(BenchmarkOptions, arguments, prog="video_index.py", description=__doc__))
    )


if __name__ == "__main__":
    sys.exit(main())
