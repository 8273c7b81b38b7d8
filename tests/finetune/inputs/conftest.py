"""A media folder with one file of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.media_library import MediaLibrary
from tests.data.media import truncate, write_image, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 24 frames at 12 per second, an image, a folder of 9 images, a broken file."""
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a" / "clip.mp4", gop=6)
    write_video(root / "Loud.AVI", codec="mpeg4")
    write_video(root / "moving.gif", codec="gif", rate=10)
    write_video(root / "movie_00.01.02.345-00.01.05.678.mkv", gop=6)
    write_image(root / "still.png", 77)
    for number in range(1, 10):
        write_image(root / "frames" / f"{number:05d}.jpg", 100 + number)
    truncate(write_video(root / "cut.mp4", frames=48))
    return root


def library(folder: Path, cache: Path, *media: Media) -> MediaLibrary:
    found = MediaLibrary(folder, cache, source="the archive", picture_rate=3.0)
    found.prepare(media, quiet=True)
    return found
