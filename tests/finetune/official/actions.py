"""Action recognition: Kinetics-400, HMDB51, UCF101."""

from __future__ import annotations

from pathlib import Path

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_text,
)

KINETICS_ROWS = {
    "train": [
        ("riding a bike", "AbCdEfGhIj0", 12),
        ("archery", "AbCdEfGhIj1", 0),
        ("riding a bike", "-bCdEfGhIj2", 3),
        ("archery", "AbCdEfGhIj3", 104),
    ],
    "val": [("archery", "VbCdEfGhIj0", 5), ("riding a bike", "VbCdEfGhIj1", 6)],
}


def kinetics(root: Path) -> MadeUpBenchmark:
    """Labels of several words are quoted; class folders have spaces; file names contain the times
    with six digits. val has one unknown class."""
    files = [
        f"{split}/{label}/{video}_{start:06d}_{start + 10:06d}.mp4"
        for split, rows in KINETICS_ROWS.items()
        for label, video, start in rows
    ]
    sample = make_sample(root, files)
    for split, rows in KINETICS_ROWS.items():
        lines = [
            f'"{label}",{video},{start},{start + 10},{split},0' for label, video, start in rows
        ]
        lines += ["flying,Zbcdefghij0,1,11,val,0"] if split == "val" else []
        write_text(
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


def hmdb51(root: Path) -> MadeUpBenchmark:
    """Names with #, ;, &, ! and spaces; marks 1 train, 2 test, 0 unused; lines end in a space."""
    sample = make_sample(
        root, [f"{label}/{file}" for label, files in HMDB_FILES.items() for file in files]
    )
    for fold in (1, 2, 3):
        for label, files in HMDB_FILES.items():
            marks = ["1"] * len(files)
            marks[fold - 1] = "2"
            lines = [f"{file} {mark} " for file, mark in zip(files, marks, strict=True)]
            lines.append(f"unused_{label}_x_0.avi 0 ")
            write_text(
                sample.annotations / "testTrainMulti_7030_splits",
                f"{label}_test_split{fold}.txt",
                "\n".join(lines) + "\n",
            )
    return sample


UCF_GROUPS = range(1, 7)


def ucf101(root: Path) -> MadeUpBenchmark:
    """The class list and file names say HandStandPushups, class folders HandstandPushups. Labels
    count from 1; test lists have none."""
    folders = {"Archery": "Archery", "HandStandPushups": "HandstandPushups"}
    files = [
        f"{folder}/v_{name}_g{group:02d}_c01.avi"
        for name, folder in folders.items()
        for group in UCF_GROUPS
    ]
    sample = make_sample(root, files)
    write_text(sample.annotations, "classInd.txt", "1 Archery\r\n2 HandStandPushups\r\n")
    for fold in (1, 2, 3):
        tests = {f"_g{group:02d}_" for group in (fold, fold + 3)}
        train = [file for file in files if not any(group in file for group in tests)]
        lines = [f"{file} {1 + ('Pushups' in file)}\r\n" for file in train]
        write_text(sample.annotations, f"trainlist0{fold}.txt", "".join(lines))
        write_text(
            sample.annotations,
            f"testlist0{fold}.txt",
            "".join(f"{file}\r\n" for file in files if file not in train),
        )
    return sample
