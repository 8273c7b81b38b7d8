#!/usr/bin/env python3
"""Search an index of videos, made by `allinone index`, by text, image or clip.

allinone search "a dog in the snow" --index index
allinone search --like photo.jpg --index index
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tyro.conf import Positional

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.formatting import one_line
from allinone.common.tables import plain_table
from allinone.common.validation import COUNT, NOT_NEGATIVE, require
from allinone.tools.inspection.options import Device


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the command. Give a text or --like."""

    text: Positional[str | None] = None
    """What to search for."""
    like: Path | None = None
    """An image or video: find clips that look like it."""
    index: Path
    """Folder that `allinone index` wrote."""
    checkpoint: Path | None = None
    """The model that made the index; default: where it was then."""
    top: int = 5
    """Number of results."""
    rerank: int = 0
    """Rank this many of the best clips again by the joint pass of text and clip: slower, and
    better with a model that was trained to match."""
    all_clips: bool = False
    """Show every clip of a long video, not only its best one."""
    device: Device = "auto"
    """auto takes the GPU if torch finds one."""
    json: bool = False
    """Print one line of JSON instead of a table."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require(self, COUNT, ("top",))
        require(self, NOT_NEGATIVE, ("rerank",))
        if (self.text is None) == (self.like is None):
            raise InputError("give what to search for: a text in quotes, or --like FILE; not both")


def _run(argv: Sequence[str]) -> int:
    options = parse(SearchOptions, argv, prog="tools/search.py", description=__doc__)
    options.check()
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.video_index.search import Searcher
    from allinone.tools.video_index.store import VideoIndex

    index = VideoIndex(options.index)
    checkpoint = options.checkpoint or Path(index.manifest.checkpoint)
    searcher = Searcher(load_checkpoint(checkpoint, options.device), index)
    query = options.text if options.like is None else options.like
    assert query is not None
    hits = searcher.search(
        query, top=options.top, rerank=options.rerank, all_clips=options.all_clips
    )
    if options.json:
        print(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
        return 0
    rows = [["clip", "seconds", "similarity", "match"]]
    for hit in hits:
        end = "end" if hit.clip.end_s is None else f"{hit.clip.end_s:.1f}"
        seconds = f"{hit.clip.start_s:.1f} – {end}"
        rows.append([hit.clip.path, seconds, f"{hit.score:.3f}", hit.match_text])
    print(plain_table(rows))
    for hit in hits:
        if hit.note:
            print(
                f"note: {one_line(hit.clip.path)}: {hit.note}; `allinone index` updates the index"
            )
    if by := next((hit.match_by for hit in hits if hit.match_by), ""):
        print(f"match: {by}")
    print(f"{len(index):,} clips searched, in {index.manifest.root}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
