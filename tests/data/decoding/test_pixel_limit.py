"""Pictures above --max-pixels are named while preparing, and refused before they are decoded."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import pytest
from PIL import Image

from allinone.common.errors import InputError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.frames import DecodeError, decode_frames
from allinone.data.loading.loader import ClipSource
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.media_library import MediaError, MediaLibrary
from tests.data.helpers import prepare_source
from tests.data.media import write_image, write_video
from tests.data.prepare.test_odd_media import own_list

LIMIT = 64 * 64
LARGE = {"width": 96, "height": 96}
VIDEOS = {
    "a.mp4": {},
    "b.ts": {},
    "c.webm": {"codec": "libvpx-vp9"},
    "d.avi": {"codec": "mjpeg"},
    "e.mpg": {"codec": "mpeg2video", "rate": 25},
    "f.gif": {"codec": "gif", "rate": 10},
}
IMAGES = ["g.jpg", "h.png", "i.webp", "j.bmp", "k.tiff"]


def write(folder: Path, name: str, size: dict[str, int]) -> bytes:
    if name in VIDEOS:
        return write_video(folder / name, frames=6, **VIDEOS[name], **size).read_bytes()  # type: ignore[arg-type]
    return write_image(folder / name, 0, **size).read_bytes()


@pytest.mark.parametrize("name", [*VIDEOS, *IMAGES])
def test_pictures_above_the_limit_are_refused_by_name(tmp_path: Path, name: str) -> None:
    limits = Limits(max_pixels=LIMIT)
    good = write(tmp_path, name, {"width": 64, "height": 64})
    assert probe(good, name.rpartition(".")[2], limits)["width"] == 64
    decode_frames(good, [0], max_pixels=LIMIT)
    content = write(tmp_path, name, LARGE)
    with pytest.raises(ProbeError, match="96 x 96 pixels, more than --max-pixels 4096") as error:
        probe(content, name.rpartition(".")[2], limits)
    assert error.value.reason == "too_many_pixels"
    with pytest.raises(DecodeError, match="more than --max-pixels"):
        decode_frames(content, [0], max_pixels=LIMIT)
    assert probe(content, name.rpartition(".")[2], Limits(max_pixels=0))["width"] == 96


def test_a_stream_that_grows_above_the_limit_is_refused(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts", frames=12).read_bytes()
    large = write_video(tmp_path / "b.ts", frames=12, **LARGE).read_bytes()
    with pytest.raises(ProbeError):
        probe(small + large, "ts", Limits(max_pixels=LIMIT), lambda frame: None)


def test_preparing_reading_and_fine_tuning_have_the_limit(tmp_path: Path) -> None:
    source = own_list(tmp_path / "in", ["a.mp4", "b.mp4", "c.png"])
    write_video(source.parent / "a.mp4", frames=6)
    write_video(source.parent / "b.mp4", frames=6, **LARGE)
    write_image(source.parent / "c.png", 0, **LARGE)
    _, good, bad = prepare_source(source, tmp_path / "out", max_pixels=LIMIT)
    assert list(good) == ["train/a.mp4"]
    assert [reason for reason, _ in bad.values()] == ["too_many_pixels"] * 2
    prepare_source(source, tmp_path / "all")
    clips = ClipSource(
        DatasetSpec(tmp_path / "all", "train"), ClipConfig(3, 64), DataConfig(max_pixels=LIMIT)
    )
    clips.eval_sample(0)
    for row in (1, 2):
        with pytest.raises(DecodeError, match="96 x 96 pixels, more than --max-pixels 4096"):
            clips.eval_sample(row)
    media = [Media(name, name) for name in ("a.mp4", "b.mp4", "c.png")]
    for limit, number in ((LIMIT, 1), (0, 3)):  # the refusal is not remembered
        library = MediaLibrary(source.parent, tmp_path / "cache", source="x", max_pixels=limit)
        library.prepare(media, quiet=True)
        assert sum(not library.reason(item) for item in media) == number
    reader = MediaReader(library, ClipConfig(3, 64), DataConfig(max_pixels=LIMIT))
    with pytest.raises(MediaError, match="more than --max-pixels"):
        reader(VisualInput(media[1]), None)


def test_a_png_bomb_of_14000_squared_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    target = io.BytesIO()
    Image.new("1", (1, 1)).save(target, "PNG")
    content = bytearray(target.getvalue())
    # IHDR: width and height from byte 16, CRC after 17 bytes from its type on
    content[16:24] = (14_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ProbeError, match="196000000 pixels") as error:
        probe(path.read_bytes(), "png", Limits())
    assert error.value.reason == "too_many_pixels"
    with pytest.raises(DecodeError):
        decode_frames(path.read_bytes(), [0])


def test_prediction_refuses_a_large_file(tmp_path: Path) -> None:
    from allinone.model import AllInOneConfig
    from allinone.tools.inspection.media_inputs import ClipReader

    path = write_image(tmp_path / "a.png", 0, **LARGE)
    reader = ClipReader(
        AllInOneConfig.from_size("nano"), DataConfig(max_pixels=LIMIT, backend="cpu")
    )
    with pytest.raises(InputError, match="more than --max-pixels"):
        reader(path)
