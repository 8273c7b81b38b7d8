"""Lists as people make them: unbalanced quotes, odd names, other encodings, invisible captions."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.config import DatasetSpec
from allinone.data.sources import CaptionLine, Narration, ReadOptions, read
from allinone.data.sources import keys as keys_module
from allinone.data.sources.howto100m import caption_line, csv_lines
from allinone.data.sources.reading import (
    LONGEST_LINE,
    bounded_lines,
    csv_records,
    stream_json,
)
from allinone.data.sources.schema import SourceRow, has_text
from allinone.data.text import Tokenizer
from tests.data.media import write_video


def rows(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    """(id, caption) of good rows, (detail, reason) of bad ones."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [
        (row.id, row.captions[0]) if row.reason is None else (str(row.detail), row.reason)
        for row in read(path, "csv", ReadOptions())
    ]


def test_quotes_are_ordinary_characters_in_a_tsv(tmp_path: Path) -> None:
    captions = ['"Hello" she said', "a dog", '"unbalanced', "a cat", 'ends with "', '5" nail', '"']
    content = "path\tcaption\n" + "".join(f"{k}.mp4\t{c}\n" for k, c in enumerate(captions))
    assert rows(tmp_path / "a.tsv", content) == [
        (f"{k}.mp4", caption) for k, caption in enumerate(captions)
    ]
    assert rows(tmp_path / "b.tsv", content.replace("\n", "\r\n")) == [
        (f"{k}.mp4", caption) for k, caption in enumerate(captions)
    ]


@pytest.mark.parametrize(
    "bad",
    [
        '2.mp4,"a 5 inch nail',  # open until the end of the file
        '2.mp4,"a "big" nail"',  # not doubled
        '2.mp4,"a nail"s',
        '2.mp4,"a nail" ',
        '"2.mp4,a nail',
    ],
)
@pytest.mark.parametrize("more", [3, 250])
def test_an_unbalanced_quote_costs_its_own_line_only(tmp_path: Path, bad: str, more: int) -> None:
    after = [(f"{k}.mp4", f"caption {k}") for k in range(3, 3 + more)]
    content = "".join(f"{name},{caption}\n" for name, caption in after)
    found = rows(tmp_path / "a.csv", f"path,caption\n1.mp4,first\n{bad}\n{content}")
    assert found[0] == ("1.mp4", "first")
    assert found[2:] == after
    detail, reason = found[1]
    assert reason == "bad_row"
    assert "line 3" in detail


@pytest.mark.parametrize("closing", ['3.mp4,6 inch"', '3.mp4,"6 inch"', '3.mp4,a "b" c'])
def test_two_open_quotes_do_not_swallow_the_rows_between(tmp_path: Path, closing: str) -> None:
    content = f'path,caption\n1.mp4,"5 inch\n2.mp4,a cat\n{closing}\n4.mp4,"x, y"\n'
    found = rows(tmp_path / "a.csv", content)
    assert len(found) == 4, "as many as lines"
    assert "line 2" in found[0][0]
    assert found[0][1] == "bad_row"
    assert [name for name, _ in found[1:]] == ["2.mp4", "3.mp4", "4.mp4"]
    assert found[1][1] == "a cat"
    assert found[3][1] == "x, y"


def test_swallowed_rows_are_found_by_id_and_by_number(tmp_path: Path) -> None:
    path = tmp_path / "results_2M_val.csv"
    path.write_text('videoid,page_dir,name\n7,p,"open\n8,p,a cat\n9,p,close"\n10,p,x\n')
    found = list(read(path, "webvid", ReadOptions()))
    assert [row.reason for row in found] == ["bad_row", None, None, None]
    path.write_text('videoid,page_dir,name\nabcdef7,p,"open\nabcdef8,p,a cat\nabcdef9,p,close"\n')
    found = list(read(path, "webvid", ReadOptions()))
    assert [row.reason for row in found] == ["bad_row", None, None]


def test_quoted_line_breaks_stay_one_caption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (
        b'\xef\xbb\xbfpath,caption\r\n\r\n0.mp4,a dog\r\n1.mp4,"two\r\nlines, ""quoted"""\r\n'
        b'2.mp4,"first\nsecond, third\n4"\r\n'
    )
    with caplog.at_level("INFO", logger="allinone"):
        found = rows(tmp_path / "a.csv", content)
    assert found == [
        ("0.mp4", "a dog"),
        ("1.mp4", 'two lines, "quoted"'),
        ("2.mp4", "first second, third 4"),
    ]
    assert "8 lines: 1 blank, 2 rows with a quoted line break" in caplog.text


def test_rows_equal_those_of_the_csv_module(tmp_path: Path) -> None:
    import csv
    import random

    draw = random.Random(0)
    path = tmp_path / "a.csv"
    for _ in range(200):
        table = [
            ["".join(draw.choices('ab ,"\n', k=draw.randrange(8))) for _ in range(2)]
            for _ in range(5)
        ]
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator=draw.choice(["\n", "\r\n"])).writerows(
                [["path", "caption"], *table]
            )
        found = [record for _, record in csv_records(path, [("path",), ("caption",)])]
        assert found == [{"path": a, "caption": b} for a, b in table]


def test_long_lines_are_bad_rows(tmp_path: Path) -> None:
    long = "word " * 40_000
    huge = "x" * (3 * LONGEST_LINE)
    for name, mark in (("a.csv", ""), ("b.csv", '"'), ("c.tsv", "")):
        tab = "\t" if name.endswith("tsv") else ","
        content = f"path,caption\n0.mp4,{mark}{long}{mark}\n1.mp4,a cat\n2.mp4,{huge}\n3.mp4,last\n"
        found = rows(tmp_path / name, content.replace(",", tab))
        assert [reason for _, reason in found] == ["bad_row", "a cat", "bad_row", "last"]
        assert "line 2 has" in found[0][0]
        assert "line 4 has" in found[2][0]


def test_windows_captions_of_howto_are_named(tmp_path: Path) -> None:
    path = tmp_path / "AAA.csv"
    path.write_bytes(b'start,end,text\n1,6,caf\xe9\n7,12,tea\n13,18,"open\n19,24,milk\n')
    lines = csv_lines(Narration(csv_lines, path))
    assert [line.text for line in lines if line.reason is None] == ["tea", "milk"]
    bad = [line for line in lines if line.reason is not None]
    assert [line.reason for line in bad] == ["bad_captions", "bad_captions"]
    assert "line 2 is not UTF-8" in str(bad[0].detail)
    assert "line 4 has a quote" in str(bad[1].detail)


INVISIBLE = ["\u200b\u200b", "\u00a0\u3000", "\ufeff", "\u0301\u0302", "\u200e\u200f", "\ufffd"]
INVISIBLE += ["\u2060", "\u00ad", "\ue000", "\x01", "\ufe0f", "\u2028", "\x7f", " \t"]
VISIBLE = ["a", "😀😀", "שלום", "é", "e\u0301", "日", "?", "\u200ba", "!", "\u20ac"]


def test_captions_without_a_token_are_no_captions() -> None:
    """The tokenizer decides what is visible: special tokens alone leave nothing to mask."""
    empty = Tokenizer().ids("")
    for text in [*INVISIBLE, *VISIBLE]:
        assert has_text(text) == (Tokenizer().ids(text) != empty), repr(text)
    assert not any(map(has_text, INVISIBLE))


def test_invisible_captions_are_reported(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", "path,caption\n1.mp4,\u200b\u200b\n2.mp4,😀\n")
    assert found == [("the caption is missing or empty", "no_caption"), ("2.mp4", "😀")]


def test_names_that_differ_in_white_space_are_two_files(tmp_path: Path) -> None:
    listed = ["a b.mp4", "a  b.mp4", "a\tb.mp4", "a  b.mp4", "a b.mp4", "c  d.mp4", "c d.mp4"]
    content = "path,caption\n" + "".join(f"{name},x\n" for name in listed)
    (tmp_path / "a.csv").write_text(content)
    found = list(read(tmp_path / "a.csv", "csv", ReadOptions()))
    assert [row.reason for row in found] == [None] * 3 + ["duplicate"] * 2 + [None] * 2
    assert len({row.id for row in found}) == len(listed)
    assert [row.path.name for row in found] == listed
    assert [row.id for row in found[:1] + found[5:6]] == ["a b.mp4", "c d.mp4"]


def test_duplicates_are_found_among_many_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the arrays and the set of keys."""
    monkeypatch.setattr(keys_module, "LATEST", 700)
    number = 6000
    again = [0, 1, 699, 700, 1500, 2999, 5999]
    listed = [*range(number), *again]
    content = "path,caption\n" + "".join(f"{k}.mp4,x\n" for k in listed)
    (tmp_path / "a.csv").write_text(content)
    found = list(read(tmp_path / "a.csv", "csv", ReadOptions()))
    assert [row.reason for row in found] == [None] * number + ["duplicate"] * len(again)
    assert len({row.id for row in found}) == len(listed)


def test_rows_of_one_file_become_one_clip_with_all_captions(tmp_path: Path) -> None:
    """In any order of rows; what is not kept is named by its line."""
    listed = [
        "a.mp4,,train",
        "a.mp4,one,train",
        "b.mp4,alone,train",
        "a.mp4,two  words,train",
        "a.mp4,one,train",
        "a.mp4,three,val",
        "a.mp4,four,train",
        "../c.mp4,x,train",
        "../c.mp4,y,train",
    ]
    (tmp_path / "a.csv").write_text("\n".join(["path,caption,split", *listed]) + "\n")
    found = list(read(tmp_path / "a.csv", "csv", ReadOptions()))
    kept = {f"{row.split}/{row.id}": row.captions for row in found if row.reason is None}
    assert kept == {
        "train/a.mp4": ("one", "two words", "four"),
        "train/b.mp4": ("alone",),
        "val/a.mp4": ("three",),
    }
    bad = [(row.id, row.source, row.reason) for row in found if row.reason]
    assert bad[:2] == [("line-2", "a.mp4", "no_caption"), ("line-6", "a.mp4", "duplicate")]
    assert [row[1:] for row in bad[2:]] == [("../c.mp4", "bad_row")] * 2
    assert "a.csv:6: an earlier row gives this file the same caption" in str(found[3].detail)


def test_names_that_no_file_system_has_are_bad_rows(tmp_path: Path) -> None:
    def image(name: str) -> dict[str, object]:
        sentences = [{"raw": "x"}]
        return {
            "filename": name,
            "imgid": 1,
            "cocoid": name,
            "split": "val",
            "sentences": sentences,
        }

    content = {"images": [image("1.jpg"), image("\ud83d.jpg"), image("a\0b.jpg")]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    found = list(read(tmp_path, "coco", ReadOptions()))
    assert [row.reason for row in found] == [None, "bad_row", "bad_row"]
    assert "surrogate" in str(found[1].detail)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(path: Path) -> dict[str, SourceRow]:
    found = read(path, "webdataset", ReadOptions())
    return {row.id.partition("/")[2]: row for row in found}


def test_captions_of_tars_are_read_from_text_and_json(tmp_path: Path) -> None:
    members = {
        "0.txt": b"",
        "0.json": b'{"caption": "from json"}',
        "1.json": b'{"caption": ["first", "second"]}',
        "2.txt": "\ufeffwith mark\r\n".encode(),
        "2.json": b'{"caption": "not used"}',
        "3.json": b'{"caption": null}',
        "4.txt": b"caf\xe9",
        "5.json": b'{"caption": "caf\xe9"}',
        "6.json": b"[" * 200_000,
        "7.json": b'["caption"]',
        "8.txt": "\u200b".encode(),
        "8.json": b'{"caption": "visible"}',
        "9.json": b'{"caption": {"a": 1}}',
    }
    media = {f"{k}.mp4": b"x" for k in range(10)}
    found = samples(tar(tmp_path / "a.tar", members | media))
    assert {key: row.captions for key, row in found.items() if row.reason is None} == {
        "0": ("from json",),
        "1": ("first", "second"),
        "2": ("with mark",),
        "8": ("visible",),
    }
    reasons = {key: row.reason for key, row in found.items() if row.reason is not None}
    assert reasons == {
        **dict.fromkeys("379", "no_caption"),
        **dict.fromkeys("456", "bad_row"),
    }
    assert "UnicodeDecodeError" in str(found["4"].detail)


def test_a_compressed_tar_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"0.mp4": b"x", "0.txt": b"a"})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"compressed tar \(gzip\); decompress it"):
        samples(path)


def test_caption_lines_without_visible_text_are_skipped() -> None:
    from allinone.data.prepare.worker import _window

    columns = {"frames": 10, "frame_rate": 10.0, "frame_times": None, "duration_s": 1.0}
    assert _window(CaptionLine(0, 1, "\u200b"), columns).reason == "no_caption"
    assert _window(CaptionLine(0, 1, "a"), columns).reason is None


def test_folders_may_have_separators_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("frames=8", "webvid:v2", "a:b=1:c", "plain"):
        Path(name).mkdir()
    for text, wanted in {
        "frames=8": ("frames=8", "train", 1.0),
        "frames=8:val=2": ("frames=8", "val", 2.0),
        "webvid:v2": ("webvid:v2", "train", 1.0),
        "webvid:v2=0.5": ("webvid:v2", "train", 0.5),
        "a:b=1:c:val": ("a:b=1:c", "val", 1.0),
        "plain:val": ("plain", "val", 1.0),
        "plain=3": ("plain", "train", 3.0),
        "gone:val=3": ("gone", "val", 3.0),
        "gone=8": ("gone", "train", 8.0),
    }.items():
        spec = DatasetSpec.parse(text)
        assert (str(spec.path), spec.split, spec.weight) == wanted, text
    with pytest.raises(ValueError, match="weight must be a positive number"):
        DatasetSpec.parse("plain=0")


def test_a_deep_or_huge_record_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    deep = "[" * 100_000 + '"]}"' + "]" * 100_000
    path.write_text(
        '{"a": {"start": [1]}, "deep": ' + deep + ', "number": [' + "9" * 5000 + '], "z": [2]}'
    )
    found = dict(stream_json(path))
    assert found == {"a": {"start": [1]}, "deep": None, "number": [float("inf")], "z": [2]}


def test_lines_of_any_length_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"one\n" + b"x" * 40_000_000 + b"\ntwo\n" + b"y" * 200)
    tracemalloc.start()
    with gzip.open(path, "rb") as file:
        found = list(bounded_lines(file, 100))
    assert found == [(1, b"one\n"), (2, None), (3, b"two\n"), (4, None)]
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_a_caption_of_any_length_is_a_bad_row(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=6)
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for key, length in (("a", 200_000), ("b", 1000)):
            archive.add(tmp_path / "a.mp4", f"{key}.mp4")
            (tmp_path / "c").write_text("word " * (length // 5))
            archive.add(tmp_path / "c", f"{key}.txt")
    rows = list(read(tmp_path / "0.tar", "webdataset", ReadOptions()))
    assert [row.reason for row in rows] == ["bad_row", None]
    assert "199,999 characters" in str(rows[0].detail)


@pytest.mark.parametrize(("start", "end"), [("9" * 400, 1), (1, 10**400), ([], {}), (None, "x")])
def test_times_that_are_no_seconds_are_bad_lines(start: object, end: object) -> None:
    line = caption_line(start, end, "text")
    assert line.reason == "bad_window"
    assert len(str(line.detail)) < 200


def test_a_deep_record_of_yttemporal_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    deep = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "info": {"id": "a"}}\n'
    path = tmp_path / "yttemporal180m_000of100.jsonl.gz"
    path.write_bytes(gzip.compress(deep + b'{"info": {"id": "b"}}\n'))
    found = list(read(path, "yttemporal", ReadOptions()))
    assert [row.reason for row in found] == ["bad_row", "missing"]
    assert "nested too deeply" in str(found[0].detail)
