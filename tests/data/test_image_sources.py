"""Conceptual Captions, SBU, COCO and Visual Genome."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.sources import ReadOptions, detect, read
from tests.data.helpers import crc, karpathy, prepare_source
from tests.data.media import write_html, write_image

URL = "https://example.org/pictures/{}.jpg?size=big"


def test_cc3m_has_the_caption_first_and_cc12m_the_url(tmp_path: Path) -> None:
    three, twelve = tmp_path / "cc3m", tmp_path / "cc12m"
    urls = [URL.format(k) for k in range(5)]
    for folder in (three, twelve):
        write_image(folder / "a.jpg", 1)
        (folder / "training").mkdir()
        # the common download script writes names without an extension
        shutil.copy(folder / "a.jpg", folder / "training" / crc(urls[0]))
        write_image(folder / "training" / f"{crc(urls[1])}.png", 2)
        write_html(folder / "training" / crc(urls[2]))
    captions = ["a small boat", "a red mug", "a page", "dead link", "a <PERSON> and a dog"]
    pairs = list(zip(captions, urls, strict=True))
    (three / "Train_GCC-training.tsv").write_text(
        "".join(f"{c}\t{u}\n" for c, u in pairs) + "one field\n"
    )
    (twelve / "cc12m.tsv").write_bytes(
        b"".join(f"{u}\t{c}\n".encode() for c, u in pairs)
        + f"{urls[0]}\ttwice\n{urls[3]}\t\xff\n".encode("latin-1")
    )
    shutil.copy(twelve / "a.jpg", twelve / "training" / f"{crc(urls[4])}.jpg")
    for folder, lines in (
        (three, ["a small boat", "a red mug"]),
        (twelve, ["a small boat", "a red mug", "a person and a dog"]),
    ):
        _, good, bad = prepare_source(folder, folder.with_suffix(".out"), max_duration_s=None)
        assert [row["captions"][0] for row in good.values()] == lines
        assert [row["container"] for row in good.values()][:2] == ["jpg", "png"]
        assert {row["media"] for row in good.values()} == {"image"}
        reasons = {key: reason for key, (reason, _) in bad.items()}
        assert reasons[f"train/training/{crc(urls[2])}"] == "not_an_image"
        assert reasons[f"train/training/{crc(urls[3])}"] == "missing"
    assert reasons["train/line-7"] == "bad_row"
    assert sum(reason == "duplicate" for reason in reasons.values()) == 1
    shutil.copy(twelve / "cc12m.tsv", three / "Train_GCC-training.tsv")
    rows = list(read(three, "cc3m", ReadOptions()))
    assert all(row.reason == "bad_row" for row in rows)
    assert "CC12M" in (rows[0].detail or "")
    with pytest.raises(DataError, match=r"--names .*\{crc32\}"):
        list(read(twelve, "cc12m", ReadOptions(names="{sha}")))


def test_two_lists_need_a_template_with_the_split(tmp_path: Path) -> None:
    for name in ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"):
        (tmp_path / name).write_text("a caption\thttp://example.org/a.jpg\n")

    def names(template: str) -> Iterator[str]:
        return (row.source for row in read(tmp_path, "cc3m", ReadOptions(names=template)))

    with pytest.raises(DataError, match=r"put {split} into it"):
        next(names("{number:08d}.jpg"))
    assert list(names("{split}/{number:08d}.jpg")) == ["train/00000000.jpg", "val/00000000.jpg"]


def test_sbu_is_read_without_flickrs_placeholder_image(tmp_path: Path) -> None:
    urls = [URL.format(k) for k in range(24)]
    for k in range(3):
        write_image(tmp_path / "images" / f"{k}.jpg", k)
    for k in range(3, 23):
        shutil.copy(write_image(tmp_path / "unavailable.jpg", 99), tmp_path / "images" / f"{k}.jpg")
    content = {
        "image_urls": [*urls, "https://example.org/.."],
        "user_ids": ["u"] * 25,
        "captions": [f"photo {k}" for k in range(25)],
    }
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(content))
    summary, good, _bad = prepare_source(tmp_path, tmp_path / "out")
    assert [row["captions"][0] for row in good.values()] == ["photo 0", "photo 1", "photo 2"]
    assert summary.bad == {"placeholder": 20, "missing": 1, "bad_row": 1}
    old = tmp_path / "old"
    old.mkdir()
    (old / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(urls[:2]) + "\n")
    (old / "SBU_captioned_photo_dataset_captions.txt").write_text(
        "first\u2028line\nsecond\n", encoding="utf-8"
    )
    assert [row.captions for row in read(old, detect(old), ReadOptions())] == [
        ("first line",),
        ("second",),
    ]
    (old / "SBU_captioned_photo_dataset_captions.txt").write_text("only one\n")
    with pytest.raises(DataError, match="one length"):
        list(read(old, "sbu", ReadOptions()))


def test_karpathys_splits_stay_apart_with_all_captions(tmp_path: Path) -> None:
    karpathy(tmp_path)
    summary, good, _bad = prepare_source(tmp_path, tmp_path / "out")
    assert {key: len(row["captions"]) for key, row in good.items()} == {
        "train/42": 5,
        "restval/43": 7,
        "val/44": 5,
        "test/45": 5,
    }
    assert summary.bad == {"bad_row": 2}
    assert "dataset_coco.json, restval: 1 rows, but officially 30,504" in summary.official
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"split"')
    with pytest.raises(DataError, match="download it again"):
        list(read(tmp_path, "coco", ReadOptions()))


def test_visual_genome_images_of_coco_can_be_excluded(
    tmp_path: Path,
) -> None:
    regions = [
        {
            "id": number,
            "regions": [
                {"region_id": k, "image_id": number, "phrase": text}
                for k, text in enumerate(phrases)
            ],
        }
        for number, phrases in (
            (17, ["a red mug", "a table", "a red mug"]),
            (18, ["sky"]),
            (19, []),
            (20, ["leak"]),
        )
    ]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(regions))
    write_image(tmp_path / "VG_100K" / "17.jpg")
    write_image(tmp_path / "VG_100K_2" / "18.jpg")
    write_image(tmp_path / "VG_100K_2" / "20.jpg")
    coco = karpathy(tmp_path / "coco")
    coco.write_text(json.dumps({"images": json.loads(coco.read_text())["images"][:4]}))
    with pytest.raises(DataError, match=r"image_data\.json is needed"):
        prepare_source(tmp_path, tmp_path / "out", exclude=coco)
    (tmp_path / "image_data.json").write_text(
        json.dumps(
            [
                {"image_id": 17, "coco_id": 42},
                {"image_id": 18, "coco_id": None},
                {"image_id": 20, "coco_id": 45},
            ]
        )
    )
    _, good, bad = prepare_source(tmp_path, tmp_path / "out", exclude=coco)
    assert {key: row["captions"] for key, row in good.items()} == {
        "train/17": ["a red mug", "a table"],
        "train/18": ["sky"],
    }
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "train/19": "no_caption",
        "train/20": "excluded",
    }
