"""Time and memory of listing a large source, and of a part that reads its rows.

    python tests/benchmarks/listing.py [--rows 10000000] [--parts 16]

Writes a list as WebVid's into a temporary folder. One process lists it; another one then does what
a part does at its start: it opens the listing and reads the rows of all its shards. Bounds, for
10 million rows: each takes at most 30 s and 200 MiB. Exit code 1: a bound is not met.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.common.paths import ROOT

MOST_S, MOST_MIB = 30.0, 200.0


def write_list(folder: Path, rows: int) -> None:
    """A list as WebVid's: a third of the captions is quoted for its commas, 2 % have accents."""
    (folder / "videos").mkdir(parents=True)
    with (folder / "results_10M_train.csv").open("w") as file:
        file.write("videoid,contentUrl,duration,page_dir,name\n")
        for k in range(rows):
            place = "caf\u00e9" if k % 50 == 0 else "beach"
            name = f"A man walks along the {place} at sunset, slow motion shot number {k}"
            caption = f'"{name}"' if k % 3 == 0 else name.replace(",", "")
            page = f"{k // 1000:06d}_{k // 1000 + 50:06d}"
            url = f"https://ak.example.org/videos/{k}/preview/stock-footage-{k}.mp4"
            file.write(f"{k},{url},PT00H00M15S,{page},{caption}\n")


def measure(folder: Path, turn: int, parts: int) -> None:
    """In a process of its own: open the listing, read the rows of a part, print what it took."""
    from allinone.data.prepare import shards  # noqa: F401 - a part imports it; memory counts
    from allinone.data.prepare.listing import open_listing
    from allinone.data.prepare.options import PrepareOptions

    out = folder / "out"
    (out / "parts").mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    listing = open_listing(PrepareOptions(folder, out).resolved())
    opened = time.perf_counter() - start
    rows = sum(len(rows) for _, rows in listing.shards(turn, parts)) if turn else 0
    print(
        json.dumps(
            {
                "open_s": round(opened, 2),
                "rows": rows,
                "total_s": round(time.perf_counter() - start, 2),
                "imports_mib": round(before / 1024),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.measure[0]), int(options.measure[1]), options.parts)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_list(folder, options.rows)
        found = {}
        for title, turn in (("listing, once", 0), (f"part 1/{options.parts}", 1)):
            arguments = ["--parts", str(options.parts), "--measure", name, str(turn)]
            done = subprocess.run(
                [sys.executable, __file__, *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[title] = json.loads(done.stdout)
            print(title, found[title], flush=True)
        size = (folder / "out" / "listing.arrow").stat().st_size
        print(f"listing.arrow: {size / 2**20:.0f} MiB, {size / options.rows:.1f} bytes a row")
    return int(
        any(each["total_s"] > MOST_S or each["peak_mib"] > MOST_MIB for each in found.values())
    )


if __name__ == "__main__":
    sys.exit(main())
