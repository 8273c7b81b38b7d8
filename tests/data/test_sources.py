"""Lists of any format: good rows are read, everything else is a bad row or a DataError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.sources import ReadOptions, read
from allinone.data.sources.reading import stream_json
from tests.data.helpers import howto, prepare_source
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


def test_excluded_ids_are_counted(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    (tmp_path / "test_ids.txt").write_text("AAA\n\n")
    _, good, bad = prepare_source(source, tmp_path / "out", exclude=tmp_path / "test_ids.txt")
    assert not good
    assert bad["train/AAA"][0] == "excluded"
    with pytest.raises(DataError, match="no such file"):
        prepare_source(source, tmp_path / "out2", exclude=tmp_path / "nothing")
