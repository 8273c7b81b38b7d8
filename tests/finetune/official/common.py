"""Helpers of the writers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.media import write_image, write_video


@dataclass(frozen=True)
class MadeUpBenchmark:
    """Folders of a made-up benchmark."""

    annotations: Path
    media: Path


def make_sample(root: Path, media: Sequence[str] = (), **video: Any) -> MadeUpBenchmark:
    """Folders of a sample, with one distinct tiny file per media path: a picture for .jpg, and a
    video otherwise."""
    sample = MadeUpBenchmark(root / "annotations", root / "media")
    sample.annotations.mkdir(parents=True)
    for number, name in enumerate(media):
        path = sample.media / name
        if path.suffix == ".jpg":
            write_image(path, 7 * number)
        else:
            codec = {".avi": "mpeg4", ".gif": "gif", ".webm": "libvpx"}.get(
                path.suffix.lower(), "libx264"
            )
            write_video(path, frames=9, gop=3, rate=9, codec=codec, first=16 * number, **video)
    return sample


def write_text(folder: Path, name: str, text: str) -> Path:
    """Write bytes as given, without translation of line ends."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_json(folder: Path, name: str, content: Any) -> Path:
    return write_text(folder, name, json.dumps(content))


def write_json_lines(folder: Path, name: str, records: Iterable[Any]) -> Path:
    return write_text(folder, name, "".join(f"{json.dumps(record)}\n" for record in records))
