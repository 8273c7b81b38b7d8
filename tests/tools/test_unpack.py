"""`allinone unpack`: Parquet files of Hugging Face data sets become tars that `prepare` reads."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allinone.common.errors import DataError, InputError
from allinone.tools.unpack import UnpackOptions, extension_of, main, media_column
from tests.data.helpers import prepare_source
from tests.data.media import write_image, write_video

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def written(path: Path, columns: dict[str, pa.Array]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_rows_with_bytes_become_samples_of_their_captions(tmp_path: Path) -> None:
    jpg = write_image(tmp_path / "a.jpg").read_bytes()
    mp4 = write_video(tmp_path / "b.mp4", frames=6).read_bytes()
    (tmp_path / "data").mkdir()
    write_image(tmp_path / "data" / "c.jpg")
    media: list[dict[str, Any]] = [
        {"bytes": jpg, "path": None},
        {"bytes": mp4, "path": "b.MP4"},
        {"bytes": None, "path": "c.jpg"},
        {"bytes": None, "path": "../a.jpg"},
    ]
    columns = {
        "image": pa.array(media, IMAGE),
        "re_caption": pa.array(["a cat", "a dog", "a bird", "outside"]),
        "text": pa.array(["cat", "dog", "bird", "x"]),
    }
    written(tmp_path / "data" / "train-00000-of-00002.parquet", columns)
    later = {name: column.slice(0, 1) for name, column in columns.items()}
    written(tmp_path / "data" / "train-00001-of-00002.parquet", later)
    assert main([str(tmp_path / "data"), "--out", str(tmp_path / "tars")]) == 0
    first = members(tmp_path / "tars" / "train-00000-of-00002.tar")
    assert [name for name in first if not name.endswith("json")] == [
        "000000000.jpg",
        "000000001.mp4",
        "000000002.jpg",
    ], "a path that leaves the folder is not followed"
    assert first["000000000.jpg"] == jpg
    assert json.loads(first["000000001.json"]) == {"re_caption": "a dog", "text": "dog"}
    second = members(tmp_path / "tars" / "train-00001-of-00002.tar")
    assert "000000004.jpg" in second, "rows are numbered over all files"
    _, good, bad = prepare_source(
        tmp_path / "tars", tmp_path / "out", caption_fields=("re_caption", "text")
    )
    captions = {key.rpartition("/")[2]: row["captions"] for key, row in good.items()}
    assert captions["000000001"] == ["a dog", "dog"]
    assert [reason for reason, _ in bad.values()] == ["missing"], "the row outside the folder"


def test_urls_of_downloaded_files_are_found_by_their_template(tmp_path: Path) -> None:
    url = "https://example.org/a.jpg?w=1"
    write_image(tmp_path / "images" / f"{zlib.crc32(url.encode())}.jpg")
    columns = {"url": pa.array([url, "https://example.org/gone.jpg"]), "text": pa.array(["a", "b"])}
    path = written(tmp_path / "list.parquet", columns)
    line = [str(path), "--out", str(tmp_path / "tars"), "--media", "url"]
    with pytest.raises(InputError, match="--files DIR"):
        media_column(pq.read_schema(path), UnpackOptions(path, tmp_path, "url"), path)
    assert main([*line, "--files", str(tmp_path / "images"), "--names", "{crc32}.jpg"]) == 0
    found = members(tmp_path / "tars" / "list.tar")
    assert list(found) == ["000000000.jpg", "000000000.json", "000000001.json"]


def test_an_interrupted_unpacking_leaves_no_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"video": pa.array([b"\xff\xd8\xff", b"x"]), "text": pa.array(["a", "b"])}
    path = written(tmp_path / "a.parquet", columns)
    line = [str(path), "--out", str(tmp_path / "tars")]
    with monkeypatch.context() as patch:
        patch.setattr("allinone.tools.unpack.extension_of", _interrupted)
        assert main(line) == 130, "the exit code of an interrupted program"
    assert not list((tmp_path / "tars").glob("*"))
    assert main(line) == 0
    before = (tmp_path / "tars" / "a.tar").stat().st_mtime_ns
    assert main(line) == 0
    assert (tmp_path / "tars" / "a.tar").stat().st_mtime_ns == before, "finished tars are kept"


def _interrupted(content: bytes, name: str) -> str:
    raise KeyboardInterrupt


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    assert main([str(tmp_path / "a.parquet"), "--out", str(tmp_path / "tars")]) != 0
    path = written(tmp_path / "b.parquet", {"text": pa.array(["a"])})
    with pytest.raises(InputError, match="no column that holds bytes"):
        media_column(pq.read_schema(path), UnpackOptions(path, tmp_path), path)
    with pytest.raises(InputError, match="no column 'image'"):
        media_column(pq.read_schema(path), UnpackOptions(path, tmp_path, "image"), path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.csv").write_text("path,caption\nx.mp4,y\n")
    with pytest.raises(DataError, match="--caption-fields re_caption"):
        prepare_source(tmp_path / "a.csv", tmp_path / "out", caption_fields=("re_caption",))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_pictures_are_told_apart_as_pillow_writes_them(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8)).save(path)
    known = "" if suffix == "bmp" else suffix
    assert extension_of(path.read_bytes(), "") == known
    assert extension_of(path.read_bytes(), f"x.{suffix}") == suffix


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")]
)
def test_videos_are_told_apart_as_ffmpeg_writes_them(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames=4, codec=codec)
    assert extension_of(path.read_bytes(), "") == suffix
