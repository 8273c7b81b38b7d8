"""Tables of a user's own: columns, splits by media, bad rows with their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allinone.finetune.annotations.own import ReadOptions, read_splits
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    LabelItem,
    QAItem,
    RetrievalItem,
    Split,
)

QA_ROWS = [
    {"path": f"clip{n}.mp4", "question": f"what is number {n}?", "answer": ("cat", "dog")[n % 2]}
    for n in range(40)
]


def options(task: str, **changes: object) -> ReadOptions:
    values = {
        "task": task,
        "media": Path("/videos"),
        "val_share": 0.1,
        "test_share": 0.1,
        "hold_out": ("val", "test"),
        "max_bad_share": 0.1,
    }
    return ReadOptions(**{**values, **changes})  # type: ignore[arg-type]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def csv_of(rows: list[dict[str, str]]) -> str:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


def all_items(splits: dict[str, Split]) -> list[object]:
    return [item for split in splits.values() for item in split.items]


def notes(splits: dict[str, Split]) -> str:
    return "\n".join(note for split in splits.values() for note in split.notes)


def split_of(splits: dict[str, Split]) -> dict[str, str]:
    return {item.media.id: name for name, split in splits.items() for item in split.items}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_all_formats_give_the_same_items(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(QA_ROWS), path)
    elif suffix == "jsonl":
        write(path, "\n".join(json.dumps(row) for row in QA_ROWS))
    else:
        text = csv_of(QA_ROWS)
        write(path, "\ufeff" + (text.replace(",", "\t") if suffix == "tsv" else text))
    found = read_splits(path, options("qa"))
    expected = read_splits(write(tmp_path / "expected.csv", csv_of(QA_ROWS)), options("qa"))
    assert {name: split.items for name, split in found.items()} == {
        name: split.items for name, split in expected.items()
    }
    assert len(all_items(found)) == 40
    assert all(isinstance(item, QAItem) for item in all_items(found))


def test_splits_are_by_media_and_rows_added_move_none(tmp_path: Path) -> None:
    twice = [*QA_ROWS, *({**row, "question": "and why?"} for row in QA_ROWS)]
    before = read_splits(write(tmp_path / "a.csv", csv_of(twice)), options("qa"))
    assert set(before) == {"train", "val", "test"}
    media = [{item.media.id for item in split.items} for split in before.values()]
    assert sum(map(len, media)) == len(set.union(*media)) == 40
    more = [{**row, "path": f"new{n}.mp4"} for n, row in enumerate(QA_ROWS * 3)]
    after = split_of(read_splits(write(tmp_path / "b.csv", csv_of(more + twice)), options("qa")))
    assert {name: after[name] for name in split_of(before)} == split_of(before)


def test_given_splits_are_kept_and_a_missing_one_is_made(tmp_path: Path) -> None:
    rows = [
        {**row, "split": "validation" if n < 4 else "training"} for n, row in enumerate(QA_ROWS)
    ]
    found = read_splits(write(tmp_path / "a.csv", csv_of(rows)), options("qa"))
    assert {item.media.id for item in found["val"].items} == {f"clip{n}" for n in range(4)}
    assert found["test"].items
    assert "split test:" in notes(found)
    only = read_splits(tmp_path / "a.csv", options("qa", hold_out=()))
    assert set(only) == {"train", "val"}


def test_media_in_two_splits_are_refused_with_both_lines(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,x,train\nb.mp4,y,train\n./a.MP4,x,test\n"
    with pytest.raises(AnnotationError, match=r"my\.csv:2.*my\.csv:4"):
        read_splits(write(tmp_path / "my.csv", text), options("labels"))


def test_segments_of_one_video_may_be_split_on_request(tmp_path: Path) -> None:
    rows = [f"long.mp4,{n},{n + 1},{'ab'[n % 2]}" for n in range(30)]
    path = write(tmp_path / "my.csv", "path,start_s,end_s,label\n" + "\n".join(rows))
    with pytest.raises(AnnotationError, match="1 media in train are too few"):
        read_splits(path, options("labels"))
    found = read_splits(path, options("labels", by_segment=True))
    assert len(all_items(found)) == 30
    ids = [item.id for item in all_items(found)]  # type: ignore[attr-defined]
    assert "long.mp4#3-4" in ids


@pytest.mark.parametrize(
    ("answer", "answer_is", "expected"),
    [
        ("red", "either", 0),
        ("2", "either", 1),
        ("7", "either", 2),
        ("3", "either", None),
        ("3", "number", 2),
        ("3", "text", 3),
        ("0", "either", None),
        ("5", "either", None),
        ("", "either", None),
        ("Red", "either", None),
    ],
)
def test_answer_is_a_text_or_a_number_but_not_both(
    answer: str, answer_is: str, expected: int | None, tmp_path: Path
) -> None:
    text = "path,question,option_1,option_2,option_3,option_4,answer\n"
    rows = f"a.mp4,which?,red,blue,7,3,{answer}\nb.mp4,which?,w,x,y,z,w\n"
    found = read_splits(
        write(tmp_path / "my.csv", text + rows), options("choice", hold_out=(), answer_is=answer_is)
    )
    items = {item.media.id: item for item in found["train"].items}
    assert ("a" in items) == (expected is not None)
    if expected is not None:
        assert isinstance(items["a"], ChoiceItem)
        assert items["a"].answer == expected
    else:
        assert "my.csv:2" in notes(found)


def test_incomplete_options_are_named(tmp_path: Path) -> None:
    text = (
        "path,question,option_1,option_2,option_3,answer\n"
        "a.mp4,q,x,y,z,x\nb.mp4,q,x,y,z,y\nc.mp4,q,x,,z,x\nd.mp4,q,x,y,,x\ne.mp4,q,x,x,z,z\n"
        "f.mp4,,x,y,z,\n"
    )
    found = read_splits(write(tmp_path / "my.csv", text), options("choice", hold_out=()))
    assert [item.media.id for item in found["train"].items] == ["a", "b"]
    for reason in (
        "option_2 is empty: 1 (my.csv:4)",
        "it has 2 options, most rows have 3: 1 (my.csv:5)",
        "two options are the same: 1 (my.csv:6)",
        "answer is empty: 1 (my.csv:7)",
    ):
        assert reason in notes(found)


def test_captions_of_a_clip_become_one_item(tmp_path: Path) -> None:
    text = "path,caption\na.mp4,a dog\na.mp4,a cat\na.mp4,a dog\nb.mp4,a bird\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("retrieval", hold_out=()))
    items = {item.media.id: item for item in found["train"].items}
    assert isinstance(items["a"], RetrievalItem)
    assert items["a"].captions == ("a dog", "a cat")
    assert "the caption is repeated: 1 (my.csv:4)" in notes(found)


def test_repeated_ids_and_rows_are_named_and_kept_once(tmp_path: Path) -> None:
    text = (
        "path,question,answer,id\na.mp4,q,x,1\nb.mp4,r,y,1\nc.mp4,s,y,\nc.mp4,s,y,\nd.mp4,t,x,7\n"
    )
    found = read_splits(write(tmp_path / "my.csv", text), options("qa", hold_out=()))
    assert len(found["train"].items) == 3
    assert "the id is repeated with different content, the first is kept: 1 (my.csv:3)" in notes(
        found
    )
    assert "repeated with the same content, the first is kept: 1 (my.csv:5)" in notes(found)


def test_contradicting_labels_are_named(tmp_path: Path) -> None:
    text = "path,label\na.mp4,x\na.mp4,y\nb.mp4,y\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("labels", hold_out=()))
    assert found["train"].classes == ("x", "y")
    assert "an earlier row gives the clip another label, and it is kept" in notes(found)
    assert "1 (my.csv:3)" in notes(found)


def test_contradicting_answers_are_named(tmp_path: Path) -> None:
    text = "path,question,option_1,option_2,answer\na.mp4,q,x,y,x\na.mp4,q,x,y,y\nb.mp4,q,x,y,x\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("choice", hold_out=()))
    assert len(found["train"].items) == 2
    assert "an earlier row gives another answer to this question" in notes(found)
    assert "1 (my.csv:3)" in notes(found)


def test_classes_are_those_of_train(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,y,\nb.mp4,x,train\nc.mp4,x,val\nd.mp4,new,val\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("labels", hold_out=()))
    assert [split.classes for split in found.values()] == [("x", "y"), ("x", "y")]
    (item,) = found["val"].items
    assert isinstance(item, LabelItem)
    assert item.label == 0
    assert "the label is not in train, so no class has it: 1 (my.csv:5)" in notes(found)


def test_ten_thousand_classes_are_read(tmp_path: Path) -> None:
    rows = "".join(f"{n}.mp4,class {n % 10_000:05d}\n" for n in range(20_000))
    found = read_splits(write(tmp_path / "my.csv", "path,label\n" + rows), options("labels"))
    assert len(found["train"].classes) > 9_000
    assert found["train"].classes == tuple(sorted(found["train"].classes))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"../a.mp4,q,x,,", "the path leaves --media"),
        (b"/etc/passwd,q,x,,", "the path is absolute and not inside --media"),
        (b",q,x,,", "the path is empty"),
        (b"a.mp4,,x,,", "question is empty"),
        (b"a.mp4,q,,,", "answer is empty"),
        (b"a.mp4,q,x,5,4", "end_s is not after start_s"),
        (b"a.mp4,q,x,nan,", "start_s is not a number of seconds"),
        (b"a.mp4,q,x,-1,", "start_s is not a number of seconds"),
        (b"a.mp4,q\xff,x,,", "the line is not UTF-8 text"),
        (b"a.mp4,q,x", "the line does not have the header's 5 fields"),
        (b'a.mp4,"q,x,,', "the line has a quote that is not closed"),
    ],
)
def test_bad_rows_are_named_with_their_lines(row: bytes, reason: str, tmp_path: Path) -> None:
    good = "".join(f"g{n}.mp4,q,x,,\n" for n in range(15)).encode()
    path = tmp_path / "my.csv"
    path.write_bytes(b"path,question,answer,start_s,end_s\n" + good + row + b"\n")
    found = read_splits(path, options("qa"))
    assert len(all_items(found)) == 15
    (line,) = [note for note in notes(found).splitlines() if "left out" in note]
    assert reason in line
    assert "my.csv:17" in line


def test_too_many_bad_rows_end_the_run(tmp_path: Path) -> None:
    rows = "".join(f"{n}.mp4,{'' if n < 5 else 'x'}\n" for n in range(40))
    path = write(tmp_path / "my.csv", "path,label\n" + rows)
    with pytest.raises(AnnotationError, match=r"5 of 40 rows .* label is empty: 5 \(my\.csv:2,"):
        read_splits(path, options("labels"))
    assert read_splits(path, options("labels", max_bad_share=0.2))["train"].items


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("my.csv", "path,caption\na.mp4,x\n", "column label is missing; found: path, caption"),
        ("my.csv", "", "an empty file"),
        ("my.jsonl", '{"path": "a.mp4", "lable": "x"}\n', "columns found: lable, path"),
        ("my.xlsx", "x", r"must end in \.csv, \.tsv, \.jsonl, \.parquet"),
        ("my.parquet", "x", "not a Parquet file"),
        ("other", None, "cannot be read: No such file"),
    ],
)
def test_unusable_tables_say_what_is_needed(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(AnnotationError, match=message):
        read_splits(tmp_path / name, options("labels"))


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    text = "path,label,Start,comment\na.mp4,x,1,\nb.mp4,y,2,\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("labels", hold_out=()))
    assert "columns that are not used: Start, comment" in notes(found)


def test_absolute_paths_inside_the_media_folder_count(tmp_path: Path) -> None:
    text = "path,label\n/videos/sub/a.mp4,x\nb.mp4,y\n"
    found = read_splits(write(tmp_path / "my.csv", text), options("labels", hold_out=()))
    assert [item.media.path for item in found["train"].items] == ["sub/a.mp4", "b.mp4"]


def test_numbers_and_gaps_of_parquet_and_json_are_text(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "question": "q", "option_1": 10, "option_2": 20.5, "answer": 2.0},
        {"path": "b.mp4", "question": "r", "option_1": 1, "option_2": None, "answer": 1.0},
        {"path": "c.mp4", "question": "r", "option_1": ["x"], "option_2": "y", "answer": 1},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n[1]\n{"a"\n'
    found = read_splits(write(tmp_path / "my.jsonl", text), options("choice", hold_out=()))
    (item,) = found["train"].items
    assert isinstance(item, ChoiceItem)
    assert (item.choices, item.answer) == (("10", "20.5"), 1)
    for reason in ("fewer than two options", "not a JSON object", "is not JSON", "not a text"):
        assert reason in notes(found)
