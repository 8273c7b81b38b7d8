"""Retrieval: LSMDC, ActivityNet Captions, DiDeMo."""

from __future__ import annotations

from pathlib import Path

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
    write_text,
)


def lsmdc_clip(movie: str, number: int) -> str:
    return f"{movie}_00.01.0{number}.345-00.01.0{number + 1}.678"


LSMDC_CLIPS = {
    "train": [lsmdc_clip("0001_SOME_MOVIE", k) for k in range(5)],
    "val": [lsmdc_clip("0002_OTHER", 0)],
    "test": [lsmdc_clip("1003_Third", k) for k in range(2)],
}


def lsmdc(root: Path) -> MadeUpBenchmark:
    """Tabs under .csv, no header, no quoting; several sentences per clip in train; names that end
    in .678; the correct option counts from 1; a sentence with two gaps, each a row."""
    sample = make_sample(
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
        write_text(folder, names[split], "".join("\t".join(row) + "\n" for row in rows))
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
        gaps = [
            (clip, *times, f"SOMEONE {word} out.", gap, word if gap.startswith("SOMEONE") else "He")
            for clip in clips
            for word in ("Steps",)
            for gap in ("SOMEONE _____ out.", f"_____ {word} out.")
        ]
        blank = {"train": "training"}.get(split, split)
        text = "".join("\t".join(row) + "\n" for row in gaps)
        write_text(folder, f"LSMDC16_annos_{blank}_FIB.csv", text)
        if split != "train":
            rows = [(*row, str((n + 2) % 5 + 1)) for n, row in enumerate(rows)]
        write_text(
            folder,
            f"LSMDC16_multiple_choice_{choice[split]}.csv",
            "".join("\t".join(row) + "\n" for row in rows),
        )
    return sample


ACTIVITYNET = {
    "train": ["v_Train-_0", "v_Train_1", "v_Train_2"],
    "val_1": ["v_-ValA", "v_ValB"],
    "val_2": ["v_-ValA"],
}


def activitynet(root: Path) -> MadeUpBenchmark:
    """Sentences with leading spaces; val_2 has other captions of videos of val_1; containers
    differ."""
    videos = list(dict.fromkeys(video for videos in ACTIVITYNET.values() for video in videos))
    sample = make_sample(
        root, [f"{video}.{('mp4', 'mkv', 'webm')[k % 3]}" for k, video in enumerate(videos)]
    )
    for half, names in ACTIVITYNET.items():
        sentences = ["A woman walks in.", f"  She sits down in {half}. "]
        entry = {
            "duration": 82.7,
            "timestamps": [[0.8, 19.9], [17.4, 60.8]],
            "sentences": sentences,
        }
        write_json(sample.annotations, f"{half}.json", dict.fromkeys(names, entry))
    return sample


DIDEMO = {
    "train": ["1@N00_1_aa", "2@N00_2_bb", "3@N00_3_cc"],
    "val": ["4@N00_4_dd"],
    "test": ["5@N00_5_ee", "6@N00_6_ff"],
}


def didemo(root: Path) -> MadeUpBenchmark:
    """The same video in two spellings; rows without a suffix, media with an upper-case one."""
    sample = make_sample(
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
        write_json(sample.annotations, f"{split}_data.json", rows)
        write_text(
            sample.annotations, f"{split}_list.txt", "\n".join(f"{video}.mp4" for video in videos)
        )
    return sample
