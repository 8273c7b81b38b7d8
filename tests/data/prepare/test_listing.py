"""A source is listed once, and every part reads its own rows."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.prepare import listing
from allinone.data.prepare.existing import record_retry
from allinone.data.prepare.listing import LISTING, SourceListing, open_listing, write_listing
from allinone.data.prepare.options import PrepareOptions, rows_of
from allinone.data.sources import SourceRow
from tests.data.helpers import howto, karpathy, record, small_demo
from tests.data.media import write_video


def claimed(source: Path, out: Path, clips: int = 3, **options: object) -> PrepareOptions:
    (out / "parts").mkdir(parents=True, exist_ok=True)
    return PrepareOptions(source, out, shard_clips=clips, **options).resolved()  # type: ignore[arg-type]


def all_rows(found: SourceListing, parts: int = 1) -> list[tuple[str, list[SourceRow]]]:
    shards = [list(found.shards(turn, parts)) for turn in range(1, parts + 1)]
    return [shard for part in shards for shard in part]


def own_csv(folder: Path, rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{k}.mp4,caption {k},{('train', 'val')[k % 2]}\n" for k in range(rows)]
    (folder / "my.csv").write_text("path,caption,split\n" + "".join(lines))
    return folder / "my.csv"


def test_listed_rows_equal_those_of_the_source(tmp_path: Path) -> None:
    import gzip

    temporal = tmp_path / "temporal"
    write_video(temporal / "videos" / "AAA.mp4", frames=12)
    with gzip.open(temporal / "yttemporal180m_000of100.jsonl.gz", "wt") as file:
        file.write(json.dumps(record("AAA")) + "\n" + json.dumps(record("gone \ud83d")) + "\n")
    odd = tmp_path / "odd"
    odd.mkdir()
    name = os.fsdecode(b"caf\xe9.mp4")
    (odd / "videos" / name).parent.mkdir()
    (odd / "videos" / name).touch()
    (odd / "raw_caption.json").write_text(
        json.dumps({name.removesuffix(".mp4"): {"start": [0], "end": [5], "text": ["\ud83d"]}})
    )
    sources = [
        small_demo(tmp_path / "webvid", 10),
        howto(tmp_path / "howto"),
        karpathy(tmp_path / "coco"),
        temporal,
        odd,
    ]
    for number, source in enumerate(sources):
        options = claimed(source, tmp_path / f"out{number}")
        expected = list(rows_of(options))
        found = open_listing(options)
        assert sorted(map(repr, expected)) == sorted(
            repr(row) for _, rows in all_rows(found) for row in rows
        )
        for parts in (2, 3):
            assert sorted(dict(all_rows(found, parts))) == sorted(dict(all_rows(found)))


def test_the_source_is_read_once_for_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = claimed(own_csv(tmp_path / "in", 20), tmp_path / "out")
    first = open_listing(options)
    assert first.counts == {"train": 10, "val": 10}

    def refuse(_: PrepareOptions) -> Iterator[SourceRow]:
        raise AssertionError("the source is read again")

    monkeypatch.setattr(listing, "blocks_of", refuse)
    for turn in (1, 2, 3):
        again = open_listing(dataclasses.replace(options, part=(turn, 3)))
        assert again.counts == first.counts
        names = [name for name, _ in again.shards(turn, 3)]
        assert names == [name for name, _ in first.shards()][turn - 1 :: 3]


def test_a_changed_source_is_read_again_or_refused(tmp_path: Path) -> None:
    source = own_csv(tmp_path / "in", 20)
    options = claimed(source, tmp_path / "out")
    open_listing(options)
    text = source.read_text()
    source.write_text(text.replace("caption 3", "another"))
    rows = dict(all_rows(open_listing(options)))
    assert rows["val-00000"][1].captions == ("another",), "no shard exists yet"
    (tmp_path / "out" / "parts" / "train-00000.parquet").touch()
    source.write_text(text)
    with pytest.raises(DataError, match="other clips or captions in val-00000 than when"):
        open_listing(options)
    own_csv(tmp_path / "in", 21)
    with pytest.raises(DataError, match=r"'val': 10} now|'train': 11.* when|other clips"):
        open_listing(options)


def test_videos_that_arrive_later_are_found(tmp_path: Path) -> None:
    options = claimed(howto(tmp_path / "howto"), tmp_path / "out")

    def reason(options: PrepareOptions) -> str | None:
        rows = [row for _, rows in all_rows(open_listing(options)) for row in rows]
        return next(row.reason for row in rows if row.id == "gone")

    assert reason(options) == "missing"
    write_video(tmp_path / "howto" / "videos" / "gone.mp4", frames=12)
    assert reason(options) is None
    deep = tmp_path / "howto" / "videos" / "a" / "b"
    (tmp_path / "howto" / "videos" / "gone.mp4").unlink()
    deep.mkdir()
    assert reason(options) == "missing"
    write_video(deep / "gone.mp4", frames=12)  # too deep to be noticed without --retry
    time.sleep(0.02)
    again = dataclasses.replace(options, retry=("missing",))
    record_retry(again)
    assert reason(again) is None


def test_a_fault_of_the_list_leaves_no_listing(tmp_path: Path) -> None:
    options = claimed(own_csv(tmp_path / "in", 4), tmp_path / "out")

    def damaged() -> Iterator[SourceRow]:
        yield from list(rows_of(options))
        raise DataError("line 6 is no row")

    with pytest.raises(DataError, match="line 6"):
        write_listing(options.out / LISTING, options, damaged)
    with pytest.raises(DataError, match="lists no clips"):
        write_listing(options.out / LISTING, options, lambda: iter(()))
    assert [path.name for path in options.out.iterdir()] == ["parts"]


def test_a_listing_names_no_code(tmp_path: Path) -> None:
    """Only the parsers of captions that are known; a name never becomes an import."""
    options = claimed(howto(tmp_path / "howto"), tmp_path / "out")
    open_listing(options)
    path = options.out / LISTING
    path.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="unknown captions 'system'"):
        listing._narration("system", b"x", None)


def test_a_damaged_listing_is_written_again(tmp_path: Path) -> None:
    options = claimed(own_csv(tmp_path / "in", 4), tmp_path / "out")
    open_listing(options)
    path = options.out / LISTING
    path.write_bytes(path.read_bytes()[:100])
    assert open_listing(options).counts == {"train": 2, "val": 2}
