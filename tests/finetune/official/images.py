"""Images: VQAv2, COCO, Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
)


def vqav2(root: Path) -> MadeUpBenchmark:
    """Ten annotators; capitals and articles in answers; images of test-dev are in test2015. net
    and yes occur nine times in train and val together, which makes them classes; 2 occurs eight
    times."""
    images = {"train2014": range(1, 5), "val2014": range(101, 106), "test2015": range(201, 203)}
    sample = make_sample(
        root,
        [
            f"{part}/COCO_{part}_{number:012d}.jpg"
            for part, numbers in images.items()
            for number in numbers
        ],
    )
    for part, numbers in images.items():
        questions, annotations = [], []
        for number in numbers:
            for k in range(3):
                question = 10 * number + k
                answer, kind = (
                    ("A net", "other"),
                    ("yes", "yes/no"),
                    ("7" if number == 105 else "2", "number"),
                )[k]
                questions.append(
                    {"question_id": question, "image_id": number, "question": "What is this?"}
                )
                votes = [answer] * 7 + ["Net.", "no", "two"]
                answers = [
                    {"answer": vote, "answer_confidence": "yes", "answer_id": n + 1}
                    for n, vote in enumerate(votes)
                ]
                shared = {
                    "question_id": question,
                    "image_id": number,
                    "question_type": "what is",
                    "answer_type": kind,
                }
                annotations.append({**shared, "multiple_choice_answer": answer, "answers": answers})
        header = {"info": {}, "license": {}, "data_subtype": part}
        for name in (part, "test-dev2015") if part == "test2015" else (part,):
            write_json(
                sample.annotations,
                f"v2_OpenEnded_mscoco_{name}_questions.json",
                {**header, "questions": questions},
            )
        if part != "test2015":
            write_json(
                sample.annotations,
                f"v2_mscoco_{part}_annotations.json",
                {**header, "annotations": annotations},
            )
    return sample


def coco(root: Path) -> MadeUpBenchmark:
    """restval, six captions, and Karpathy's test images in val2014."""
    splits = {1: "train", 2: "train", 3: "restval", 4: "val", 5: "test", 6: "test"}
    names = {
        number: "train2014" if split == "train" else "val2014" for number, split in splits.items()
    }
    sample = make_sample(
        root, [f"{part}/COCO_{part}_{number:012d}.jpg" for number, part in names.items()]
    )
    images = [
        {
            "filepath": part,
            "filename": f"COCO_{part}_{number:012d}.jpg",
            "cocoid": number,
            "imgid": number - 1,
            "split": splits[number],
            "sentids": [10 * number + k for k in range(6)],
            "sentences": _sentences(number, 6 if number == 6 else 5),
        }
        for number, part in names.items()
    ]
    write_json(sample.annotations, "dataset_coco.json", {"dataset": "coco", "images": images})
    return sample


def flickr30k(root: Path) -> MadeUpBenchmark:
    """No filepath and no cocoid: all pictures are in one folder."""
    splits = ["train", "train", "train", "val", "test", "test"]
    sample = make_sample(root, [f"{1000 + number}.jpg" for number in range(len(splits))])
    images = [
        {
            "filename": f"{1000 + k}.jpg",
            "imgid": k,
            "split": split,
            "sentids": [],
            "sentences": _sentences(k, 5),
        }
        for k, split in enumerate(splits)
    ]
    write_json(
        sample.annotations, "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images}
    )
    return sample


def _sentences(image: int, size: int) -> list[dict[str, Any]]:
    return [
        {
            "raw": f"Dog {k} sleeps in {image}.",
            "tokens": ["dog", f"{k}"],
            "imgid": image,
            "sentid": 10 * image + k,
        }
        for k in range(size)
    ]
