"""Lists of any format: good rows are read, everything else is a bad row or a DataError."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.index import Index
from allinone.data.sources import ReadOptions, read
from allinone.data.sources.reading import stream_json
from allinone.tools import prepare as prepare_command
from tests.data.helpers import howto, prepare_source, record
from tests.data.media import write_image, write_video

URL = "https://example.org/pictures/{}.jpg?size=big"


def test_webvid_columns_are_found_by_name(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "videos" / "p1" / "7.mp4", frames=6)
    write_video(tmp_path / "videos" / "8.mp4", frames=6)
    text = (
        b'videoid,name,page_idx,page_dir,duration,contentUrl\n7,"a kite, red",1,p1,PT1S,u\n8,no'
        b" folder,1,,PT1S,u\n9,caf\xe9,1,p1,PT1S,u\n"
    )
    (tmp_path / "results_2M_val.csv").write_bytes(text)
    summary, good, bad = prepare_source(tmp_path, tmp_path / "out")
    assert {key: row["captions"] for key, row in good.items()} == {
        "val/7": ["a kite, red"],
        "val/8": ["no folder"],
    }
    assert bad["val/line-4"][0] == "bad_row"
    assert "iconv" in bad["val/line-4"][1]
    assert summary.official == ("results_2M_val.csv, val: 3 rows, but officially 5,000",)


def test_large_json_is_read_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"a": [1, 2.5, "x, y"], "b": {"c": "ü" * 40}, "d": 1234567890, "e": True}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for size in (1, 3, 7, 1000):
        monkeypatch.setattr("allinone.data.sources.reading.CHUNK", size)
        assert dict(stream_json(path)) == content
    path.write_text("[10, [], 30 ]")
    assert list(stream_json(path)) == [("0", 10), ("1", []), ("2", 30)]
    for text in ("", "[1, 2", '{"a": 1 "b": 2}', '{"a" 1}', "[1 2]", "17", '{"a": [1,'):
        path.write_text(text)
        with pytest.raises(DataError, match="download it again"):
            list(stream_json(path))


def test_own_lists_may_name_splits_but_no_folders(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=6)
    (tmp_path / "my.csv").write_text("path,caption,split\na.mp4,x,dev\na.mp4,x,../up\n,x,dev\n")
    _, good, bad = prepare_source(tmp_path / "my.csv", tmp_path / "out")
    assert set(good) == {"dev/a.mp4"}
    assert {reason for reason, _ in bad.values()} == {"bad_row"}
    assert len(bad) == 2


def test_only_own_lists_may_contain_absolute_paths(tmp_path: Path) -> None:
    video = write_video(tmp_path / "elsewhere" / "a.mp4", frames=6)
    (tmp_path / "lists").mkdir()
    own = tmp_path / "lists" / "my.csv"
    own.write_text(f"path,caption\n{video},x\n{video.parent}/../a.mp4,y\n/nowhere/b.mp4,z\n")
    _, good, bad = prepare_source(own, tmp_path / "out")
    (row,) = good.values()
    assert (row["captions"], row["source"]) == (["x"], str(video))
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "train/line-3": "bad_row",
        "train//nowhere/b.mp4": "missing",
    }
    official = tmp_path / "lists" / "results_2M_val.csv"
    official.write_text(f"videoid,page_dir,name\na,{video.parent},x\n")
    assert [row.reason for row in read(official, "webvid", ReadOptions())] == ["bad_row"]


def test_surrogates_and_control_characters_are_replaced(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    content = {
        "image_urls": [URL.format(1)],
        "user_ids": [""],
        "captions": ["a \ud83d broken\n\temoji\0"],
    }
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(content))
    _, good, _ = prepare_source(tmp_path, tmp_path / "out")
    assert [row["captions"] for row in good.values()] == [["a ? broken emoji?"]]


EXCLUDE_LISTS = {
    "plain": b"a.mp4\nb.mp4\n",
    "byte order mark, CRLF": b"\xef\xbb\xbfa.mp4\r\nb.mp4\r\n",
    "byte order mark, no last line end": b"\xef\xbb\xbfa.mp4\nb.mp4",
    "old Mac line ends": b"a.mp4\rb.mp4\r",
    "spaces and empty lines": b"\n  a.mp4  \n\n\tb.mp4\n\n",
}


@pytest.mark.parametrize("name", EXCLUDE_LISTS)
def test_every_id_of_an_exclude_list_is_excluded(tmp_path: Path, name: str) -> None:
    for clip in "abc":
        write_video(tmp_path / f"{clip}.mp4", frames=4)
    source = tmp_path / "my.csv"
    source.write_text("path,caption\na.mp4,x\nb.mp4,y\nc.mp4,z\n")
    (tmp_path / "ids.txt").write_bytes(EXCLUDE_LISTS[name])
    summary, good, bad = prepare_source(source, tmp_path / "out", exclude=tmp_path / "ids.txt")
    assert list(good) == ["train/c.mp4"]
    assert bad["train/a.mp4"][0] == bad["train/b.mp4"][0] == "excluded"
    assert summary.warnings == ()


def test_ids_that_exclude_nothing_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a  b.mp4", "c.mp4"):
        write_video(tmp_path / name)
    (tmp_path / "my.csv").write_text("path,caption\na  b.mp4,x\nc.mp4,y\n")
    ids = [f"zero{number:02d}.mp4" for number in range(12)]
    (tmp_path / "ids.txt").write_text("\n".join(["a  b.mp4", *ids]))
    options = ["--exclude", str(tmp_path / "ids.txt"), "--workers", "1", "--max-bad-share", "1"]
    command = [str(tmp_path / "my.csv"), "--out", str(tmp_path / "out"), *options]
    for _ in range(2):  # also of a folder that is already prepared
        assert prepare_command.main(command) == 0
        shown = capsys.readouterr().out
        assert "12 of 13 ids match no row" in shown
        assert "zero00.mp4" in shown
        assert "and 2 more" in shown
        assert "a b.mp4" not in shown
    index = Index(tmp_path / "out", "train")
    assert [index[item]["key"] for item in range(len(index))] == ["train/c.mp4"]


@pytest.mark.parametrize("content", ["AAA\n".encode("utf-16"), b"caf\xe9\n", b"\n\n", b""])
def test_an_exclude_list_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"UTF-8|names no ids"):
        prepare_source(howto(tmp_path / "in"), tmp_path / "out", exclude=tmp_path / "ids.txt")


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_video_wins_over_its_thumbnail_in_a_tar(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4").read_bytes()
    flv = write_video(tmp_path / "v.flv").read_bytes()
    gif = write_video(tmp_path / "v.gif", codec="gif", rate=10).read_bytes()
    photo = write_image(tmp_path / "p.jpg").read_bytes()
    png = write_image(tmp_path / "p.png").read_bytes()
    samples: dict[str, dict[str, bytes]] = {
        "thumbnail": {"jpg": photo, "mp4": video},
        "behind": {"mp4": video, "png": png},
        "upper": {"JPG": photo, "MP4": video},
        "flash": {"jpg": photo, "flv": flv},
        "preview": {"gif": gif, "jpg": photo, "mp4": video},
        "animated": {"gif": gif},
        "photo": {"jpg": photo},
        "frames": {"jpg": photo, "0.jpg": photo, "mask.png": png},
        "two_videos": {"mp4": video, "flv": flv},
        "two_images": {"jpg": photo, "png": png},
        "gif_or_jpg": {"gif": gif, "jpg": photo},
        "nothing": {"json": b"{}"},
    }
    members = {
        f"{key}.{extension}": content
        for key, sample in samples.items()
        for extension, content in {**sample, "txt": b"\xef\xbb\xbfa caption\r\n"}.items()
    }
    path = write_tar(tmp_path / "in" / "00000.tar", members)
    _, good, bad = prepare_source(path, tmp_path / "out")
    assert {key.rpartition("/")[2]: row["container"] for key, row in good.items()} == {
        "thumbnail": "mp4",
        "behind": "mp4",
        "upper": "mp4",
        "flash": "flv",
        "preview": "mp4",
        "animated": "gif",
        "photo": "jpg",
        "frames": "jpg",
    }
    assert {tuple(row["captions"]) for row in good.values()} == {("a caption",)}
    reasons = {key.rpartition("/")[2]: value for key, value in bad.items()}
    assert {key: reason for key, (reason, _) in reasons.items()} == {
        "two_videos": "ambiguous",
        "two_images": "ambiguous",
        "gif_or_jpg": "ambiguous",
        "nothing": "missing",
    }
    assert "mp4, flv" in reasons["two_videos"][1]


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    mark = codecs.BOM_UTF8
    video = write_video(tmp_path / "a.mp4").read_bytes()
    tar = write_tar(
        tmp_path / "tar" / "0.tar", {"0.mp4": video, "0.json": mark + b'{"caption": "a dog"}'}
    )
    _, good, _ = prepare_source(tar, tmp_path / "out_tar")
    assert [row["captions"] for row in good.values()] == [["a dog"]]

    (tmp_path / "sbu" / "images").mkdir(parents=True)
    write_image(tmp_path / "sbu" / "images" / "a.jpg")
    (tmp_path / "sbu" / "SBU_captioned_photo_dataset_urls.txt").write_bytes(mark + b"a.jpg\n")
    (tmp_path / "sbu" / "SBU_captioned_photo_dataset_captions.txt").write_bytes(mark + b"a cat\n")
    _, good, _ = prepare_source(tmp_path / "sbu", tmp_path / "out_sbu")
    assert {key: row["captions"] for key, row in good.items()} == {"train/a.jpg": ["a cat"]}

    folder = tmp_path / "ytt"
    write_video(folder / "videos" / "first.mp4", frames=120)
    line = json.dumps(record("first")).encode() + b"\n"
    with gzip.open(folder / "yttemporal180m_000of100.jsonl.gz", "wb") as file:
        file.write(mark + line)
    _, good, bad = prepare_source(folder, tmp_path / "out_ytt")
    assert good
    assert not [key for key in bad if "yttemporal180m" in key]


def test_excluded_ids_are_counted(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    (tmp_path / "test_ids.txt").write_text("AAA\n\n")
    _, good, bad = prepare_source(source, tmp_path / "out", exclude=tmp_path / "test_ids.txt")
    assert not good
    assert bad["train/AAA"][0] == "excluded"
    with pytest.raises(DataError, match="no such file"):
        prepare_source(source, tmp_path / "out2", exclude=tmp_path / "nothing")
