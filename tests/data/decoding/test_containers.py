"""A media file never leads to other files, to the network or to another program."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from allinone.common.errors import AllInOneError
from allinone.data.decoding.containers import FORMATS, open_media
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.prepare import encode
from allinone.data.prepare.probe import Limits, ProbeError, probe, probe_packets
from allinone.data.prepare.worker import ClipTask, examine
from tests.data.media import (
    read_frame_number,
    rgb_frames,
    write_audio_only,
    write_image,
    write_video,
)

CONCAT = "ffconcat version 1.0\nfile secret.mp4\n"
HLS = (
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
SDP += "a=rtpmap:96 H264/90000\n"

READERS: list[Callable[[Path], object]] = [
    lambda path: probe(path.read_bytes(), "mp4", Limits()),
    lambda path: probe_packets(path, "mp4", Limits()),
    lambda path: probe_packets(path.read_bytes(), "mp4", Limits()),
    lambda path: decode_frames(path, [0]),
    lambda path: decode_frames(path.read_bytes(), [0]),
    lambda path: trim(path.read_bytes(), [0], 24, Timeline(rate=12.0)),
    lambda path: examine(ClipTask((path,), 0, None, "mp4"), Limits()),
]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_video(tmp_path / "secret.mp4")


@pytest.mark.parametrize("text", [CONCAT, HLS, "secret.mp4\n"], ids=["concat", "hls", "text"])
@pytest.mark.parametrize("read", READERS)
def test_a_list_of_files_named_mp4_is_refused(
    secret: Path, tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.mp4"
    path.write_text(text)
    with pytest.raises(AllInOneError):
        read(path)


def test_ffmpeg_alone_opens_the_file_that_a_list_names(secret: Path, tmp_path: Path) -> None:
    """The attack that the tests of this file try works without the list of formats."""
    path = tmp_path / "a.mp4"
    path.write_text(CONCAT)
    assert len(rgb_frames(path)) == 24


@pytest.mark.parametrize("read", READERS)
def test_no_socket_is_opened_for_a_session_description(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_port:
        probe_port.bind(("127.0.0.1", 0))
        port = probe_port.getsockname()[1] & ~1
    path = tmp_path / "a.mp4"
    path.write_text(SDP.format(port=port))
    opened: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        real = av.open

        def watch(*args: object, **options: object) -> object:
            container = real(*args, **options)  # type: ignore[call-overload]
            opened.append(container)
            return container

        patch.setattr(av, "open", watch)
        with pytest.raises(AllInOneError):
            read(path)
    assert not opened, "the demuxer was accepted: its sockets are open"


@pytest.mark.parametrize("name", ["concat:secret.mp4|secret.mp4", "http:a.mp4", "subfile,,start,0"])
def test_a_file_name_is_never_a_protocol(
    secret: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"no media")
    with pytest.raises(DecodeError):
        decode_frames(Path(name), [0])
    Path(name).unlink()
    write_video(tmp_path / "good.mp4").rename(name)
    assert read_frame_number(decode_frames(Path(name), [3])[0]) == 3


def test_a_pattern_in_a_file_name_is_part_of_the_name(tmp_path: Path) -> None:
    write_image(tmp_path / "001.jpg", 1)
    write_image(tmp_path / "real.jpg", 2).rename(tmp_path / "%03d.jpg")
    assert read_frame_number(decode_frames(tmp_path / "%03d.jpg", [0])[0]) == 2


def test_postscript_named_png_starts_no_program(tmp_path: Path) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(_written(tmp_path / "a.png", eps)) as image:
        assert image.format == "EPS", "Pillow alone would hand it to Ghostscript"
    with pytest.raises(UnidentifiedImageError):
        encode.encode_image(eps, 64)
    for extension in ("png", "jpg"):
        with pytest.raises(ProbeError):
            probe(eps, extension, Limits())


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("m4v", "libx264"),
        ("3gp", "libx264"),
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
        ("mpg", "mpeg2video"),
        ("wmv", "mpeg4"),
        ("flv", "libx264"),
        ("gif", "gif"),
        ("apng", "apng"),
    ],
)
def test_usual_containers_open_as_before(tmp_path: Path, suffix: str, codec: str) -> None:
    rate = 25 if suffix == "mpg" else 12
    options = {"pixel_format": "rgb24"} if codec == "apng" else {}
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, rate=rate, **options)  # type: ignore[arg-type]
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        name = container.format.name
    for content in (path, path.read_bytes()):
        with open_media(content) as container:
            assert container.format.name == name
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "avif", "gif", "jp2"])
def test_usual_images_open_as_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.effect_noise((64, 48), 30).convert("RGB").save(path)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for content in (path, path.read_bytes()):
        with open_media(content) as container:
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.array_equal(found, expected)


def test_sound_alone_is_still_named(tmp_path: Path) -> None:
    path = write_audio_only(tmp_path / "a.mp4")
    with pytest.raises(ProbeError, match="sound"):
        probe(path.read_bytes(), "mp4", Limits())


def test_every_format_of_the_list_is_one_of_ffmpegs() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(FORMATS.split(",")) <= known


def test_other_demuxers_are_refused_by_content(tmp_path: Path) -> None:
    """Formats that hold no video, or refer to others, in a file of any name."""
    contents = {
        "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        "ffmetadata": b";FFMETADATA1\ntitle=x\n",
        "webvtt": b"WEBVTT\n\n00:00.000 --> 00:01.000\nx\n",
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nx\n\n",
    }
    for name, content in contents.items():
        with pytest.raises((FFmpegError, ValueError)):
            open_media(_written(tmp_path / f"{name}.mp4", content))
