"""Small made-up data sets in exactly the official format of every benchmark, traps included, with
tiny media.

    sample = WRITERS["tvqa"](tmp_path)
    tvqa.load(sample.annotations, "val")

Every writer leaves traps in (broken rows, odd spellings, hidden labels); what they do is said
beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.media import write_image, write_video


@dataclass(frozen=True)
class Sample:
    """Where a made-up benchmark lies."""

    annotations: Path
    media: Path


def _sample(root: Path, media: Sequence[str] = (), **video: Any) -> Sample:
    """Folders of a sample, with one distinct tiny file per media path (a picture for .jpg, a video
    else)."""
    sample = Sample(root / "annotations", root / "media")
    sample.annotations.mkdir(parents=True)
    for number, name in enumerate(media):
        path = sample.media / name
        if path.suffix == ".jpg":
            write_image(path, 7 * number)
        else:
            codec = {".avi": "mpeg4", ".gif": "gif", ".webm": "libvpx"}.get(
                path.suffix.lower(), "libx264"
            )
            write_video(path, frames=9, gop=3, rate=9, codec=codec, first=16 * number, **video)
    return sample


def _write(folder: Path, name: str, text: str) -> Path:
    """Bytes as given: no translation of line ends."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def _json(folder: Path, name: str, content: Any) -> Path:
    return _write(folder, name, json.dumps(content))


def _lines(folder: Path, name: str, records: Iterable[Any]) -> Path:
    return _write(folder, name, "".join(f"{json.dumps(record)}\n" for record in records))


# -- MSR-VTT ---------------------------------------------------------------------------------------

MSRVTT = {"train": (0, 1, 2, 3, 4, 5), "validate": (6513, 6514), "test": (7010, 7011, 7012, 7013)}
MSRVTT_1K_A = (7011, 7013)


def msrvtt_caption(video: int, number: int) -> str:
    return f'caption {number} of "{video}", a dog runs'


def msrvtt(root: Path, form: str = "own") -> Sample:
    """Captions in the `form` own (MSR-VTT's two files), clip4clip (merged), frozen (frozen-in-time)
    or clipbert; QA and choice in all of theirs."""
    videos = [video for numbers in MSRVTT.values() for video in numbers]
    sample = _sample(root, [f"video{video}.mp4" for video in videos])
    folder = sample.annotations
    _msrvtt_captions(folder, form)
    left = [video for video in videos if video not in MSRVTT_1K_A]
    _write(
        folder,
        "MSRVTT_train.9k.csv",
        "".join(f"{line}\n" for line in ("video_id", *(f"video{video}" for video in left))),
    )
    _write(
        folder,
        "MSRVTT_train.7k.csv",
        "video_id\n" + "\n".join(f"video{v}" for v in MSRVTT["train"] + MSRVTT["validate"]),
    )
    tests = [
        f'ret{k},msr{video},video{video},"a dog, {video}, ""runs"""'
        for k, video in enumerate(MSRVTT_1K_A)
    ]
    _write(
        folder,
        "MSRVTT_JSFUSION_test.csv",
        "\n".join(["key,vid_key,video_id,sentence", *tests]) + "\n",
    )
    _write(folder, "train_list_miech.txt", "video0\nvideo7011\nvideo6513")
    _write(folder, "test_list_miech.txt", "video7010\nvideo7012\n")
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
        _json(folder, f"{split}_qa.json", rows)
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
            _json(folder, f"{name}_videodatainfo.json", {"info": {"year": 2016}, **half})
    elif form == "clip4clip":
        _json(folder, "MSRVTT_data.json", merged)
    elif form == "frozen":
        records = [
            {"image_id": row["video_id"], "caption": row["caption"]} for row in merged["sentences"]
        ]
        _json(
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
            _lines(folder, f"msrvtt_retrieval_{split}.jsonl", rows)


def _msrvtt_choice(folder: Path) -> None:
    options = [[f"option {k} of {video}" for k in range(5)] for video in MSRVTT["test"]]
    rows = [
        "\t".join((f"ret{k}", f"msr{video}", *options[k], str(video % 5)))
        for k, video in enumerate(MSRVTT["test"])
    ]  # msr7012, not video7012
    _write(
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
    _lines(folder, "other/msrvtt_mc_test.jsonl", jsonl)
    _json(folder, "another/msrvtt_mc_test.json", singularity)


# -- MSVD ------------------------------------------------------------------------------------------

MSVD_CLIPS = [f"Qx{k}_-bcDEfgh_12_18" for k in range(8)]


def msvd(root: Path) -> Sample:
    """The QA split and the retrieval split part the same clips differently. Lists lack the final
    newline; captions hold commas."""
    sample = _sample(root, [f"{clip}.avi" for clip in MSVD_CLIPS])
    folder = sample.annotations
    _write(
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
        # One question of a clip that the mapping does not hold.
        _json(
            folder,
            f"{split}_qa.json",
            [*rows, {"id": 999, "answer": "x", "question": "what?", "video_id": 77}],
        )
    _write(folder, "msvd_answer_set.txt", "dog\nrun\n")
    for split, clips in (
        ("train", MSVD_CLIPS[:5]),
        ("val", MSVD_CLIPS[5:6]),
        ("test", MSVD_CLIPS[6:]),
    ):
        _write(folder, f"{split}_list.txt", "\n".join(clips))
    preamble = "# MSVD\n#\n\n"
    rows = [f"{clip} a dog, a cat and {k} birds run" for clip in MSVD_CLIPS for k in range(3)]
    _write(
        folder,
        "AllVideoDescriptions.txt",
        preamble + "\n".join([*rows, MSVD_CLIPS[0] + " "]) + "\n",
    )
    return sample


# -- TGIF-QA ---------------------------------------------------------------------------------------

TGIF_GIFS = {
    "Train": [f"tumblr_a{k}_400" for k in range(5)],
    "Test": ["tumblr_t0_250", "tumblr_t1_250"],
}


def tgif(root: Path) -> Sample:
    """.csv files that are tab-separated with CRLF, a header and no quoting: a quote is an ordinary
    character."""
    sample = _sample(root, [f"{gif}.gif" for gifs in TGIF_GIFS.values() for gif in gifs])
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
    _write(folder, name, "".join("\t".join(row) + "\r\n" for row in (header, *rows)))


def tgif_clipbert(folder: Path) -> None:
    """ClipBERT's JSON lines, without ids, with a validation set of its own."""
    for k, split in enumerate(("train", "val", "test")):
        gif = TGIF_GIFS["Test"][0] if split == "test" else TGIF_GIFS["Train"][k]
        options = ["nod", "wave", "sit", "spin", "clap"]
        _lines(
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
        _lines(folder, f"frameqa_{split}.jsonl", [words])
    _json(folder, "frameqa_trainval_ans2label.json", {"dog": 1, "car": 0})


# -- TVQA ------------------------------------------------------------------------------------------

TVQA_CLIPS = {
    "train": [
        "friends_s01e02_seg02_clip_05",
        "castle_s01e01_seg02_clip_00",
        "s05e02_seg02_clip_12",
    ],
    "val": ["met_s01e02_seg02_clip_05", "house_s01e02_seg02_clip_05"],
    "test": ["grey_s01e02_seg02_clip_05"],
}


def tvqa(root: Path) -> Sample:
    """The Big Bang Theory has no prefix; a span is nan; test hides its labels; media are folders of
    frames at 3 per second."""
    frames = [
        f"{'bbt' if clip.startswith('s0') else clip.split('_')[0]}_frames/{clip}/{number:05d}.jpg"
        for clips in TVQA_CLIPS.values()
        for clip in clips
        for number in range(1, 13)
    ]
    sample = _sample(root, frames)
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
        _lines(folder, {"test": "tvqa_test_public.jsonl"}.get(split, f"tvqa_{split}.jsonl"), rows)
        for clip in clips[:1]:
            text = (
                "1\r\n00:00:00,100 --> 00:00:01,000\r\nJoey : Hi\r\nthere"
                " .\r\n\r\n2\r\n00:00:03,000 --> 00:00:03,400\r\nMonica : Oh\r\n"
            )
            _write(folder / "tvqa_subtitles", f"{clip}.srt", text)
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
    _lines(folder, "tvqa_preprocessed_subtitles.jsonl", rows)


# -- LSMDC -----------------------------------------------------------------------------------------


def lsmdc_clip(movie: str, number: int) -> str:
    return f"{movie}_00.01.0{number}.345-00.01.0{number + 1}.678"


LSMDC_CLIPS = {
    "train": [lsmdc_clip("0001_SOME_MOVIE", k) for k in range(5)],
    "val": [lsmdc_clip("0002_OTHER", 0)],
    "test": [lsmdc_clip("1003_Third", k) for k in range(2)],
}


def lsmdc(root: Path) -> Sample:
    """Tabs under .csv, no header, no quoting; several sentences per clip in train; names that end
    in .678; the right option counts from 1."""
    sample = _sample(
        root,
        [
            f"{clip.rpartition('_')[0]}/{clip}.avi"
            for clips in LSMDC_CLIPS.values()
            for clip in clips
        ],
    )
    folder, times = sample.annotations, ("00.01.02.345", "00.01.05.678") * 2
    names = {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }
    choice = {"train": "train", "val": "valid", "test": "test_randomized"}
    for split, clips in LSMDC_CLIPS.items():
        rows = [
            (clip, *times, f'SOMEONE "opens the door and {k} steps out.')
            for clip in clips
            for k in range(1 if split == "test" else 2)
        ]
        _write(folder, names[split], "".join("\t".join(row) + "\n" for row in rows))
        rows = [
            (
                clip,
                *times,
                *(
                    "right" if k == (0 if split == "train" else (n + 2) % 5) else f"wrong {k}"
                    for k in range(5)
                ),
            )
            for n, clip in enumerate(clips)
        ]
        if split != "train":
            rows = [(*row, str((n + 2) % 5 + 1)) for n, row in enumerate(rows)]
        _write(
            folder,
            f"LSMDC16_multiple_choice_{choice[split]}.csv",
            "".join("\t".join(row) + "\n" for row in rows),
        )
    return sample


# -- ActivityNet Captions, DiDeMo ------------------------------------------------------------------

ACTIVITYNET = {
    "train": ["v_Train-_0", "v_Train_1", "v_Train_2"],
    "val_1": ["v_-ValA", "v_ValB"],
    "val_2": ["v_-ValA"],
}


def activitynet(root: Path) -> Sample:
    """Sentences with leading spaces; val_2 has other captions of videos of val_1; containers
    differ."""
    videos = list(dict.fromkeys(video for videos in ACTIVITYNET.values() for video in videos))
    sample = _sample(
        root, [f"{video}.{('mp4', 'mkv', 'webm')[k % 3]}" for k, video in enumerate(videos)]
    )
    for half, names in ACTIVITYNET.items():
        sentences = ["A woman walks in.", f"  She sits down in {half}. "]
        entry = {
            "duration": 82.7,
            "timestamps": [[0.8, 19.9], [17.4, 60.8]],
            "sentences": sentences,
        }
        _json(sample.annotations, f"{half}.json", dict.fromkeys(names, entry))
    return sample


DIDEMO = {
    "train": ["1@N00_1_aa", "2@N00_2_bb", "3@N00_3_cc"],
    "val": ["4@N00_4_dd"],
    "test": ["5@N00_5_ee", "6@N00_6_ff"],
}


def didemo(root: Path) -> Sample:
    """The same video under two spellings; rows without an extension; the media have an upper-case
    one."""
    sample = _sample(
        root,
        [
            f"{video}.{('mov', 'mp4', 'AVI')[k % 3]}"
            for k, video in enumerate(v for vs in DIDEMO.values() for v in vs)
        ],
    )
    annotation = 0
    for split, videos in DIDEMO.items():
        rows = []
        for video in videos:
            for spelling, text in (
                (f"{video}.mov", "the dog shakes."),
                (f"{video}.", "it runs off."),
                (video, "a tree."),
            ):
                times = {
                    "times": [[1, 1], [1, 1], [0, 1], [1, 1]],
                    "num_segments": 6,
                    "dl_link": "u",
                }
                rows.append(
                    {"annotation_id": annotation, "video": spelling, "description": text, **times}
                )
                annotation += 1
        _json(sample.annotations, f"{split}_data.json", rows)
        _write(
            sample.annotations, f"{split}_list.txt", "\n".join(f"{video}.mp4" for video in videos)
        )
    return sample


# -- VCR -------------------------------------------------------------------------------------------

VCR_OBJECTS = ["person", "person", "chair", "person"]
VCR_BOXES = [
    [4.0, 5.0, 20.0, 60.0, 0.99],
    [22.0, 5.0, 40.0, 60.0, 0.9],
    [5.0, 40.0, 60.0, 62.0, 0.8],
    [42.0, 2.0, 62.0, 30.0, 0.7],
]


def vcr(root: Path) -> Sample:
    """Texts with nested lists, several persons in one list; boxes of five numbers; polygons per
    object; test hides its labels. Person 3 is mentioned by rationales only. `annotations` is
    vcr1annots, `media` vcr1images."""
    stills = {
        "train": ["lsmdc_A/1@0.jpg", "lsmdc_B/2@0.jpg", "movie C/x@1.jpg"],
        "val": ["lsmdc_D/4@0.jpg", "lsmdc_D/5@0.jpg"],
        "test": ["lsmdc_E/6@0.jpg"],
    }
    sample = _sample(root, [still for split in stills.values() for still in split])
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
            _json(sample.media, metadata, content)
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
        _lines(sample.annotations, f"{split}.jsonl", rows)
    return sample


# -- action recognition ----------------------------------------------------------------------------

KINETICS_ROWS = {
    "train": [
        ("riding a bike", "AbCdEfGhIj0", 12),
        ("archery", "AbCdEfGhIj1", 0),
        ("riding a bike", "-bCdEfGhIj2", 3),
        ("archery", "AbCdEfGhIj3", 104),
    ],
    "val": [("archery", "VbCdEfGhIj0", 5), ("riding a bike", "VbCdEfGhIj1", 6)],
}


def kinetics(root: Path) -> Sample:
    """Labels of several words are quoted; class folders have spaces; file names carry the times
    with six digits. val has one unknown class."""
    files = [
        f"{split}/{label}/{video}_{start:06d}_{start + 10:06d}.mp4"
        for split, rows in KINETICS_ROWS.items()
        for label, video, start in rows
    ]
    sample = _sample(root, files)
    for split, rows in KINETICS_ROWS.items():
        lines = [
            f'"{label}",{video},{start},{start + 10},{split},0' for label, video, start in rows
        ]
        lines += ["flying,Zbcdefghij0,1,11,val,0"] if split == "val" else []
        _write(
            sample.annotations,
            f"{split}.csv",
            "\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines]) + "\n",
        )
    return sample


HMDB_FILES = {
    "brush_hair": [
        f"{film}_brush_hair_u_nm_np1_ba_goo_{k}.avi"
        for k, film in enumerate(("April_09", "#437_How_To;(1)", "Faith & Co!"))
    ],
    "wave": [
        f"{film}_wave_f_cm_np1_fr_med_{k}.avi"
        for k, film in enumerate(("Hello_1", "Hello_2", "TheBoondockSaints"))
    ],
}


def hmdb51(root: Path) -> Sample:
    """Names with #, ;, &, ! and spaces; marks 1 train, 2 test, 0 unused; lines end in a space."""
    sample = _sample(
        root, [f"{label}/{file}" for label, files in HMDB_FILES.items() for file in files]
    )
    for fold in (1, 2, 3):
        for label, files in HMDB_FILES.items():
            marks = ["1"] * len(files)
            marks[fold - 1] = "2"
            lines = [f"{file} {mark} " for file, mark in zip(files, marks, strict=True)]
            lines.append(f"unused_{label}_x_0.avi 0 ")
            _write(
                sample.annotations / "testTrainMulti_7030_splits",
                f"{label}_test_split{fold}.txt",
                "\n".join(lines) + "\n",
            )
    return sample


UCF_GROUPS = range(1, 7)


def ucf101(root: Path) -> Sample:
    """HandStandPushups: the class list and file names spell it so, class folders HandstandPushups.
    Labels count from 1; test lists have none."""
    folders = {"Archery": "Archery", "HandStandPushups": "HandstandPushups"}
    files = [
        f"{folder}/v_{name}_g{group:02d}_c01.avi"
        for name, folder in folders.items()
        for group in UCF_GROUPS
    ]
    sample = _sample(root, files)
    _write(sample.annotations, "classInd.txt", "1 Archery\r\n2 HandStandPushups\r\n")
    for fold in (1, 2, 3):
        tests = {f"_g{group:02d}_" for group in (fold, fold + 3)}
        train = [file for file in files if not any(group in file for group in tests)]
        lines = [f"{file} {1 + ('Pushups' in file)}\r\n" for file in train]
        _write(sample.annotations, f"trainlist0{fold}.txt", "".join(lines))
        _write(
            sample.annotations,
            f"testlist0{fold}.txt",
            "".join(f"{file}\r\n" for file in files if file not in train),
        )
    return sample


# -- images ----------------------------------------------------------------------------------------


def vqav2(root: Path) -> Sample:
    """Ten annotators; capitals and articles in answers; images of test-dev lie under test2015. net
    and yes stand nine times in train and val together, which makes them classes; 2 stands eight
    times."""
    images = {"train2014": range(1, 5), "val2014": range(101, 106), "test2015": range(201, 203)}
    sample = _sample(
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
            _json(
                sample.annotations,
                f"v2_OpenEnded_mscoco_{name}_questions.json",
                {**header, "questions": questions},
            )
        if part != "test2015":
            _json(
                sample.annotations,
                f"v2_mscoco_{part}_annotations.json",
                {**header, "annotations": annotations},
            )
    return sample


def coco(root: Path) -> Sample:
    """restval, six captions, and Karpathy's test images in val2014."""
    splits = {1: "train", 2: "train", 3: "restval", 4: "val", 5: "test", 6: "test"}
    names = {
        number: "train2014" if split == "train" else "val2014" for number, split in splits.items()
    }
    sample = _sample(
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
    _json(sample.annotations, "dataset_coco.json", {"dataset": "coco", "images": images})
    return sample


def flickr30k(root: Path) -> Sample:
    """No filepath, no cocoid: the pictures lie in one folder."""
    splits = ["train", "train", "train", "val", "test", "test"]
    sample = _sample(root, [f"{1000 + number}.jpg" for number in range(len(splits))])
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
    _json(sample.annotations, "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})
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


# -- Ego4D -----------------------------------------------------------------------------------------

EGO4D_VIDEOS = [f"uid-{k}" for k in range(5)]


def ego4d(root: Path) -> Sample:
    """Python literals inside of CSV; a narration with quotes and a comma; the right narration twice
    in one row."""
    sample = _sample(root, [f"{uid}.mp4" for uid in EGO4D_VIDEOS])
    rows = ["question,answers"]
    for number, uid in enumerate(EGO4D_VIDEOS):
        texts = ["#C C opens a drawer", "#C C says 'hm', walks", "#O O waves", "#unsure a tomato"]
        right = texts[number % 4]
        if number == 4:
            texts[3] = texts[0]
        question = (uid, 60 + number, "2021", right)
        answers = [(other, text) for other, text in zip(EGO4D_VIDEOS, texts, strict=False)]
        rows.append(
            ",".join('"' + repr(value).replace('"', '""') + '"' for value in (question, answers))
        )
    _write(sample.annotations, "mc_val.csv", "\n".join(rows) + "\n")
    return sample


def egomcq(root: Path) -> Sample:
    """One text and five clips; types 1 = inter, 2 = intra."""
    sample = _sample(root, [f"{uid}.mp4" for uid in EGO4D_VIDEOS])

    def clip(uid: str, start: float, text: str) -> dict[str, Any]:
        times = {
            "video_dur": 1000.0,
            "narration_ind": 1,
            "narration_time": start,
            "clip_start": start,
            "clip_end": start + 0.5,
        }
        return {
            "clip_idx": 1,
            "video_uid": uid,
            **times,
            "clip_text": text,
            "tag_verb": "[1]",
            "tag_noun": "[2]",
        }

    content = {}
    for number in range(4):
        kind = 1 + number % 2
        uids = EGO4D_VIDEOS if kind == 1 else [EGO4D_VIDEOS[number]] * 5
        choices = {str(k): clip(uid, 0.1 * k, f"#C C does {k}") for k, uid in enumerate(uids)}
        answer = (number + 2) % 5
        content[str(number)] = {
            "query": clip(uids[answer], 0.1 * answer, f"#C C does {answer}"),
            "choices": choices,
            "answer": answer,
            "types": kind,
        }
    _json(sample.annotations, "egomcq.json", content)
    return sample


WRITERS: dict[str, Callable[[Path], Sample]] = {
    "msrvtt": msrvtt,
    "msvd": msvd,
    "tgif": tgif,
    "tvqa": tvqa,
    "lsmdc": lsmdc,
    "activitynet": activitynet,
    "didemo": didemo,
    "vcr": vcr,
    "kinetics": kinetics,
    "hmdb51": hmdb51,
    "ucf101": ucf101,
    "vqav2": vqav2,
    "coco": coco,
    "flickr30k": flickr30k,
    "ego4d": ego4d,
    "egomcq": egomcq,
}
