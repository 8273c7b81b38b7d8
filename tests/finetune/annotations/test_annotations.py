"""VQAv2's rules, held-out parts of Karpathy and UCF101, the leak check. Formats: test_readers,
test_reader_traps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allinone.finetune.annotations import karpathy, ucf101, vqav2_text
from allinone.finetune.annotations.schema import (
    AnnotationError,
    LabelItem,
    Media,
    RetrievalItem,
    Split,
    assert_disjoint,
)


@given(st.lists(st.booleans(), min_size=10, max_size=10))
def test_vqa_accuracy_is_the_mean_over_nine_of_ten_annotators(agree: list[bool]) -> None:
    answers = ["yes" if same else "no" for same in agree]
    brute = [
        min(1.0, part.count("yes") / 3) for part in map(list, itertools.combinations(answers, 9))
    ]
    assert vqav2_text.accuracy("yes", answers) == pytest.approx(sum(brute) / 10)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("A dog.", "dog"),
        ("two", "2"),
        ("The Cat", "cat"),
        ("dont", "don't"),
        ("10,000", "10000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
    ],
)
def test_vqa_answers_are_normalised_officially(raw: str, plain: str) -> None:
    assert vqav2_text.normalise(raw) == plain


def karpathy_file(folder: Path) -> None:
    def image(number: int, split: str, captions: int) -> dict[str, object]:
        part = "train2014" if split == "train" else "val2014"
        sentences = [
            {"raw": f"caption {k} of {number}", "tokens": [], "imgid": number, "sentid": k}
            for k in range(captions)
        ]
        name = f"COCO_{part}_{number:012d}.jpg"
        return {
            "filepath": part,
            "filename": name,
            "cocoid": number,
            "imgid": number,
            "split": split,
            "sentences": sentences,
        }

    images = [
        image(1, "train", 5),
        image(2, "restval", 6),
        image(3, "val", 5),
        image(4, "test", 7),
        image(5, "test", 0),
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))


def test_karpathys_train_contains_restval(
    tmp_path: Path,
) -> None:
    karpathy_file(tmp_path)
    train = karpathy.load(tmp_path, "train", dataset="coco")
    assert [item.media.path for item in train.items] == [
        "train2014/COCO_train2014_000000000001.jpg",
        "val2014/COCO_val2014_000000000002.jpg",
    ]
    test = karpathy.load(tmp_path, "test", dataset="coco", captions=5)
    assert [len(item.captions) for item in test.items if isinstance(item, RetrievalItem)] == [5]
    assert any("no sentences" in note for note in test.notes)
    assert_disjoint(train, karpathy.load(tmp_path, "val", dataset="coco"), test)
    with pytest.raises(AnnotationError, match="train"):
        karpathy.load(tmp_path, "dev", dataset="coco")
    with pytest.raises(AnnotationError, match="dataset_flickr30k"):
        karpathy.load(tmp_path, "test", dataset="flickr30k")


def test_ucf101_labels_count_from_1_and_groups_stay_together(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n")
    names = [
        (f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi", number)
        for number, label in enumerate(("ApplyEyeMakeup", "Archery"), 1)
        for group in range(8, 26)
        for clip in (1, 2)
    ]
    (tmp_path / "trainlist01.txt").write_text(
        "".join(f"{name} {number}\n" for name, number in names) + "Archery/odd.avi 1\n"
    )
    (tmp_path / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    whole = ucf101.load(tmp_path, "train-full", fold=1)
    assert {item.label for item in whole.items if isinstance(item, LabelItem)} == {0, 1}
    assert len(whole.items) == len(names)
    assert any("number of the folder's class" in note for note in whole.notes)
    train, held = ucf101.load(tmp_path, "train", fold=1), ucf101.load(tmp_path, "held-out", fold=1)
    assert {item.id for item in train.items} | {item.id for item in held.items} == {
        item.id for item in whole.items
    }
    assert not {item.id[:-4] for item in train.items} & {item.id[:-4] for item in held.items}
    test = ucf101.load(tmp_path, "test", fold=1)
    assert [item.label for item in test.items if isinstance(item, LabelItem)] == [1]


def test_splits_that_share_a_video_are_refused_with_an_example() -> None:
    def split(name: str, *ids: str) -> Split:
        return Split(
            name,
            [LabelItem(f"{name}-{i}", Media(i, f"{i}.mp4"), 0) for i in ids],
            (f"{name}.json",),
        )

    assert_disjoint(split("train", "a", "b"), split("test", "c"))
    with pytest.raises(
        AnnotationError, match=r"'train' and 'test' share 1 media items, for example b"
    ):
        assert_disjoint(split("train", "a", "b"), split("test", "b", "c"))
