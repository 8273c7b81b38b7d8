"""Requirements on every reader: items with media, splits that do not leak, and errors that name the
file. Traps: see test_reader_traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from allinone.finetune.annotations import (
    activitynet,
    activitynet_qa,
    didemo,
    ego4d,
    egomcq,
    hmdb51,
    karpathy,
    kinetics,
    lsmdc,
    msrvtt,
    msvd,
    nextqa,
    ssv2,
    tgif,
    tvqa,
    ucf101,
    vatex,
    vcr,
    vqav2,
    youcook2,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ClipChoiceItem,
    Item,
    Media,
    Split,
    assert_disjoint,
)
from tests.finetune.official import MadeUpBenchmark

Load = Callable[[Path, str], Split]


def load_vcr(folder: Path, split: str) -> Split:
    return vcr.load(folder, split, images=folder.parent / "media")


def load_youcook2(folder: Path, split: str, protocol: str = "unseen") -> Split:
    return youcook2.load(folder, split, protocol=protocol, videos=folder.parent / "media")


@dataclass(frozen=True)
class Reader:
    """One benchmark and task."""

    writer: str
    """Key in WRITERS."""
    load: Load
    sizes: dict[str, int]
    """Items per split."""
    split: str
    """The split that is modified."""
    file: str
    """Its annotation file."""
    column: str
    """A field that the file needs."""
    twice: str = ""
    """How rows are repeated: lines (of a .csv without its header), [] (a JSON array), or the key of
    a JSON file's list; empty if rows have no id, or if a repeated row is an error."""
    label: tuple[str, str] = ("", "")
    """(text, replacement) that puts the label of one row out of range; empty if answers are
    words."""


READERS = {
    "msrvtt-9k": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="retrieval"),
        {"train-full": 10, "test": 2},
        "test",
        "MSRVTT_JSFUSION_test.csv",
        "sentence",
    ),
    "msrvtt-7k": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="retrieval", protocol="7k"),
        {"train-full": 8, "test": 2},
        "train-full",
        "train_val_videodatainfo.json",
        "caption",
        "sentences",
    ),
    "msrvtt-full": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="retrieval", protocol="full"),
        {"train": 6, "val": 2, "test": 4},
        "test",
        "test_videodatainfo.json",
        "caption",
        "sentences",
    ),
    "msrvtt-1k-b": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="retrieval", protocol="1k-b"),
        {"train-full": 3, "test": 2},
        "test",
        "test_list_miech.txt",
        "video",
        "lines",
    ),
    "msrvtt-qa": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="qa"),
        {"train": 12, "val": 4, "test": 8},
        "test",
        "test_qa.json",
        "answer",
        "[]",
    ),
    "msrvtt-choice": Reader(
        "msrvtt",
        lambda folder, split: msrvtt.load(folder, split, task="choice"),
        {"train-full": 24, "test": 4},
        "test",
        "MSR_MC_test.csv",
        "a5",
        "",
        ("\t2\n", "\t5\n"),
    ),
    "msvd-qa": Reader(
        "msvd",
        lambda folder, split: msvd.load(folder, split, task="qa"),
        {"train": 8, "val": 4, "test": 4},
        "test",
        "test_qa.json",
        "question",
        "[]",
    ),
    "msvd-retrieval": Reader(
        "msvd",
        lambda folder, split: msvd.load(folder, split, task="retrieval"),
        {"train": 5, "val": 1, "test": 2},
        "test",
        "test_list.txt",
        "Qx",
        "lines",
    ),
    **{
        f"tgif-{task}": Reader(
            "tgif",
            lambda folder, split, task=task: tgif.load(folder, split, task=task),  # type: ignore[misc]
            {"train-full": 5, "test": 2},
            "train-full",
            f"Train_{task}_question.csv",
            "vid_id",
            "lines",
            (
                ("\t4\tACTION4", "\t5\tACTION4")
                if task == "action"
                else (
                    ("\t4\tTRANSITION4", "\t-1\tTRANSITION4")
                    if task == "transition"
                    else ("\t3\tFRAMEQA3", "\t4\tFRAMEQA3")
                )
            ),
        )
        for task in tgif.TASKS
    },
    "tvqa": Reader(
        "tvqa",
        lambda folder, split: tvqa.load(folder, split),
        {"train-full": 6, "val": 4, "test": 2},
        "val",
        "tvqa_val.jsonl",
        "a3",
        "lines",
        ('"answer_idx": 4', '"answer_idx": 5'),
    ),
    "lsmdc-retrieval": Reader(
        "lsmdc",
        lambda folder, split: lsmdc.load(folder, split, task="retrieval"),
        {"train": 5, "val": 1, "test": 2},
        "test",
        "LSMDC16_challenge_1000_publictect.csv",
        "\t00.01.02.345",
    ),
    "lsmdc-choice": Reader(
        "lsmdc",
        lambda folder, split: lsmdc.load(folder, split, task="choice"),
        {"train": 5, "val": 1, "test": 2},
        "test",
        "LSMDC16_multiple_choice_test_randomized.csv",
        "\t00.01.02.345",
        "",
        ("\t4\n", "\t0\n"),
    ),
    "activitynet": Reader(
        "activitynet",
        activitynet.load,
        {"train-full": 3, "val_1": 2, "val_2": 1},
        "val_1",
        "val_1.json",
        "sentences",
    ),
    "didemo": Reader(
        "didemo",
        didemo.load,
        {"train": 3, "val": 1, "test": 2},
        "test",
        "test_data.json",
        "description",
        "[]",
    ),
    "vcr": Reader(
        "vcr",
        load_vcr,
        {"train-full": 3, "val": 2, "test": 1},
        "val",
        "val.jsonl",
        "answer_choices",
        "lines",
        ('"answer_label": 1', '"answer_label": 4'),
    ),
    "kinetics": Reader(
        "kinetics",
        kinetics.load,
        {"train-full": 4, "val": 2},
        "train-full",
        "train.csv",
        "youtube_id",
        "lines",
    ),
    **{
        f"hmdb51-{fold}": Reader(
            "hmdb51",
            lambda folder, split, fold=fold: hmdb51.load(folder, split, fold=fold),  # type: ignore[misc]
            {"train-full": 4, "test": 2},
            "test",
            f"testTrainMulti_7030_splits/wave_test_split{fold}.txt",
            ".avi ",
            "lines",
        )
        for fold in (1, 3)
    },
    "ucf101": Reader(
        "ucf101",
        lambda folder, split: ucf101.load(folder, split, fold=2),
        {"train-full": 8, "test": 4},
        "train-full",
        "trainlist02.txt",
        "/v_",
        "lines",
        ("_g03_c01.avi 1", "_g03_c01.avi 3"),
    ),
    "vqav2": Reader(
        "vqav2",
        vqav2.load,
        {"train": 12, "val": 15, "test-dev": 6, "test": 6},
        "val",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "question_id",
        "questions",
    ),
    "coco": Reader(
        "coco",
        lambda folder, split: karpathy.load(folder, split, dataset="coco"),
        {"train": 3, "val": 1, "test": 2},
        "test",
        "dataset_coco.json",
        "sentences",
        "images",
    ),
    "flickr30k": Reader(
        "flickr30k",
        lambda folder, split: karpathy.load(folder, split, dataset="flickr30k"),
        {"train": 3, "val": 1, "test": 2},
        "test",
        "dataset_flickr30k.json",
        "filename",
        "images",
    ),
    "activitynet-qa": Reader(
        "activitynet_qa",
        activitynet_qa.load,
        {"train": 10, "val": 5, "test": 5},
        "test",
        "test_q.json",
        "video_name",
        "[]",
    ),
    "activitynet-qa-answers": Reader(
        "activitynet_qa",
        activitynet_qa.load,
        {"train": 10, "val": 5, "test": 5},
        "test",
        "test_a.json",
        "answer",
        "",
        ('"type": 8', '"type": 9'),
    ),
    "nextqa": Reader(
        "nextqa",
        nextqa.load,
        {"train-full": 6, "val": 2, "test": 4},
        "val",
        "val.csv",
        "a3",
        "lines",
        (",2,1,TP", ",5,1,TP"),
    ),
    "vatex": Reader(
        "vatex",
        vatex.load,
        {"train": 3, "val": 1, "test": 2},
        "test",
        "vatex_validation_v1.0.json",
        "enCap",
        "[]",
    ),
    "youcook2": Reader(
        "youcook2",
        load_youcook2,
        {"train-full": 12, "val": 3},
        "val",
        "validation_youcook.csv",
        "text",
        "lines",
        ("0.5,0.3,", "0.2,0.3,"),
    ),
    "youcook2-all": Reader(
        "youcook2",
        lambda folder, split: load_youcook2(folder, split, "all"),
        {"train-full": 12, "val": 4},
        "train-full",
        "youcookii_annotations_trainval.json",
        "segment",
    ),
    "ssv2": Reader(
        "ssv2",
        ssv2.load,
        {"train-full": 6, "val": 4},
        "val",
        "validation.json",
        "template",
        "[]",
    ),
    **{
        f"ssv2-{text}": Reader(
            "ssv2",
            lambda folder, split, text=text: ssv2.load_retrieval(folder, split, text=text),  # type: ignore[misc]
            {"train-full": 6, "val": 4},
            "val",
            f"ssv2_ret_{text}_val_small.json",
            "caption",
            "[]",
        )
        for text in ssv2.TEXTS
    },
    "lsmdc-blank": Reader(
        "lsmdc",
        lambda folder, split: lsmdc.load(folder, split, task="blank"),
        {"train": 10, "val": 2, "test": 4},
        "test",
        "LSMDC16_annos_test_FIB.csv",
        "\t00.01.02.345",
    ),
    "ego4d": Reader("ego4d", ego4d.load, {"val": 5}, "val", "mc_val.csv", "answers"),
    "egomcq": Reader(
        "egomcq",
        egomcq.load,
        {"test": 4},
        "test",
        "egomcq.json",
        "choices",
        "",
        ('"answer": 4', '"answer": 5'),
    ),
}


every_reader = pytest.mark.parametrize("name", READERS)


def suffixes(folder: Path, media: Media) -> list[Path]:
    path = folder / media.path
    return (
        [path]
        if path.exists()
        else [
            found for found in path.parent.glob("*") if found.name.rpartition(".")[0] == path.name
        ]
    )


def all_media(item: Item) -> tuple[Media, ...]:
    return item.clips if isinstance(item, ClipChoiceItem) else (item.media,)


@every_reader
def test_all_splits_have_items_with_media_and_none_leaks(
    name: str, samples: Callable[[str], MadeUpBenchmark]
) -> None:
    reader = READERS[name]
    sample = samples(reader.writer)
    splits = {split: reader.load(sample.annotations, split) for split in reader.sizes}
    assert {split: len(found.items) for split, found in splits.items()} == reader.sizes
    for split in splits.values():
        assert len({item.id for item in split.items}) == len(split.items)
        assert all(Path(file).exists() for file in split.files)
        for item in split.items:
            for media in all_media(item):
                assert len(suffixes(sample.media, media)) == 1, media
    tests = [split for split in splits if split in ("test", "val_1")] or ["val"]
    for split in splits:
        if split not in tests and split not in ("val_2", "test-dev"):
            assert_disjoint(splits[split], splits[tests[0]])
    if "train-full" in splits:
        parts = [reader.load(sample.annotations, part) for part in ("train", "held-out")]
        assert_disjoint(*parts)
        assert sorted(i.id for part in parts for i in part.items) == sorted(
            i.id for i in splits["train-full"].items
        )
        assert all(len(part.items) for part in parts)


@every_reader
def test_a_made_up_split_name_is_refused_with_the_valid_ones(
    name: str, samples: Callable[[str], MadeUpBenchmark]
) -> None:
    reader = READERS[name]
    with pytest.raises(
        AnnotationError, match=r"no split 'testing'; choose one of: .*" + reader.split
    ):
        reader.load(samples(reader.writer).annotations, "testing")


def copied(reader: Reader, samples: Callable[[str], MadeUpBenchmark], folder: Path) -> Path:
    """A writable copy of the annotations, next to the shared media."""
    sample = samples(reader.writer)
    shutil.copytree(sample.annotations, folder / "annotations")
    (folder / "media").symlink_to(sample.media)
    return folder / "annotations"


@pytest.mark.parametrize("name", [name for name in READERS if not name.startswith("hmdb51")])
def test_missing_empty_and_foreign_files_are_named(
    name: str, samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    reader = READERS[name]
    folder = copied(reader, samples, tmp_path)
    path = folder / reader.file
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(AnnotationError, match=path.name):
        reader.load(folder, reader.split)
    assert reader.column.encode() in content
    path.write_bytes(content.replace(reader.column.encode(), b"renamed"))
    with pytest.raises(
        AnnotationError,
        match=(
            rf"{path.name}.*({reader.column}|does not have \d+ fields|not a number|neither|not a"
            r" class|has no caption)"
        ),
    ):
        reader.load(folder, reader.split)
    path.write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(AnnotationError, match=f"{path.name} is not UTF-8 text"):
        reader.load(folder, reader.split)
    path.unlink()
    with pytest.raises(AnnotationError, match=rf"lacks .*{path.name}.*Source: \w+"):
        reader.load(folder, reader.split)


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].twice])
def test_repeated_rows_are_counted_once_and_named(
    name: str, samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    reader = READERS[name]
    folder = copied(reader, samples, tmp_path)
    before = reader.load(folder, reader.split)
    path = folder / reader.file
    if reader.twice == "lines":
        rows = path.read_bytes().decode().splitlines(keepends=True)
        header = path.suffix == ".csv"
        path.write_bytes(
            "".join([*rows[:-1], rows[-1].rstrip("\n") + "\n", *rows[header:]]).encode()
        )
    else:
        content = json.loads(path.read_text())
        rows = content if reader.twice == "[]" else content[reader.twice]
        rows.extend(list(rows))
        path.write_text(json.dumps(content))
    after = reader.load(folder, reader.split)
    assert list(after.items) == list(before.items)
    new = set(after.notes) - set(before.notes)
    assert any("is repeated" in note and "left out" in note for note in new), new


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].label[0]])
def test_a_label_outside_its_range_is_left_out_and_named(
    name: str, samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    reader = READERS[name]
    good, bad = reader.label
    folder = copied(reader, samples, tmp_path)
    before = reader.load(folder, reader.split)
    path = folder / reader.file
    text = path.read_bytes().decode()
    assert text.count(good) == 1
    path.write_bytes(text.replace(good, bad).encode())
    after = reader.load(folder, reader.split)
    assert len(after.items) == len(before.items) - 1
    new = set(after.notes) - set(before.notes)
    assert any(note.startswith("left out") and path.name in note for note in new), new
