"""A list that is read many rows at a time has the rows that it has row by row."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from allinone.common.errors import DataError
from allinone.data.prepare.listing import LISTING, write_listing
from allinone.data.prepare.options import PrepareOptions, blocks_of, rows_of
from allinone.data.sources import ReadOptions, SourceRow, plain_csv, read, read_blocks
from allinone.data.sources.plain_rows import PLAIN_TEXT, PlainRows
from allinone.data.sources.schema import clean_text, has_text
from tests.data.helpers import unpacked

HEADER = "videoid,contentUrl,duration,page_dir,name"
IDS = [
    "",
    " 7",
    "7 ",
    "a b",
    "../up",
    "x/y",
    "caf\u00e9",
    "7~3",
    ".hidden",
    "line-4",
    "-5",
    "\u202e1",
]
FOLDERS = ["", "0_1", "0_1/", "..", "/abs", "./0_1", "a//b", "\ud83d", "0_1\t"]
CAPTIONS = [
    "",
    " ",
    " a dog",
    "a  dog",
    "a\tdog",
    "caf\u00e9, Paris",
    "\u200b",
    "\u2028",
    "a\x1b]0;x\x07b",
    "\u202edog",
    "$\\frac{$",
    "<script>",
    "nan",
    "NULL",
    "\ud83d",
    "\x00",
    "x" * 66_000,
    "x" * 140_000,
    'a ""quoted"" word',
    "two\nlines",
    "3,x,y,0_1,swallowed\n",
]
RAW = [
    "\n",
    "\r\n",
    ",,,,\n",
    "only one field\n",
    "1,2,3,4,5,6\n",
    '9,u,d,0_1,"never closed\n',
    '9,u,d,0_1,"closed" late\n',
    '9,u,d,0_1,a "b" c\n',
    '"9,u,d,0_1,all\n',
    '""\n',
    '"9","u","d","0_1","all quoted"\n',
    '9,u,d,0_1,"5 inch\n10,u,d,0_1,a cat\n11,u,d,0_1,6 inch"\n',
    "9,u,d,0_1,latin \udce9\n",
    '9,u,d,0_1,"latin \udce9, quoted"\n',
    "\ufeff9,u,d,0_1,mark\n",
]


def hostile(seed: int, rows: int, odd: float) -> bytes:
    """A list as WebVid's; a share of the lines is unusual."""
    chance = random.Random(seed)
    ending = chance.choice(["\n", "\n", "\r\n"])
    lines = [HEADER + ending]
    for number in range(rows):
        if chance.random() < odd / 4:
            lines.append(chance.choice(RAW))
            continue
        name = str(chance.randrange(4 * rows)) if chance.random() < 0.9 else str(number)
        folder, caption = f"{number:06d}_x", f"a man walks, number {number}"
        if chance.random() < odd:
            name = chance.choice([name, chance.choice(IDS)])
            folder = chance.choice([folder, chance.choice(FOLDERS)])
            caption = chance.choice(CAPTIONS)
        if "," in caption or "\n" in caption or chance.random() < 0.1:
            caption = f'"{caption}"'
        lines.append(f"{name},https://x/{number}.mp4,PT15S,{folder},{caption}{ending}")
    if chance.random() < 0.3:
        lines[-1] = lines[-1].rstrip("\r\n")
    text = "".join(lines)
    start = b"\xef\xbb\xbf" if chance.random() < 0.3 else b""
    return start + text.encode("utf-8", "surrogatepass").replace(
        "\udce9".encode("utf-8", "surrogatepass"), b"\xe9"
    )


def listed(
    out: Path, options: PrepareOptions, rows: Iterator[SourceRow | PlainRows]
) -> pa.Table | str:
    """The listing of these rows, or why there is none."""
    out.mkdir()
    try:
        write_listing(out / LISTING, options, lambda: rows)
    except DataError as error:
        return str(error)
    with pa.OSFile(str(out / LISTING)) as file:
        return pa.ipc.open_file(file).read_all()


@pytest.mark.parametrize("seed", range(12))
def test_blocks_hold_the_rows_of_row_by_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    caplog.set_level(logging.INFO, "allinone")
    monkeypatch.setattr(plain_csv, "MOST_ODD", 1.0)
    monkeypatch.setattr(plain_csv, "CHUNK", [200, 3000, 40_000, 1 << 22][seed % 4])
    source = tmp_path / "results_2M_train.csv"
    content = hostile(seed, 400, [0.0, 0.02, 0.3][seed % 3])
    source.write_bytes(content)
    (tmp_path / "ids.txt").write_text("".join(f"{k}\n" for k in range(60)))
    out = tmp_path / "out"
    options = PrepareOptions(source, out, shard_clips=37, exclude=tmp_path / "ids.txt").resolved()
    found, logs = [], []
    for read_rows in (rows_of, blocks_of):
        out = tmp_path / read_rows.__name__
        caplog.clear()
        found.append(listed(out, options, read_rows(options)))
        messages = [record.getMessage() for record in caplog.records]
        logs.append([message for message in messages if " lines: " in message])
    assert logs[0] == logs[1]
    if isinstance(found[0], str):
        assert found[0] == found[1]
        return
    assert found[0].equals(found[1])
    reasons = set(found[0]["reason"].to_pylist())
    assert {None, "excluded", "duplicate"} <= reasons
    blocks = [block for block in blocks_of(options) if isinstance(block, PlainRows)]
    assert sum(len(block) - len(block.others) for block in blocks) > 30, "nothing was plain"


def rows_both_ways(source: Path) -> list[SourceRow]:
    """The rows of a list, which are the same in blocks."""
    found = list(read(source, "webvid", ReadOptions()))
    assert unpacked(read_blocks(source, "webvid", ReadOptions())) == found
    return found


@pytest.mark.parametrize(
    "content",
    [
        "",
        HEADER,
        HEADER + "\n",
        "\n" + HEADER + "\n1,u,d,0_1,x\n",
        '"videoid","name\n","page_dir","name"\n1,x,0_1,y\n',
        "videoid,name,name\n1,a,b\n",
        "name,videoid\na dog,1\na cat,2\n",
        "videoid,caption,page_dir\r1,a dog,0_1\r2,a cat,0_1\r",
        HEADER + "\r\n1,u,d,0_1,a\rdog\r\n2,u,d,0_1,x\r\n",
        HEADER + '\n1,u,d,0_1,"' + "a\n" * 120 + '"\n2,u,d,0_1,x\n',
        HEADER + "\n" + "\n" * 300 + "2,u,d,0_1,x\n\n\n",
        HEADER + "\n1,u,d,0_1," + "x" * (1 << 21) + "\n2,u,d,0_1,x\n",
        HEADER + "\n1,u,d,0_1," + "x" * (3 << 20),
        ",".join(["videoid", "name", *(f"c{k}" for k in range(60))]) + "\n1,x" + ",y" * 60 + "\n",
    ],
)
@pytest.mark.parametrize("chunk", [50, 1 << 22])
def test_unusual_files_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, chunk: int
) -> None:
    monkeypatch.setattr(plain_csv, "CHUNK", chunk if len(content) < 1 << 20 else 1 << 18)
    source = tmp_path / "results_2M_val.csv"
    source.write_bytes(content.encode())
    if "videoid" in content:
        rows_both_ways(source)
        return
    for reader in (read, read_blocks):
        with pytest.raises(DataError, match="is missing"):
            list(reader(source, "webvid", ReadOptions()))


def test_texts_taken_as_plain_need_no_cleaning() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    plain = pc.match_substring_regex(pa.array(characters), PLAIN_TEXT).to_pylist()
    accepted = [c for c, good in zip(characters, plain, strict=True) if good]
    assert {"a", "~", "\u00e9", "\u2019"} <= set(accepted)
    for character in accepted:
        assert clean_text(character) == character
        assert has_text(character)
    spaced = ["a  b", " a", "a ", "a\tb", "a\n", ""]
    assert not any(pc.match_substring_regex(pa.array(spaced), PLAIN_TEXT).to_pylist())


def test_many_unusual_lines_are_read_row_by_row(tmp_path: Path) -> None:
    source = tmp_path / "results_2M_val.csv"
    rows = "".join(f"{k},u,d,0_1,a\tdog\n" for k in range(300))
    source.write_text(f"{HEADER}\n1000,u,d,0_1,x\n{rows}")
    assert len(rows_both_ways(source)) == 301
    assert all(isinstance(row, SourceRow) for row in read_blocks(source, "webvid", ReadOptions()))


def test_a_split_that_is_no_name_makes_bad_rows(tmp_path: Path) -> None:
    source = tmp_path / "my list.csv"
    source.write_text(f"{HEADER}\n1,u,d,0_1,x\n2,u,d,0_1,y\n")
    assert [row.reason for row in rows_both_ways(source)] == ["bad_row"] * 2


def test_a_renamed_id_of_an_earlier_row_is_kept_free(tmp_path: Path) -> None:
    """The second row 7 becomes 7~1, which is then taken."""
    source = tmp_path / "results_2M_val.csv"
    source.write_text("videoid,name\n7,a\n7,b\n7~1,c\n8,d\n 8,e\n")
    found = rows_both_ways(source)
    assert [row.id for row in found] == ["7", "7~1", "7~1~2", "8", "8~4"]
    assert [row.reason for row in found] == [None, "duplicate", None, None, "duplicate"]
