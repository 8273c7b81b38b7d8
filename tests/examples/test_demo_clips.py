"""The embedded clips: lists, attributes and files agree, and none of them offends."""

from __future__ import annotations

import csv
from pathlib import Path

DEMO = Path(__file__).parents[2] / "data" / "demo"
COUNTS = {"train": 1638, "val": 245, "val_unseen": 125}


def rows(name: str) -> list[dict[str, str]]:
    with (DEMO / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_lists_attributes_and_files_name_the_same_clips() -> None:
    attributes = {row["videoid"]: row for row in rows("attributes.csv")}
    files = {path.stem: path for path in (DEMO / "videos").rglob("*.mp4")}
    assert attributes.keys() == files.keys()
    listed: list[str] = []
    for split, count in COUNTS.items():
        found = rows(f"results_demo_{split}.csv")
        assert len(found) == count
        for row in found:
            known = attributes[row["videoid"]]
            assert (known["split"], known["name"]) == (split, row["name"])
            assert files[row["videoid"]].parent.name == row["page_dir"]
        listed += [row["videoid"] for row in found]
    assert sorted(listed) == sorted(files)
    assert f"{len(files):,} short real animations" in (DEMO / "README.md").read_text()


def test_clips_that_were_left_out_keep_their_numbers_free() -> None:
    numbers = {int(row["videoid"]) for row in rows("attributes.csv")}
    assert set(range(1, 2015)) - numbers == set(range(875, 881))
    assert not any("middle finger" in row["name"] for row in rows("attributes.csv"))
