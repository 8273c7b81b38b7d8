"""Re-encoded clips show the source at every moment: constant rate, upright, BT.601, short GOPs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from allinone.common.errors import DataError
from allinone.data.decoding.frames import decode_frames
from allinone.data.index import Index
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from tests.data.media import (
    read_frame_number,
    truncate,
    vfr_times,
    write_image,
    write_rotated,
    write_video,
)

CODECS = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "mjpeg": "mjpeg"}


def encode(
    folder: Path, **options: object
) -> tuple[PrepareSummary, list[tuple[dict[str, object], bytes]]]:
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".csv")
    (folder / "my.csv").write_text(
        "path,caption\n" + "".join(f"{name},caption of {name}\n" for name in names)
    )
    out = folder.with_suffix(".out")
    summary = prepare(PrepareOptions(folder / "my.csv", out, workers=2, **options), progress=False)  # type: ignore[arg-type]
    index = Index(out, "train")
    rows = [index[item] for item in range(len(index))]
    assert not list(out.rglob(".tmp-*"))
    return summary, [
        (row, (out / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]])
        for row in rows
    ]


def constant(times: list[float]) -> list[int]:
    """The frame to show at every tick of the average rate: the last one that has begun."""
    rate = (len(times) - 1) / times[-1]
    ticks = [round(time * rate) for time in times]
    return [max(k for k, tick in enumerate(ticks) if tick <= now) for now in range(ticks[-1] + 1)]


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_frame_is_shown_at_its_time_in_short_gops(tmp_path: Path, codec: str) -> None:
    folder = tmp_path / "in"
    write_video(
        folder / "constant.mp4", frames=30, rate=25, width=160, height=128, gop=30, audio=True
    )
    write_video(folder / "open.mp4", frames=30, gop=10, open_gop=True, width=160, height=128)
    write_video(folder / "variable.mp4", frames=24, times=vfr_times(24), width=160, height=128)
    summary, rows = encode(folder, codec=codec, short_side=64, gop=8)
    assert summary.bad == {}
    for row, content in rows:
        assert (row["width"], row["height"], row["codec"]) == (80, 64, CODECS[codec])
        shown = constant(vfr_times(24)) if row["key"] == "train/variable.mp4" else list(range(30))
        gop = 1 if codec == "mjpeg" else 8
        keyframes = list(range(0, len(shown), gop))
        assert row["keyframes"] == keyframes, "decoding may start at all of them: IDR frames"
        frames = decode_frames(content, list(range(len(shown))))
        assert [read_frame_number(frame) for frame in frames] == shown
        assert row["frame_times"] is None
        if row["key"] == "train/variable.mp4":
            assert row["duration_s"] == pytest.approx(24 / 23 * vfr_times(24)[-1], rel=0.02)
        with av.open(io.BytesIO(content)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
            assert container.streams.video[0].codec_context.colorspace in (5, 6)


def test_rotation_is_baked_in(tmp_path: Path) -> None:
    write_rotated(tmp_path / "in" / "r.mp4", 90, width=128, height=96)
    before = write_rotated(tmp_path / "r.mp4", 90, width=128, height=96).read_bytes()
    _, ((row, content),) = encode(tmp_path / "in", codec="h264")
    assert (row["width"], row["height"], row["rotation"]) == (96, 128, 0)
    upright, ours = (decode_frames(data, [5])[0].astype(int) for data in (before, content))
    assert np.abs(upright - ours).mean() < 4


def test_colours_of_bt_709_files_are_converted(tmp_path: Path) -> None:
    """DALI and our decoder assume BT.601: a copied BT.709 file is decoded with wrong colours."""
    true = np.array([200, 50, 50])
    path = tmp_path / "in" / "red.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = 1
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(
                np.broadcast_to(true.astype(np.uint8), (64, 64, 3)).copy(), format="rgb24"
            )
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(decode_frames(path.read_bytes(), [2])[0].mean((0, 1)) - true).max() > 8
    for codec in sorted(CODECS):
        _, ((_, content),) = encode(tmp_path / "in", codec=codec, gop=4)
        assert np.abs(decode_frames(content, [2])[0].mean((0, 1)) - true).max() < 5, codec
        (tmp_path / "in.out").rename(tmp_path / f"{codec}.out")


def test_sizes_are_even_and_never_grow() -> None:
    assert Encoding(short_side=256).scaled(1280, 720) == (456, 256)
    assert Encoding(short_side=256).scaled(720, 1280) == (256, 456)
    assert Encoding(short_side=256).scaled(63, 45) == (64, 44)
    assert Encoding(short_side=None).scaled(1280, 720) == (1280, 720)


def test_images_become_small_upright_jpegs(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_image(folder / "big.png", 5, 200, 100)
    Image.open(folder / "big.png").convert("LA").save(folder / "alpha.png")
    small = write_image(folder / "small.jpg", 6, 40, 30).read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "big.png").save(folder / "turned.jpg", exif=exif)
    truncate(write_video(folder / "cut.mp4", frames=48))
    truncate(write_image(folder / "cut.jpg", 7, 200, 100))
    summary, rows = encode(folder, short_side=50)
    found = {str(row["key"]): (row["width"], row["height"], row["container"]) for row, _ in rows}
    assert found == {
        "train/alpha.png": (100, 50, "jpg"),
        "train/big.png": (100, 50, "jpg"),
        "train/small.jpg": (40, 30, "jpg"),
        "train/turned.jpg": (50, 100, "jpg"),
    }
    assert next(content for row, content in rows if row["key"] == "train/small.jpg") == small
    assert set(summary.bad) <= {"undecodable", "truncated"}
    assert sum(summary.bad.values()) == 2


def test_encoding_options_are_checked_and_fixed_per_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", frames=6)
    encode(tmp_path / "in", gop=3)
    assert json.loads((tmp_path / "in.out" / "prepare.json").read_text())["gop"] == 3
    with pytest.raises(DataError, match="gop: 3 → 4"):
        encode(tmp_path / "in", gop=4)
    with pytest.raises(DataError, match="--gop must be at least 1, got 0"):
        encode(tmp_path / "in", gop=0)
