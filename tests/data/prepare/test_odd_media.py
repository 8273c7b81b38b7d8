"""Files that are unusual as files, or whose frames or clocks change in the middle."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import av
import pytest

from allinone.common.paths import ROOT
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.prepare.encode import CODECS
from allinone.data.prepare.pipeline import PrepareOptions
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.data.prepare.worker import (
    ClipTask,
    _answer,
    find_file,
    reencode,
    steady_rate,
)
from tests.data.helpers import prepare_source
from tests.data.media import read_frame_number, write_image, write_video

LIMITS = Limits()
SMALL = PrepareOptions(Path("x"), Path("x"), codec="h264", gop=8).encoding
assert SMALL is not None


def own_list(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my.csv").write_text(
        "path,caption\n" + "".join(f"{name},caption of {name}\n" for name in names)
    )
    return folder / "my.csv"


def shown(content: bytes, number: int) -> list[int]:
    return [read_frame_number(frame) for frame in decode_frames(content, list(range(number)))]


def test_what_is_no_file_is_a_bad_row_not_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_video(folder / "good.mp4", frames=6)
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "two.mp4").symlink_to("one.mp4")
    (folder / "one.mp4").symlink_to("two.mp4")
    (folder / "gone.mp4").symlink_to("nothing.mp4")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    bound = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket has at most 107 bytes
    bound.bind("socket.mp4")
    os.chdir(here)
    long, below = "x" * 300 + ".mp4", "good.mp4/below.mp4"
    names = ["good", "self", "two", "gone", "folder", "pipe", "device", "socket"]
    listed = [*(f"{name}.mp4" for name in names), long, below]
    _, good, bad = prepare_source(own_list(folder, listed), tmp_path / "out")
    bound.close()
    assert set(good) == {"train/good.mp4"}
    reasons = {key.removeprefix("train/"): reason for key, (reason, _) in bad.items()}
    assert reasons.pop("gone.mp4") == "missing"
    assert set(reasons) == set(listed) - {"good.mp4", "gone.mp4"}
    assert set(reasons.values()) == {"unreadable"}
    assert "a pipe" in bad["train/pipe.mp4"][1]


def test_an_image_with_a_long_name_does_not_stop_the_list(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    urls = [
        "http://x.org/a.jpg",
        "http://x.org/" + "long-name-" * 30 + ".jpg",
        "http://x.org/" + "n" * 252,  # with .jpeg it is too long
    ]
    content = {"image_urls": urls, "user_ids": [""] * 3, "captions": ["a", "b", "c"]}
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(content))
    _, good, bad = prepare_source(tmp_path, tmp_path / "out")
    assert set(good) == {"train/a.jpg"}
    assert sorted(reason for reason, _ in bad.values()) == ["missing", "unreadable"]
    again, _, _ = prepare_source(tmp_path, tmp_path / "out", retry=("missing", "unreadable"))
    assert again.bad == {"missing": 1, "unreadable": 1}


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EMFILE, errno.ENOTCONN, errno.ETIMEDOUT]
)
def test_errors_of_the_storage_condemn_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    path = write_video(tmp_path / "a.mp4", frames=6)
    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        find_file([path])
    reason, error = _answer(ClipTask((path,), 0, None, "mp4"), LIMITS)
    assert reason is None
    assert isinstance(error, OSError)


def changing(path: Path, sizes: list[tuple[int, int]], codec: str = "mjpeg") -> Path:
    """A video of ten frames of each size, which no muxer checks: raw pictures or joined TS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (width, height) in enumerate(sizes):
        part = path.with_name(f"part{number}.ts" if codec != "mjpeg" else f"part{number}.mkv")
        write_video(
            part, frames=10, codec=codec, rate=25, width=width, height=height, first=10 * number,
            gop=10, b_frames=0,
        )  # fmt: skip
        parts.append(part)
    if codec == "mjpeg":
        _mux_pictures(path, parts)
    else:
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def _mux_pictures(path: Path, parts: list[Path]) -> None:
    with av.open(str(path), "w") as target:
        with av.open(str(parts[0])) as first:
            stream = target.add_stream_from_template(first.streams.video[0])
        number = 0
        for part in parts:
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.time_base = stream.time_base
                        packet.pts = packet.dts = round(number / 25 / float(stream.time_base))
                        target.mux(packet)
                        number += 1


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "mjpeg"), ("a.ts", "libx264")])
def test_clips_whose_size_changes_are_named_or_scaled(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = changing(tmp_path / "in" / name, [(64, 64), (96, 96)], codec)
    content, extension = path.read_bytes(), path.suffix[1:]
    with pytest.raises(ProbeError, match="64x64 yuv420p, from frame 10 on 96x96 yuv420p") as caught:
        probe(content, extension, LIMITS)
    assert caught.value.reason == "frames_change"
    for target in CODECS:
        encoding = PrepareOptions(path, path, codec=target, gop=8).encoding  # type: ignore[arg-type]
        assert encoding is not None
        columns, made = reencode(content, extension, LIMITS, encoding)
        assert made is not None
        assert (columns["width"], columns["height"], columns["frames"]) == (64, 64, 20)
        assert shown(made, 20) == list(range(20))


def joined(path: Path, starts: list[float], frames: int = 60) -> bytes:
    """Transport streams that begin at the given seconds, joined as `cat` joins them."""
    content = b""
    for number, start in enumerate(starts):
        times = [start + k / 25 for k in range(frames)]
        part = write_video(
            path.with_name("part.ts"), frames=frames, times=times, first=100 * number, rate=25
        )
        content += part.read_bytes()
    return content


@pytest.mark.parametrize("starts", [[0, 0], [0, 2000], [0, 2.44], [5, 0, 0.4], [0, 30, 3], [0, 5]])
def test_joined_recordings_keep_every_frame(tmp_path: Path, starts: list[float]) -> None:
    content = joined(tmp_path / "a.ts", starts)
    columns, made = reencode(content, "ts", LIMITS, SMALL)
    assert made is not None
    wanted = [100 * part + k for part in range(len(starts)) for k in range(60)]
    pause = 5 - 2.4 if starts == [0, 5] else 0  # too short for a jump: the picture stays
    assert columns["duration_s"] == pytest.approx(len(wanted) / 25 + pause, abs=0.05)
    assert list(dict.fromkeys(shown(made, columns["frames"]))) == wanted


def test_a_clock_that_goes_back_is_named_where_files_are_copied(tmp_path: Path) -> None:
    """Frame 70 would be found by the time of frame 10."""
    with pytest.raises(ProbeError, match=r"frame 60 is shown at .*--short-side") as caught:
        probe(joined(tmp_path / "a.ts", [0, 0]), "ts", LIMITS)
    assert caught.value.reason == "clock_goes_back"
    content = joined(tmp_path / "b.ts", [0, 2.4])  # a clock that goes on
    columns = probe(content, "ts", LIMITS)
    frames = decode_frames(content, [70], Timeline.of(columns))
    assert [read_frame_number(frame) for frame in frames] == [110]


@pytest.mark.parametrize("b_frames", [0, 3])
def test_avi_with_b_frames_keeps_every_frame(tmp_path: Path, b_frames: int) -> None:
    path = write_video(tmp_path / "a.avi", frames=50, rate=25, gop=25, b_frames=b_frames)
    columns, made = reencode(path.read_bytes(), "avi", LIMITS, SMALL)
    assert made is not None
    assert shown(made, columns["frames"]) == list(range(50))


def test_a_far_last_frame_does_not_lower_the_rate(tmp_path: Path) -> None:
    times = [k / 25 for k in range(99)] + [200.0]
    content = write_video(tmp_path / "a.mkv", frames=100, times=times, rate=25).read_bytes()
    columns, made = reencode(content, "mkv", LIMITS, SMALL)
    assert made is not None
    assert columns["frame_rate"] == pytest.approx(25, rel=1e-3)
    assert columns["frames"] == 200 * 25 + 1
    wanted = [0, 50, 98, 2000, 5000]
    frames = decode_frames(made, wanted)
    assert [read_frame_number(frame) for frame in frames] == [0, 50, 98, 98, 99]
    with pytest.raises(ProbeError, match=r"200 s .*--max-duration-s 100") as caught:
        reencode(content, "mkv", Limits(max_duration_s=100), SMALL)
    assert caught.value.reason == "too_long"


def test_the_rate_of_ordinary_variable_clips_is_their_average() -> None:
    slides = [0.0, 15.0, 31.0, 44.0]
    screen = [0.0, 0.1, 0.9, 1.0, 1.7, 1.8, 2.5]
    for times in (slides, screen, [0.0, 0.0, 0.0], [1.0]):
        assert steady_rate(times, 0.125) == (0.125, 0.0)
    assert steady_rate([0, 1, 2, 3, 1000, 1001], 5 / 1001) == (1.0, 997.0)


PROGRAM = """
import hashlib, sys
from pathlib import Path
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits
from allinone.data.prepare.worker import reencode
for path in sys.argv[2:]:
    encoding = Encoding(sys.argv[1], 128, 25)
    made = reencode(Path(path).read_bytes(), "mp4", Limits(), encoding)[1]
    print(hashlib.sha256(made).hexdigest())
"""


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_bytes_do_not_depend_on_uninitialised_memory(codec: str) -> None:
    """glibc fills new memory with the complement of MALLOC_PERTURB_ (mallopt(3))."""
    demo = sorted((ROOT / "data" / "demo" / "videos").rglob("*.mp4"))[:3]
    made = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, codec, *map(str, demo)],
            env={**os.environ, "MALLOC_PERTURB_": fill},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("0", "85", "255")
    }
    assert len(made) == 1
    assert made.pop().count("\n") == 3
