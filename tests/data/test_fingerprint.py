"""Fingerprints of prepared data follow the content, not the place or the division into shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from allinone.data.fingerprint import (
    _joined_texts,
    clips_fingerprint,
    files_fingerprint,
    tokenizer_fingerprint,
)
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.text import VOCABULARY
from tests.data.helpers import DEMO


def make(folder: Path, captions: dict[int, str], shard_clips: int = 15, val: bool = False) -> Path:
    """Prepare demo clip number → caption, optionally with another split before it."""
    source = folder / "source"
    source.mkdir(parents=True)
    place = "000001_000200"
    (source / place).symlink_to(DEMO / "videos" / place)
    rows = [f"{place}/{number}.mp4,{text},train" for number, text in captions.items()]
    if val:
        rows = [f"{place}/{number}.mp4,other,a_val" for number in range(30, 34)] + rows
    (source / "my.csv").write_text("path,caption,split\n" + "".join(f"{row}\n" for row in rows))
    options = PrepareOptions(source / "my.csv", folder / "out", shard_clips=shard_clips, workers=1)
    prepare(options, progress=False)
    return folder / "out"


CAPTIONS = {number: f"caption {number}" for number in range(1, 9)}


def test_place_shards_and_other_splits_do_not_count(tmp_path: Path) -> None:
    first = make(tmp_path / "a", CAPTIONS)
    expected = clips_fingerprint(first, "train")
    moved = shutil.copytree(first, tmp_path / "elsewhere")
    assert clips_fingerprint(moved, "train") == expected
    assert clips_fingerprint(make(tmp_path / "b", CAPTIONS, shard_clips=3), "train") == expected


@pytest.mark.parametrize(
    ("captions", "changed"),
    [
        ({**CAPTIONS, 3: "another"}, {"captions"}),
        ({**CAPTIONS, 1: CAPTIONS[2], 2: CAPTIONS[1]}, {"captions"}),
        ({n: c for n, c in CAPTIONS.items() if n != 8}, {"clips", "captions"}),
        ({**CAPTIONS, 9: "caption 9"}, {"clips", "captions"}),
    ],
)
def test_changed_clips_and_captions_are_told_apart(
    tmp_path: Path, captions: dict[int, str], changed: set[str]
) -> None:
    before = clips_fingerprint(make(tmp_path / "a", CAPTIONS), "train")
    after = clips_fingerprint(make(tmp_path / "b", captions), "train")
    assert {part for part in before if before[part] != after[part]} == changed


def test_another_vocabulary_is_another_tokenizer(tmp_path: Path) -> None:
    words = VOCABULARY.read_text(encoding="utf-8").splitlines()
    words[words.index("cat")], words[words.index("dog")] = "dog", "cat"
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    before, after = tokenizer_fingerprint(), tokenizer_fingerprint(path)
    assert before == tokenizer_fingerprint()
    assert before["vocabulary"] != after["vocabulary"]
    assert before["tokenizer"] != after["tokenizer"]


def test_files_are_named_relative_to_their_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "x.json").write_text("[1]")
    first, second = (
        files_fingerprint([tmp_path / name / "inner" / "x.json"], tmp_path / name)
        for name in ("a", "b")
    )
    assert first == second
    assert first.keys() == {"inner/x.json"}


def test_texts_are_joined_as_python_joins_them() -> None:
    texts = pa.array(["a", "", "été", None, "xyz", "日本"] * 3)
    for part in (texts, texts[2:7], texts[3:4], texts[:0], pa.array([None], pa.string())):
        expected = "".join(text or "" for text in part.to_pylist()).encode()
        assert bytes(_joined_texts(part)) == expected
