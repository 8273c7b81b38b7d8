"""Benchmarks after the paper: ActivityNet-QA, NExT-QA, VATEX, YouCook2, Something-Something v2."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
    write_text,
)

ANET_QA = {"train": ["Train-_0", "_rain1"], "val": ["-Val0"], "test": ["_est0"]}


def activitynet_qa(root: Path) -> MadeUpBenchmark:
    """Questions and answers in two files; ids of files start with v_, those of the lists do not;
    types count from 0; a question without an answer."""
    sample = make_sample(root, [f"v_{v}.mp4" for videos in ANET_QA.values() for v in videos])
    types = {0: "run", 1: "left", 3: "yes", 7: "2", 8: "sunny"}
    for split, videos in ANET_QA.items():
        ids = [(video, f"v_{video}_{k}", kind) for video in videos for k, kind in enumerate(types)]
        questions = [
            {"video_name": video, "question": "is it so ", "question_id": number}
            for video, number, _ in ids
        ]
        answers = [
            {"answer": types[kind], "type": kind, "question_id": number} for _, number, kind in ids
        ]
        lost = {"video_name": videos[0], "question": "why", "question_id": "v_lost_1"}
        write_json(sample.annotations, f"{split}_q.json", [*questions, lost])
        write_json(sample.annotations, f"{split}_a.json", answers)
    return sample


NEXT_QA = {"train": ["4010069381", "4882821564", "11871253306"], "val": ["55"], "test": ["6", "7"]}


def nextqa(root: Path) -> MadeUpBenchmark:
    """qid repeats between videos; ids of 10 and 11 digits; paths by a map; a quoted option with a
    comma; previous and next are one type."""
    paths = {
        video: f"{number:04d}/{video}"
        for number, video in enumerate(v for videos in NEXT_QA.values() for v in videos)
    }
    sample = make_sample(root, [f"{path}.mp4" for path in paths.values()])
    write_json(sample.annotations, "map_vid_vidorID.json", paths)
    header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    for split, videos in NEXT_QA.items():
        rows = [
            f'{video},369,640,480,why {video},{k + 1},{k},{kind},"a, b",tap,strum,hit,pat'
            for video in videos
            for k, kind in enumerate(("CW", "TP" if video == videos[0] else "TN"))
        ]
        write_text(sample.annotations, f"{split}.csv", "\n".join([header, *rows]) + "\n")
    return sample


def vatex_clip(number: int) -> str:
    return f"Ptf_{number}VRj-V0_{122 + number:06d}_{132 + number:06d}"


VATEX = {"train": range(3), "val": range(3, 4), "test": range(4, 6)}


def vatex(root: Path) -> MadeUpBenchmark:
    """One JSON of both halves of the validation clips; the list of one half is text, that of the
    other HGR's NumPy file; Chinese captions; a listed clip that the JSON lacks; the public test."""
    # 6 and 7 are clips of the public test
    sample = make_sample(root, [f"{vatex_clip(k)}.mp4" for k in range(8)])
    halves = {"training": VATEX["train"], "validation": [3, 5, 4]}
    for half, numbers in halves.items():
        rows = [
            {
                "videoID": vatex_clip(k),
                "enCap": [f"a person does {k} things, {n}" for n in range(10)],
                "chCap": ["一个人"] * 10,
            }
            for k in numbers
        ]
        write_json(sample.annotations, f"vatex_{half}_v1.0.json", rows)
    public = [{"videoID": vatex_clip(k), "enCap": ["a dog runs", "dogs run"]} for k in (6, 7)]
    write_json(sample.annotations, "vatex_public_test_english_v1.1.json", public)
    write_text(sample.annotations, "test_list.txt", f"{vatex_clip(4)}\n{vatex_clip(5)}\nlost")
    (sample.annotations / "public_split").mkdir()
    np.save(sample.annotations / "public_split" / "val_names.npy", np.array([vatex_clip(3)]))
    return sample


YOUCOOK2 = {"training": ["xHr8X2Wpmno", "-train_2", "_train3"], "validation": ["RY10IUcz3bk"]}


def youcook2(root: Path) -> MadeUpBenchmark:
    """One JSON of both subsets and a hidden one; MIL-NCE's CSV with the end before the start, and
    without one of the validation clips; a repeated sentence."""
    sample = make_sample(
        root, [f"{subset}/106/{v}.mp4" for subset, videos in YOUCOOK2.items() for v in videos]
    )
    steps = [(0, 0.3, "add milk and stir"), (0.3, 0.5, "add salt"), (0.5, 0.7, "add salt")]
    steps.append((0.7, 0.9, "serve"))
    database: dict[str, object] = {
        video: {
            "duration": 1.0,
            "subset": subset,
            "recipe_type": "106",
            "video_url": "u",
            "annotations": [
                {"segment": [start, end], "id": k, "sentence": text}
                for k, (start, end, text) in enumerate(steps)
            ],
        }
        for subset, videos in YOUCOOK2.items()
        for video in videos
    }
    database["hidden"] = {"subset": "testing", "recipe_type": "101", "annotations": []}
    write_json(sample.annotations, "youcookii_annotations_trainval.json", {"database": database})
    rows = [f"{end},{start},106,{text},RY10IUcz3bk" for start, end, text in steps[:3]]
    header = "end,start,task,text,video_id"
    write_text(sample.annotations, "validation_youcook.csv", "\n".join([header, *rows]) + "\n")
    return sample


SSV2 = ("Moving [something] from left to right", "Putting [part] on [something]")


def ssv2(root: Path) -> MadeUpBenchmark:
    """Templates with brackets, classes without, numbered by texts; a template with several videos,
    a label with one; labels of a hidden test."""
    sample = make_sample(root, [f"{k}.webm" for k in range(10)])
    names = [template.replace("[", "").replace("]", "") for template in SSV2]
    write_json(sample.annotations, "labels.json", {name: str(k) for k, name in enumerate(names)})

    def row(k: int) -> dict[str, object]:
        label = ("moving a pen from left to right", "putting lid on pan")[k % 2]
        return {
            "id": str(k),
            "label": label,
            "template": SSV2[k % 2],
            "placeholders": ["a pen"] if k % 2 == 0 else ["lid", "pan"],
        }

    write_json(sample.annotations, "train.json", [row(k) for k in range(6)])
    write_json(sample.annotations, "validation.json", [row(k) for k in range(6, 10)])
    write_json(
        sample.annotations,
        "ssv2_ret_template_val_small.json",
        [{"caption": SSV2[k], "video": [f"{6 + k}.webm", f"{8 + k}.webm"]} for k in range(2)],
    )
    write_json(
        sample.annotations,
        "ssv2_ret_label_val_small.json",
        [{"caption": f"label {k}", "video": f"{k}.webm"} for k in range(6, 10)],
    )
    return sample
