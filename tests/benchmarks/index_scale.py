#!/usr/bin/env python3
"""Time and memory of opening a large index by all ranks of a node.

    python tests/benchmarks/index_scale.py [--clips 10000000] [--per-file 100] [--ranks 8]

Writes an index without media into a temporary folder: clips with captions of WebVid's length in
files of `--per-file` clips, as HowTo100M's. Each rank is a process that opens the index and the
training order, as training does, and looks up clips at 2,000 random positions. Private memory is a
rank's own; the pages of the mapped files are shared by the node and can be dropped by the kernel.
The hash is what one rank computes of it at the start (data/fingerprint.py). Bound: 200 MiB of
private memory beyond the imports. Exit code 1: it is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.common.paths import ROOT
from allinone.common.tables import markdown_table
from tests.memory import rollup

PRIVATE_MIB = 200.0
LOOKUPS = 2000
CHUNK = 1 << 20


def write_index(folder: Path, clips: int, per_file: int) -> None:
    """An index of `clips` clips in files of `per_file`; media are missing."""
    import numpy as np
    import pyarrow as pa

    from allinone.data.index import (
        CLIPS_PER_BATCH,
        LAYOUT,
        LOADER_SCHEMA,
        VIDEO_SCHEMA,
        VIDEOS_PER_BATCH,
        write_mapped,
    )

    files = -(-clips // per_file)

    def blocks(rows: int) -> Iterator[tuple[int, int]]:
        for start in range(0, rows, CHUNK):
            yield start, min(rows, start + CHUNK)

    def clip_tables() -> Iterator[pa.Table]:
        for start, stop in blocks(clips):
            number = np.arange(start, stop)
            keys = [f"train/{k // per_file:011d}#{k % per_file}" for k in range(start, stop)]
            texts = [
                f"A man walks along the beach at sunset, slow motion, shot {k}" for k in number
            ]
            captions = pa.ListArray.from_arrays(
                pa.array(range(stop - start + 1), pa.int32()), pa.array(texts)
            )
            begin = (number % per_file * 100).astype(np.int32)
            columns = [keys, captions, number // per_file, begin, begin + 99]
            yield pa.Table.from_arrays(
                [
                    pa.array(each, field.type) if not isinstance(each, pa.Array) else each
                    for each, field in zip(columns, LOADER_SCHEMA, strict=True)
                ],
                schema=LOADER_SCHEMA,
            )

    def file_tables() -> Iterator[pa.Table]:
        for start, stop in blocks(files):
            rows = stop - start
            values = {
                "shard": [f"shards/train-{k // 1000:06d}.tar" for k in range(start, stop)],
                "offset": np.arange(rows) % 1000 * 10_000_000,
                "size": np.full(rows, 9_000_000),
                "hash": [f"{k:016x}" for k in range(start, stop)],
                "frames": np.full(rows, 100 * per_file, np.int32),
                "keyframes": [list(range(0, 100 * per_file, 250))] * rows,
                "source": [f"videos/{k:011d}.mp4" for k in range(start, stop)],
            }
            constant = {
                "codec": "h264",
                "pixel_format": "yuv420p",
                "container": "mp4",
                "media": "video",
                "width": 455,
                "height": 256,
                "rotation": 0,
                "frame_rate": 25.0,
                "duration_s": 4.0 * per_file,
                "frame_times": None,
            }
            values |= {name: [value] * rows for name, value in constant.items()}
            yield pa.table(
                {field.name: pa.array(values[field.name], field.type) for field in VIDEO_SCHEMA},
                schema=VIDEO_SCHEMA,
            )

    write_mapped(folder / "videos.arrow", VIDEO_SCHEMA, file_tables(), VIDEOS_PER_BATCH)
    write_mapped(folder / "index.arrow", LOADER_SCHEMA, clip_tables(), CLIPS_PER_BATCH)
    facts = {"layout": LAYOUT, "clips": {"train": clips}, "bad": {}}
    facts |= {"files": [files, files], "captions": [clips, clips]}
    (folder / "dataset.json").write_text(json.dumps(facts))


def rank(folder: Path, fingerprint: bool) -> None:
    """In a process of its own: open, look up, wait for the parent's line, print what it took."""
    import random

    from allinone.data.fingerprint import clips_fingerprint
    from allinone.data.index import Index
    from allinone.data.loading.mixture import Order

    before = rollup(os.getpid(), "Private_Dirty")
    start = time.perf_counter()
    index = Index(folder, "train")
    opened = time.perf_counter() - start
    order = Order([len(index)], [1.0], seed=0)
    # the pages of the order's first look-up are not a step's
    places = [random.Random(os.getpid()).randrange(len(index)) for _ in range(LOOKUPS)]
    start = time.perf_counter()
    for place in places:
        index[order[place].row]
    looked_up = (time.perf_counter() - start) / LOOKUPS
    private = rollup(os.getpid(), "Private_Dirty")
    hashed = 0.0
    if fingerprint:
        start = time.perf_counter()
        clips_fingerprint(folder, "train")
        hashed = time.perf_counter() - start
    print(
        json.dumps(
            {
                "open_s": opened,
                "lookup_us": 1e6 * looked_up,
                "private": private - before,
                "imports": before,
                "peak": _peak(),
                "hash_s": hashed,
            }
        ),
        flush=True,
    )


def _peak() -> int:
    """Largest resident size so far, bytes; pages of mapped files count."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--per-file", type=int, default=100, help="clips of a stored file")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hash", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank, options.hash)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, options.clips, options.per_file)
        stored = sum(path.stat().st_size for path in folder.iterdir())
        line = [sys.executable, __file__, "--rank", str(folder)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [*line, *(["--hash"] if number == 0 else [])],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=env,
            )
            for number in range(options.ranks)
        ]
        found = [json.loads(process.communicate()[0]) for process in processes]
    mib = 2**20
    worst = max(each["private"] for each in found) / mib
    print(
        markdown_table(
            [
                [
                    "clips",
                    "index",
                    "ranks",
                    "open",
                    "look-up",
                    "private per rank",
                    "hash on rank 0",
                ],
                [
                    f"{options.clips:,}",
                    f"{stored / 2**30:.2f} GiB",
                    str(options.ranks),
                    f"{max(each['open_s'] for each in found):.1f} s",
                    f"{max(each['lookup_us'] for each in found):.0f} us",
                    f"{worst:.0f} MiB beyond {max(e['imports'] for e in found) / mib:.0f}",
                    f"{found[0]['hash_s']:.1f} s, peak {found[0]['peak'] / mib:.0f} MiB",
                ],
            ]
        )
    )
    return int(worst > PRIVATE_MIB)


if __name__ == "__main__":
    sys.exit(main())
