"""Questions: MSVD, TGIF-QA, TVQA, VCR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
    write_json_lines,
    write_text,
)

MSVD_CLIPS = [f"Qx{k}_-bcDEfgh_12_18" for k in range(8)]


def msvd(root: Path) -> MadeUpBenchmark:
    """QA and retrieval split the same clips differently. Lists have no final newline; captions
    contain commas."""
    sample = make_sample(root, [f"{clip}.avi" for clip in MSVD_CLIPS])
    folder = sample.annotations
    write_text(
        folder,
        "youtube_mapping.txt",
        "".join(f"{clip} vid{k + 1}\n" for k, clip in enumerate(MSVD_CLIPS)),
    )
    for split, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6)), ("test", (7, 8))):
        rows = [
            {
                "id": 10 * number + k,
                "answer": ("dog", "run")[k],
                "question": f"{word} is it doing?",
                "video_id": number,
            }
            for number in numbers
            for k, word in enumerate(("who", "what"))
        ]
        # One question about a clip that is not in the mapping.
        write_json(
            folder,
            f"{split}_qa.json",
            [*rows, {"id": 999, "answer": "x", "question": "what?", "video_id": 77}],
        )
    write_text(folder, "msvd_answer_set.txt", "dog\nrun\n")
    for split, clips in (
        ("train", MSVD_CLIPS[:5]),
        ("val", MSVD_CLIPS[5:6]),
        ("test", MSVD_CLIPS[6:]),
    ):
        write_text(folder, f"{split}_list.txt", "\n".join(clips))
    preamble = "# MSVD\n#\n\n"
    rows = [f"{clip} a dog, a cat and {k} birds run" for clip in MSVD_CLIPS for k in range(3)]
    write_text(
        folder,
        "AllVideoDescriptions.txt",
        preamble + "\n".join([*rows, MSVD_CLIPS[0] + " "]) + "\n",
    )
    return sample


TGIF_GIFS = {
    "Train": [f"tumblr_a{k}_400" for k in range(5)],
    "Test": ["tumblr_t0_250", "tumblr_t1_250"],
}


def tgif(root: Path) -> MadeUpBenchmark:
    """.csv files that are tab-separated with CRLF, a header and no quoting: a quote is an ordinary
    character."""
    sample = make_sample(root, [f"{gif}.gif" for gifs in TGIF_GIFS.values() for gif in gifs])
    folder = sample.annotations
    for half, gifs in TGIF_GIFS.items():
        for task in ("action", "transition"):
            header = (
                "gif_name",
                "question",
                "a1",
                "a2",
                "a3",
                "a4",
                "a5",
                "answer",
                "vid_id",
                "key",
            )
            rows = [
                (
                    gif,
                    f'What does the "man do {k} times ?',
                    "nod",
                    "wave",
                    "sit",
                    "spin",
                    "clap",
                    str(k % 5),
                    f"{task.upper()}{k}",
                    str(k),
                )
                for k, gif in enumerate(gifs)
            ]
            _tgif(folder, f"{half}_{task}_question.csv", header, rows)
        header = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
        rows = [
            (
                gif,
                "what is the color of the car ?",
                ("red", "blue")[k % 2],
                str(k % 4),
                f"FRAMEQA{k}",
                str(k),
                "a car turns .",
            )
            for k, gif in enumerate(gifs)
        ]
        _tgif(folder, f"{half}_frameqa_question.csv", header, rows)
    return sample


def _tgif(folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    write_text(folder, name, "".join("\t".join(row) + "\r\n" for row in (header, *rows)))


def tgif_clipbert(folder: Path) -> None:
    """ClipBERT's JSON lines, without ids, with their own validation set."""
    for k, split in enumerate(("train", "val", "test")):
        gif = TGIF_GIFS["Test"][0] if split == "test" else TGIF_GIFS["Train"][k]
        options = ["nod", "wave", "sit", "spin", "clap"]
        write_json_lines(
            folder,
            f"action_{split}.jsonl",
            [{"gif_name": gif, "question": "what ?", "options": options, "answer": 3}],
        )
        words = {
            "gif_name": gif,
            "question": "what is red ?",
            "answer": "car",
            "answer_type": "object",
        }
        write_json_lines(folder, f"frameqa_{split}.jsonl", [words])
    write_json(folder, "frameqa_trainval_ans2label.json", {"dog": 1, "car": 0})


TVQA_CLIPS = {
    "train": [
        "friends_s01e02_seg02_clip_05",
        "castle_s01e01_seg02_clip_00",
        "s05e02_seg02_clip_12",
    ],
    "val": ["met_s01e02_seg02_clip_05", "house_s01e02_seg02_clip_05"],
    "test": ["grey_s01e02_seg02_clip_05"],
}


def tvqa(root: Path) -> MadeUpBenchmark:
    """The Big Bang Theory has no prefix; a span is nan; test hides its labels; media are folders of
    frames at 3 per second."""
    frames = [
        f"{'bbt' if clip.startswith('s0') else clip.split('_')[0]}_frames/{clip}/{number:05d}.jpg"
        for clips in TVQA_CLIPS.values()
        for clip in clips
        for number in range(1, 13)
    ]
    sample = make_sample(root, frames)
    folder, qid = sample.annotations, 0
    for split, clips in TVQA_CLIPS.items():
        rows = []
        for clip in clips:
            for span in ("0.4-2.21", "nan-nan" if clip.startswith("s0") else "1-3.5"):
                answers = {f"a{k}": f"Joey takes {k} pens." for k in range(5)}
                row = {
                    "qid": qid,
                    "q": "What does Joey take?",
                    **answers,
                    "ts": span,
                    "vid_name": clip,
                    "show_name": "Friends",
                }
                rows.append(row if split == "test" else {**row, "answer_idx": qid % 5})
                qid += 1
        write_json_lines(
            folder, {"test": "tvqa_test_public.jsonl"}.get(split, f"tvqa_{split}.jsonl"), rows
        )
        for clip in clips[:1]:
            text = (
                "1\r\n00:00:00,100 --> 00:00:01,000\r\nJoey : Hi\r\nthere"
                " .\r\n\r\n2\r\n00:00:03,000 --> 00:00:03,400\r\nMonica : Oh\r\n"
            )
            write_text(folder / "tvqa_subtitles", f"{clip}.srt", text)
    return sample


def tvqa_subtitle_lines(folder: Path) -> None:
    """The same subtitles as one JSON line per clip."""
    for path in (folder / "tvqa_subtitles").glob("*.srt"):
        path.unlink()
    lines = [
        {"start": 0.1, "end": 1.0, "text": "Joey : Hi there ."},
        {"start": 3.0, "end": 3.4, "text": "Monica : Oh"},
    ]
    rows = [{"vid_name": clips[0], "sub": lines} for clips in TVQA_CLIPS.values()]
    write_json_lines(folder, "tvqa_preprocessed_subtitles.jsonl", rows)


VCR_OBJECTS = ["person", "person", "chair", "person"]
VCR_BOXES = [
    [4.0, 5.0, 20.0, 60.0, 0.99],
    [22.0, 5.0, 40.0, 60.0, 0.9],
    [5.0, 40.0, 60.0, 62.0, 0.8],
    [42.0, 2.0, 62.0, 30.0, 0.7],
]


def vcr(root: Path) -> MadeUpBenchmark:
    """Texts with nested lists, several persons in one list; boxes of five numbers; polygons per
    object; test hides its labels. Only rationales mention person 3. `annotations` is
    vcr1annots, `media` vcr1images."""
    stills = {
        "train": ["lsmdc_A/1@0.jpg", "lsmdc_B/2@0.jpg", "movie C/x@1.jpg"],
        "val": ["lsmdc_D/4@0.jpg", "lsmdc_D/5@0.jpg"],
        "test": ["lsmdc_E/6@0.jpg"],
    }
    sample = make_sample(root, [still for split in stills.values() for still in split])
    for split, names in stills.items():
        rows = []
        for number, still in enumerate(names):
            metadata = still.replace(".jpg", ".json")
            polygons = [
                [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]] for x1, y1, x2, y2, _ in VCR_BOXES
            ]
            content = {
                "boxes": VCR_BOXES,
                "segms": polygons,
                "names": VCR_OBJECTS,
                "width": 64,
                "height": 64,
            }
            write_json(sample.media, metadata, content)
            row: dict[str, Any] = {
                "movie": still.split("/")[0],
                "objects": VCR_OBJECTS,
                "img_fn": still,
                "metadata_fn": metadata,
                "img_id": f"{split}-{number}",
                "annot_id": f"{split}-{number}",
                "question": ["Why", "is", [0], "smiling", "at", [1], "?"],
                "answer_choices": [[[0, 1], "like", "it", k * "very", "."] for k in range(1, 5)],
                "rationale_choices": [
                    [[3], "sits", "on", [2], ",", "and", f"{k}", "."] for k in range(4)
                ],
                "question_number": number,
                "match_fold": f"{split}-0",
            }
            rows.append(
                row
                if split == "test"
                else {**row, "answer_label": number % 4, "rationale_label": (number + 1) % 4}
            )
        write_json_lines(sample.annotations, f"{split}.jsonl", rows)
    return sample
