"""The demo's data sets in official formats: true labels, splits without common clips, readable
without a row left out, the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allinone.examples.demo_clips import SPLITS, DemoClip, clips
from allinone.examples.demo_tasks import ROOT, WRITERS, main, write
from allinone.finetune.annotations import karpathy, kinetics, msrvtt, tgif, vcr
from allinone.finetune.annotations.msrvtt import FIRST_VIDEO
from allinone.finetune.annotations.schema import (
    ChoiceItem,
    QAItem,
    RetrievalItem,
    Split,
    VCRItem,
    assert_disjoint,
)

DEMO = ROOT / "data" / "demo"


@pytest.fixture(scope="module")
def all_clips() -> list[DemoClip]:
    return clips(DEMO)


@pytest.fixture(scope="module")
def few(all_clips: list[DemoClip]) -> list[DemoClip]:
    """Some clips of every split, people and things."""
    people = {clip.base for clip in all_clips if clip.split == "test" and (clip.doing or clip.role)}
    chosen = set(sorted(people)[::9])
    things = [clip for clip in all_clips if not clip.tone and not clip.who][:12]
    return [clip for clip in all_clips if clip.base in chosen] + things


@pytest.fixture(scope="module")
def written(few: list[DemoClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks")
    for name, writer in WRITERS.items():
        writer(few, out / name)
    return out


def attributes() -> dict[int, dict[str, str]]:
    with (DEMO / "attributes.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["videoid"]): row for row in csv.DictReader(file)}


def test_test_split_combines_people_and_tones_in_new_ways(
    all_clips: list[DemoClip],
) -> None:
    rows = attributes()
    assert len({clip.number for clip in all_clips}) == len(all_clips)
    assert all(clip.path.is_file() and rows[clip.number]["name"] == clip.name for clip in all_clips)
    shown = {
        split: {(clip.base, clip.tone) for clip in all_clips if clip.split == split}
        for split in SPLITS
    }
    assert not shown["train"] & shown["test"]
    assert not shown["train"] & shown["val"]
    assert not shown["val"] & shown["test"]
    for split in ("val", "test"):
        assert {base for base, _ in shown[split]} <= {base for base, _ in shown["train"]}
        assert {tone for _, tone in shown[split]} <= {tone for _, tone in shown["train"]}
    assert not any(
        rows[clip.number]["split"] == "train" for clip in all_clips if clip.split == "test"
    ), "pre-training saw none of them"
    assert len(shown["test"]) == 245


def clip_of(few: Iterable[DemoClip], video: str) -> DemoClip:
    number = int(video.removeprefix("video"))
    split = max(
        (name for name in FIRST_VIDEO if FIRST_VIDEO[name] <= number),
        key=lambda name: FIRST_VIDEO[name],
    )
    return [clip for clip in few if clip.split == split][number - FIRST_VIDEO[split]]


def clean(*splits: Split) -> None:
    """No row was left out, and no media are in two splits."""
    assert_disjoint(*splits)
    for split in splits:
        assert not [note for note in split.notes if "left out" in note]


def test_msrvtt_labels_are_true_and_not_in_the_questions(
    written: Path, few: list[DemoClip]
) -> None:
    folder, rows = written / "msrvtt" / "annotations", attributes()
    qa = {split: msrvtt.load(folder, split, task="qa") for split in SPLITS}
    clean(*qa.values())
    known = {item.answers for item in qa["train"].items if isinstance(item, QAItem)}
    for split in qa.values():
        assert len({item.question for item in split.items if isinstance(item, QAItem)}) > 5
        for item in split.items:
            assert isinstance(item, QAItem)
            (answer,) = item.answers
            name = rows[clip_of(few, item.media.id).number]["name"]
            assert (
                answer in name.split(" with ")[0]
                or f"{answer} skin tone" in name
                or answer == "person"
            )
            assert answer not in item.question.replace("what is", "").split(), (
                "the question holds the answer"
            )
            assert split.name != "test" or item.answers in known
    choice = msrvtt.load(folder, "test", task="choice")
    for item in choice.items:
        assert isinstance(item, ChoiceItem)
        assert len(set(item.choices)) == 5
        assert item.choices[item.answer or 0] == rows[clip_of(few, item.media.id).number]["name"]
    retrieval = [
        msrvtt.load(folder, split, task="retrieval", protocol="7k")
        for split in ("train", "held-out", "test")
    ]
    clean(*retrieval)
    for item in retrieval[2].items:
        assert isinstance(item, RetrievalItem)
        assert item.captions == (rows[clip_of(few, item.media.id).number]["name"],)
        assert (written / "msrvtt" / "media" / f"{item.media.path}.mp4").read_bytes() == clip_of(
            few, item.media.id
        ).path.read_bytes()


def test_tgif_gifs_show_their_labels(written: Path, few: list[DemoClip]) -> None:
    folder, by_number = written / "tgif", {clip.number: clip for clip in few}
    for task in tgif.TASKS:
        clean(
            *(
                tgif.load(folder / "annotations", split, task=task)
                for split in ("train-full", "test")
            )
        )
        for item in tgif.load(folder / "annotations", "test", task=task).items:
            shown = [by_number[int(number)] for number in item.media.id.split("_")[1:]]
            assert all(clip.split == "test" for clip in shown)
            with Image.open(folder / "media" / f"{item.media.path}.gif") as gif:
                assert getattr(gif, "n_frames", 1) > 2, "not a still"
            if isinstance(item, ChoiceItem):
                assert item.choices[item.answer or 0] == shown[-1].doing
                assert len(set(item.choices)) == 5
                assert (task == "transition") == (len(shown) == 2)
            else:
                assert isinstance(item, QAItem)
                assert item.answers[0] in (shown[0].who, shown[0].tone)


def test_vcr_boxes_and_answers_agree_with_the_pixels(written: Path) -> None:
    """Checked against the pixels: everything that is not white is inside boxes, and the position of
    a box agrees with the options."""
    folder = written / "vcr"
    train, val = (
        vcr.load(folder / "annotations", split, images=folder / "media")
        for split in ("train-full", "val")
    )
    clean(train, val)
    places = {
        (0, 0): "top left",
        (0, 1): "top right",
        (1, 0): "bottom left",
        (1, 1): "bottom right",
    }
    asked: Counter[str] = Counter()
    for item in (*train.items, *val.items):
        assert isinstance(item, VCRItem)
        pixels = np.asarray(Image.open(folder / "media" / item.media.path).convert("RGB"))
        uncovered = pixels.min(axis=-1) < 200
        for region in item.regions:
            x1, y1, x2, y2 = (int(value) for value in region.box)
            assert (pixels[y1 : y2 + 1, x1 : x2 + 1].min(axis=-1) < 200).any()
            uncovered[max(0, y1 - 3) : y2 + 4, max(0, x1 - 3) : x2 + 4] = False
        assert uncovered.mean() < 0.02, (
            "only thin parts between two rows of the outline may stick out"
        )
        (index,) = {
            k for token in item.question for k in (token if isinstance(token, tuple) else ())
        }
        x1, y1, x2, y2 = item.regions[index].box
        where = places[int((y1 + y2) / 2 > 128), int((x1 + x2) / 2 > 128)]
        texts = [
            " ".join(word for word in answer if isinstance(word, str))
            for answer in (*item.answers, *item.rationales)
        ]
        right = (texts[item.answer or 0], texts[4 + (item.rationale or 0)])
        assert any(f"in the {where} ." in text for text in right)
        assert len(set(texts)) == 8
        kind = item.question[0] if item.question[0] == "Where" else item.question[1]
        asked[str(kind)] += 1
    assert len(asked) == 3
    test = vcr.load(folder / "annotations", "test", images=folder / "media")
    assert all(
        item.answer is None and item.rationale is None
        for item in test.items
        if isinstance(item, VCRItem)
    )


def test_kinetics_classes_and_coco_captions_are_true(written: Path) -> None:
    rows = attributes()
    for split in ("train-full", "val"):
        found = kinetics.load(written / "kinetics" / "annotations", split)
        assert not [note for note in found.notes if "left out" in note]
        for item in found.items:
            assert (written / "kinetics" / "media" / item.media.path).is_file()
            label = found.classes[getattr(item, "label", 0)]
            assert label in rows[int(item.media.id.removeprefix("demo-"))]["name"]
    coco = [
        karpathy.load(written / "coco" / "annotations", split, dataset="coco") for split in SPLITS
    ]
    clean(*coco)
    for item in coco[2].items:
        assert isinstance(item, RetrievalItem)
        assert (
            item.captions[0].lower()
            == f"{rows[int(item.media.id.rpartition('_')[2])]['name'].lower()}."
        )
        assert (written / "coco" / "media" / item.media.path).is_file()


def test_every_call_writes_the_same_bytes_and_keeps_folders(
    written: Path, few: list[DemoClip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def content(folder: Path) -> dict[str, str]:
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*")
            if p.is_file()
        }

    for name, writer in WRITERS.items():
        writer(list(few), tmp_path / name)
        assert content(tmp_path / name) == content(written / name)
    (tmp_path / "vcr" / "mark").touch()
    assert write(DEMO, tmp_path, ["vcr"]) == [tmp_path / "vcr"]
    assert (tmp_path / "vcr" / "mark").exists()
    assert main(["imagenet", "--out", str(tmp_path)]) == 2
    assert main(["vcr", "--demo", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    errors = capsys.readouterr().err
    assert "choose from: msrvtt, tgif, vcr, kinetics, coco" in errors
    assert "lacks attributes.csv" in errors
    assert (
        json.loads((written / "coco" / "annotations" / "dataset_coco.json").read_text())["dataset"]
        == "coco"
    )
