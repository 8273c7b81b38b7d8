"""MSR-VTT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
    write_json_lines,
    write_text,
)

MSRVTT = {"train": (0, 1, 2, 3, 4, 5), "validate": (6513, 6514), "test": (7010, 7011, 7012, 7013)}
MSRVTT_1K_A = (7011, 7013)


def msrvtt_caption(video: int, number: int) -> str:
    return f'caption {number} of "{video}", a dog runs'


def msrvtt(root: Path, form: str = "own") -> MadeUpBenchmark:
    """Captions in the `form` own (MSR-VTT's two files), clip4clip (merged), frozen (frozen-in-time)
    or clipbert; QA and choice in all their forms."""
    videos = [video for numbers in MSRVTT.values() for video in numbers]
    sample = make_sample(root, [f"video{video}.mp4" for video in videos])
    folder = sample.annotations
    _msrvtt_captions(folder, form)
    left = [video for video in videos if video not in MSRVTT_1K_A]
    write_text(
        folder,
        "MSRVTT_train.9k.csv",
        "".join(f"{line}\n" for line in ("video_id", *(f"video{video}" for video in left))),
    )
    write_text(
        folder,
        "MSRVTT_train.7k.csv",
        "video_id\n" + "\n".join(f"video{v}" for v in MSRVTT["train"] + MSRVTT["validate"]),
    )
    tests = [
        f'ret{k},msr{video},video{video},"a dog, {video}, ""runs"""'
        for k, video in enumerate(MSRVTT_1K_A)
    ]
    write_text(
        folder,
        "MSRVTT_JSFUSION_test.csv",
        "\n".join(["key,vid_key,video_id,sentence", *tests]) + "\n",
    )
    write_text(folder, "train_list_miech.txt", "video0\nvideo7011\nvideo6513")
    write_text(folder, "test_list_miech.txt", "video7010\nvideo7012\n")
    for split, numbers in (
        ("train", MSRVTT["train"]),
        ("val", MSRVTT["validate"]),
        ("test", MSRVTT["test"]),
    ):
        rows = [
            {
                "id": 100 * video + k,
                "video_id": video,
                "category_id": 4,
                "question": f"{word} is number {video}?",
                "answer": f"{('dog', 'cat')[video % 2]}",
            }
            for video in numbers
            for k, word in enumerate(("what", "who"))
        ]
        write_json(folder, f"{split}_qa.json", rows)
    _msrvtt_choice(folder)
    return sample


def _msrvtt_captions(folder: Path, form: str) -> None:
    sen_id = 0
    halves: dict[str, dict[str, list[Any]]] = {}
    for split, numbers in MSRVTT.items():
        half = halves.setdefault(
            "test" if split == "test" else "train_val", {"videos": [], "sentences": []}
        )
        for video in numbers:
            times = {"start time": 3.0, "end time": 15.2}
            half["videos"].append(
                {
                    "id": video,
                    "video_id": f"video{video}",
                    "category": 9,
                    "url": "u",
                    "split": split,
                    **times,
                }
            )
            for k in range(3):
                half["sentences"].append(
                    {
                        "sen_id": sen_id,
                        "video_id": f"video{video}",
                        "caption": msrvtt_caption(video, k),
                    }
                )
                sen_id += 1
    merged = {
        key: [record for half in halves.values() for record in half[key]]
        for key in ("videos", "sentences")
    }
    if form == "own":
        for name, half in halves.items():
            write_json(folder, f"{name}_videodatainfo.json", {"info": {"year": 2016}, **half})
    elif form == "clip4clip":
        write_json(folder, "MSRVTT_data.json", merged)
    elif form == "frozen":
        records = [
            {"image_id": row["video_id"], "caption": row["caption"]} for row in merged["sentences"]
        ]
        write_json(
            folder,
            "annotation/MSR_VTT.json",
            {"annotations": records, "images": [], "type": "captions"},
        )
    else:
        for split, numbers in (
            ("train", MSRVTT["train"]),
            ("val", MSRVTT["validate"]),
            ("test", MSRVTT_1K_A),
        ):
            captions = 1 if split == "test" else 3
            rows = [
                {"clip_name": f"video{v}", "caption": msrvtt_caption(v, k)}
                for v in numbers
                for k in range(captions)
            ]
            write_json_lines(folder, f"msrvtt_retrieval_{split}.jsonl", rows)


def _msrvtt_choice(folder: Path) -> None:
    options = [[f"option {k} of {video}" for k in range(5)] for video in MSRVTT["test"]]
    # msr7012, not video7012
    rows = [
        "\t".join((f"ret{k}", f"msr{video}", *options[k], str(video % 5)))
        for k, video in enumerate(MSRVTT["test"])
    ]
    write_text(
        folder,
        "MSR_MC_test.csv",
        "\n".join(["\t".join(("key", "vid_key", "a1", "a2", "a3", "a4", "a5", "answer")), *rows])
        + "\n",
    )
    jsonl = [
        {"qid": k, "clip_name": f"video{video}", "options": options[k], "answer": video % 5}
        for k, video in enumerate(MSRVTT["test"])
    ]
    singularity = [
        {"video": f"video{video}.mp4", "caption": options[k], "answer": video % 5}
        for k, video in enumerate(MSRVTT["test"])
    ]
    write_json_lines(folder, "other/msrvtt_mc_test.jsonl", jsonl)
    write_json(folder, "another/msrvtt_mc_test.json", singularity)
