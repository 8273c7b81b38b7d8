"""Traps of the official annotation files, on made-up files in the exact official format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from allinone.finetune.annotations import (
    activitynet,
    didemo,
    ego4d,
    egomcq,
    hmdb51,
    karpathy,
    kinetics,
    lsmdc,
    msrvtt,
    msvd,
    tgif,
    tvqa,
    ucf101,
    vcr,
    vqav2,
)
from allinone.finetune.annotations.common import Builder, table
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    ClipChoiceItem,
    LabelItem,
    Media,
    QAItem,
    RetrievalItem,
    Split,
    VCRItem,
    assert_disjoint,
)
from tests.finetune import official
from tests.finetune.annotations.test_readers import load_vcr
from tests.finetune.official import MadeUpBenchmark

# -- MSR-VTT ---------------------------------------------------------------------------------------


def retrieval(folder: Path, split: str, protocol: str = "9k") -> Split:
    return msrvtt.load(folder, split, task="retrieval", protocol=protocol)


def ids(split: Split) -> list[str]:
    return [item.id for item in split.items]


@pytest.mark.parametrize("form", ["own", "clip4clip", "frozen"])
def test_msrvtts_three_forms_of_captions_give_the_same_items(
    form: str, samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    folder = official.msrvtt(tmp_path, form).annotations
    reference = samples("msrvtt").annotations
    for protocol, split in (
        ("9k", "train-full"),
        ("9k", "test"),
        ("7k", "train"),
        ("7k", "held-out"),
        ("full", "val"),
        ("full", "test"),
        ("1k-b", "test"),
    ):
        assert list(retrieval(folder, split, protocol).items) == list(
            retrieval(reference, split, protocol).items
        )


def test_msrvtts_missing_training_lists_are_derived(
    tmp_path: Path,
) -> None:
    folder = official.msrvtt(tmp_path).annotations
    listed = {protocol: ids(retrieval(folder, "train-full", protocol)) for protocol in ("9k", "7k")}
    assert listed["9k"] == [f"video{v}" for v in (0, 1, 2, 3, 4, 5, 6513, 6514, 7010, 7012)]
    assert listed["7k"] == [f"video{v}" for v in (0, 1, 2, 3, 4, 5, 6513, 6514)]
    for name in ("MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv"):
        (folder / name).unlink()
    for protocol, videos in listed.items():
        derived = retrieval(folder, "train-full", protocol)
        assert ids(derived) == videos
        assert any("there is no" in note for note in derived.notes)


def test_msrvtts_1k_a_test_has_one_caption_per_video(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    folder = samples("msrvtt").annotations
    first = retrieval(folder, "test").items[0]
    assert first == RetrievalItem(
        "video7011", Media("video7011", "video7011"), ('a dog, 7011, "runs"',)
    )
    full = retrieval(folder, "test", "full")
    assert [len(item.captions) for item in full.items if isinstance(item, RetrievalItem)] == [
        3,
        3,
        3,
        3,
    ]
    assert [
        item.captions
        for item in retrieval(folder, "test", "1k-b").items
        if isinstance(item, RetrievalItem)
    ] == [
        (official.msrvtt_caption(7010, 0),),
        (official.msrvtt_caption(7012, 0),),
    ]
    copy = official.msrvtt(tmp_path).annotations
    with (copy / "MSRVTT_JSFUSION_test.csv").open("a") as file:
        file.write("ret9,msr7011,video7011,another caption\n")
    with pytest.raises(
        AnnotationError, match=r"video7011 is repeated .*exactly one caption per video"
    ):
        retrieval(copy, "test")


def test_msrvtts_caption_index_pickle_is_refused(tmp_path: Path) -> None:
    folder = official.msrvtt(tmp_path, "frozen").annotations
    (folder / "MSRVTT_JSFUSION_test.csv").unlink()
    lists = folder / "high-quality" / "structured-symlinks"
    lists.mkdir(parents=True)
    (lists / "jsfusion_val_caption_idx.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(
        AnnotationError,
        match=(r"jsfusion_val_caption_idx.pkl.*pickle.*refused. Add MSRVTT_JSFUSION_test.csv"),
    ):
        retrieval(folder, "test")


@pytest.mark.parametrize(
    ("protocol", "name", "content"),
    [
        ("9k", "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo7011\n"),
        ("7k", "MSRVTT_train.7k.csv", "video_id\nvideo0\nvideo7012\n"),
        ("1k-b", "train_list_miech.txt", "video0\n7010\n"),
    ],
)
def test_msrvtts_training_lists_with_test_videos_are_refused(
    protocol: str, name: str, content: str, tmp_path: Path
) -> None:
    folder = official.msrvtt(tmp_path).annotations
    (folder / name).write_text(content)
    for split in ("train", "held-out", "train-full"):
        with pytest.raises(
            AnnotationError,
            match=rf"{name} contains 1 videos of .*video70\d\d: a result would be leaked",
        ):
            retrieval(folder, split, protocol)
    with pytest.raises(
        AnnotationError, match="no protocol 'miech'; choose one of: 9k, 7k, full, 1k-b"
    ):
        retrieval(folder, "train", "miech")


def test_msrvtts_ids_are_numbers_names_or_jsfusions(tmp_path: Path) -> None:
    folder = official.msrvtt(tmp_path).annotations
    rows = [
        {
            "answer": "couch",
            "question": "where is it?",
            "video_id": "video7010",
            "answer_type": "where",
        },
        {"answer": "dog", "question": "Who barks?", "video_id": 7011},
        {"answer": "dog", "question": "is it a dog?", "video_id": "clip7011"},
    ]
    (folder / "test_qa.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "train_ans2label.json").write_text('{"cat": 1, "dog": 0, "couch": 2}')
    split = msrvtt.load(folder, "test", task="qa")
    assert [
        (item.media.id, item.kind, item.answers) for item in split.items if isinstance(item, QAItem)
    ] == [
        ("video7010", "where", ("couch",)),
        ("video7011", "who", ("dog",)),
    ]
    assert split.answer_space == ("dog", "cat", "couch")
    assert any(
        "neither a number nor video<number>: 1 (test_qa.json:3)" in note for note in split.notes
    )


def test_msrvtts_three_forms_of_multiple_choice_agree(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    folder = samples("msrvtt").annotations
    forms = [
        msrvtt.load(path, "test", task="choice")
        for path in (folder, folder / "other", folder / "another")
    ]
    found = [
        [
            (item.media, item.choices, item.answer)
            for item in form.items
            if isinstance(item, ChoiceItem)
        ]
        for form in forms
    ]
    assert found[0] == found[1] == found[2]
    assert [answer for _, _, answer in found[0]] == [0, 1, 2, 3]
    train = msrvtt.load(folder, "train-full", task="choice")
    assert list(train.items) == list(msrvtt.load(folder, "train-full", task="choice").items)
    for item in train.items:
        assert isinstance(item, ChoiceItem)
        videos = [text.split('"')[1] for text in item.choices]
        assert len(set(videos)) == 5
        assert videos[item.answer or 0] == item.media.id.removeprefix("video")
    assert {item.answer for item in train.items if isinstance(item, ChoiceItem)} == {0, 1, 2, 3, 4}


def test_msrvtt_in_clipberts_form_has_its_own_validation_set(tmp_path: Path) -> None:
    folder = official.msrvtt(tmp_path, "clipbert").annotations
    splits = [
        msrvtt.load(folder, split, task="retrieval", protocol="7k-clipbert")
        for split in ("train", "val", "test")
    ]
    assert [len(split.items) for split in splits] == [6, 2, 2]
    assert_disjoint(*splits)
    with pytest.raises(
        AnnotationError, match="no split 'held-out'; choose one of: train, val, test"
    ):
        msrvtt.load(folder, "held-out", task="retrieval", protocol="7k-clipbert")


# -- one trap each ---------------------------------------------------------------------------------


def test_msvd_keeps_captions_and_counts_unmapped_clips(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    folder = samples("msvd").annotations
    item = msvd.load(folder, "test", task="retrieval").items[0]
    assert isinstance(item, RetrievalItem)
    assert item.captions == tuple(f"a dog, a cat and {k} birds run" for k in range(3))
    questions = msvd.load(folder, "train", task="qa")
    assert questions.items[1] == QAItem(
        "11",
        Media(official.MSVD_CLIPS[0], official.MSVD_CLIPS[0]),
        "what is it doing?",
        ("run",),
        "what",
    )
    assert questions.answer_space == ("dog", "run")
    assert any("not in youtube_mapping.txt: 1" in note for note in questions.notes)
    copy = official.msvd(tmp_path).annotations
    (copy / "AllVideoDescriptions.txt").unlink()
    (copy / "raw-captions.pkl").write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"pickle.*refused"):
        msvd.load(copy, "test", task="retrieval")


def test_tgifs_carriage_returns_are_stripped_and_forms_separate(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    item = tgif.load(samples("tgif").annotations, "test", task="action").items[1]
    assert isinstance(item, ChoiceItem)
    assert (item.id, item.answer) == ("ACTION1-1", 1)
    assert item.question == 'What does the "man do 1 times ?'
    word = tgif.load(samples("tgif").annotations, "test", task="frameqa").items[1]
    assert isinstance(word, QAItem)
    assert (word.answers, word.kind) == (("blue",), "number")
    official.tgif_clipbert(tmp_path)
    clipbert = tgif.load(tmp_path, "val", task="frameqa", form="clipbert")
    assert clipbert.answer_space == ("car", "dog")
    assert len(tgif.load(tmp_path, "test", task="action", form="clipbert").items) == 1
    with pytest.raises(
        AnnotationError, match="no split 'held-out'; choose one of: train, val, test"
    ):
        tgif.load(tmp_path, "held-out", task="action", form="clipbert")


def test_tvqas_nan_span_is_10_to_30_s_and_bbt_has_no_prefix(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    folder = samples("tvqa").annotations
    train = tvqa.load(folder, "train-full")
    spans = {
        item.id: (item.media.path.split("/")[0], item.media.start_s, item.media.end_s)
        for item in train.items
        if isinstance(item, ChoiceItem)
    }
    assert spans == {
        "0": ("friends_frames", 0.4, 2.21),
        "1": ("friends_frames", 1.0, 3.5),
        "2": ("castle_frames", 0.4, 2.21),
        "3": ("castle_frames", 1.0, 3.5),
        "4": ("bbt_frames", 0.4, 2.21),
        "5": ("bbt_frames", 10.0, 30.0),
    }
    assert any("nan: 1, replaced by 10 to 30 s" in note for note in train.notes)
    whole = tvqa.load(folder, "test", timestamps=False)
    assert [
        (item.answer, item.media.start_s) for item in whole.items if isinstance(item, ChoiceItem)
    ] == [(None, None)] * 2
    assert not any("nan" in note for note in whole.notes)


def test_tvqas_subtitles_are_those_of_the_span_in_both_forms(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    srt = samples("tvqa").annotations
    lines = official.tvqa(tmp_path).annotations
    official.tvqa_subtitle_lines(lines)
    for folder in (srt, lines):
        split = tvqa.load(folder, "val", subtitles=True)
        contexts = [item.context for item in split.items if isinstance(item, ChoiceItem)]
        assert contexts == ["Joey : Hi there .", "Joey : Hi there . Monica : Oh", "", ""]
        assert any(
            "clips without subtitles: 1 (house_s01e02_seg02_clip_05)" in note
            for note in split.notes
        )
        whole = tvqa.load(folder, "val", subtitles=True, timestamps=False).items[0]
        assert isinstance(whole, ChoiceItem)
        assert whole.context == "Joey : Hi there . Monica : Oh"


def test_lsmdcs_labels_count_from_1_and_options_are_rotated(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    folder = samples("lsmdc").annotations
    item = lsmdc.load(folder, "test", task="retrieval").items[0]
    assert item.media == Media(
        "1003_Third_00.01.00.345-00.01.01.678", "1003_Third/1003_Third_00.01.00.345-00.01.01.678"
    )
    train = lsmdc.load(folder, "train", task="retrieval").items[0]
    assert isinstance(train, RetrievalItem)
    assert train.captions == (
        'SOMEONE "opens the door and 0 steps out.',
        'SOMEONE "opens the door and 1 steps out.',
    )
    for split in ("train", "val", "test"):
        for choice in lsmdc.load(folder, split, task="choice").items:
            assert isinstance(choice, ChoiceItem)
            assert choice.choices[choice.answer or 0] == "right"
    places = {
        choice.answer
        for choice in lsmdc.load(folder, "train", task="choice").items
        if isinstance(choice, ChoiceItem)
    }
    assert len(places) > 1, "the correct option must not always be first"


def test_paragraphs_join_all_sentences_of_any_spelling(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    item = activitynet.load(samples("activitynet").annotations, "val_1").items[0]
    assert isinstance(item, RetrievalItem)
    assert (item.media.path, item.captions) == (
        "v_-ValA",
        ("A woman walks in. She sits down in val_1.",),
    )
    split = didemo.load(samples("didemo").annotations, "test")
    assert split.items[0] == RetrievalItem(
        "5@N00_5_ee",
        Media("5@N00_5_ee", "5@N00_5_ee", 0.0, 30.0),
        ("the dog shakes. it runs off. a tree.",),
    )
    assert any("6 spellings of 2 videos" in note for note in split.notes)


def test_vcrs_texts_point_at_regions_and_test_hides_its_labels(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    sample = samples("vcr")
    item = load_vcr(sample.annotations, "val").items[1]
    assert isinstance(item, VCRItem)
    assert (item.answer, item.rationale, item.media.path) == (1, 2, "lsmdc_D/5@0.jpg")
    assert item.question == ("Why", "is", (0,), "smiling", "at", (1,), "?")
    assert item.answers[1] == ((0, 1), "like", "it", "veryvery", ".")
    assert item.regions[2].name == "chair"
    assert item.regions[2].box == (5.0, 40.0, 60.0, 62.0)
    assert [len(polygons) for polygons in vcr.outlines(sample.media, item)] == [1, 1, 1, 1]
    assert vcr.outlines(sample.media, item)[0][0] == (
        (4.0, 5.0),
        (20.0, 5.0),
        (20.0, 60.0),
        (4.0, 60.0),
    )
    hidden = load_vcr(sample.annotations, "test").items[0]
    assert isinstance(hidden, VCRItem)
    assert (hidden.answer, hidden.rationale) == (None, None)
    copy = official.vcr(tmp_path)
    text = (copy.annotations / "val.jsonl").read_text()
    (copy.annotations / "val.jsonl").write_text(
        text.replace('"at", [1]', '"at", [4]', 1).replace("lsmdc_D/5@0.json", "../5.json")
    )
    with pytest.raises(
        AnnotationError,
        match=(
            r"refers to an object that is not listed: 1 .*"
            r"'metadata_fn' is outside the image folder: 1"
        ),
    ):
        load_vcr(copy.annotations, "val")


def test_kinetics_classes_are_numbered_by_train(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    folder = samples("kinetics").annotations
    val = kinetics.load(folder, "val")
    assert val.classes == ("archery", "riding a bike")
    assert [(item.label, item.media.path) for item in val.items if isinstance(item, LabelItem)] == [
        (0, "val/archery/VbCdEfGhIj0_000005_000015.mp4"),
        (1, "val/riding a bike/VbCdEfGhIj1_000006_000016.mp4"),
    ]
    assert any("not a class of train.csv: 1 (val.csv:4)" in note for note in val.notes)
    assert (
        kinetics.load(folder, "val", class_folders="underscores")
        .items[1]
        .media.path.startswith("val/riding_a_bike/")
    )


def test_hmdbs_odd_names_are_read_and_class_files_required(
    samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    folder = samples("hmdb51").annotations
    test = hmdb51.load(folder, "test", fold=2)
    assert [
        (item.media.path, item.label) for item in test.items if isinstance(item, LabelItem)
    ] == [
        ("brush_hair/#437_How_To;(1)_brush_hair_u_nm_np1_ba_goo_1.avi", 0),
        ("wave/Hello_2_wave_f_cm_np1_fr_med_1.avi", 1),
    ]
    assert len(hmdb51.load(folder, "train-full", fold=2).items) == 4
    copy = official.hmdb51(tmp_path).annotations / "testTrainMulti_7030_splits"
    (copy / "brush_hair_test_split3.txt").unlink()
    with pytest.raises(
        AnnotationError, match=r"lacks brush_hair_test_split3.txt, which would renumber the classes"
    ):
        hmdb51.load(copy, "test", fold=3)
    with pytest.raises(
        AnnotationError, match=r"lacks <class>_test_split1.txt\. Source: test_train_splits.rar"
    ):
        hmdb51.load(tmp_path, "test", fold=1)
    with pytest.raises(AnnotationError, match="no fold 4; choose one of: 1, 2, 3"):
        hmdb51.load(folder, "test", fold=4)


def test_ucfs_class_folder_differs_in_case_from_its_class_list(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    test = ucf101.load(samples("ucf101").annotations, "test", fold=1)
    assert test.classes == ("Archery", "HandStandPushups")
    assert test.items[-1] == LabelItem(
        "v_HandStandPushups_g04_c01",
        Media("v_HandStandPushups_g04_c01", "HandstandPushups/v_HandStandPushups_g04_c01.avi"),
        1,
    )


def test_vqav2s_answer_space_counts_train_and_val(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    folder = samples("vqav2").annotations
    val = vqav2.load(folder, "val")
    assert set(val.answer_space) == {"net", "yes"}, "seen nine times; 2 is seen eight times"
    first = val.items[0]
    assert isinstance(first, QAItem)
    assert first.answers == ("A net",) * 7 + ("Net.", "no", "two")
    assert (first.id, first.kind) == ("1010", "other")
    dev = vqav2.load(folder, "test-dev", with_answer_space=False)
    assert dev.items[0] == QAItem(
        "2010", Media("201", "test2015/COCO_test2015_000000000201.jpg"), "What is this?"
    )
    both, held = vqav2.load(folder, "train+val"), vqav2.load(folder, "held-out")
    assert_disjoint(both, held)
    assert len(both.items) + len(held.items) == 27


def test_karpathys_flickr30k_captions_can_be_limited(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    test = karpathy.load(samples("flickr30k").annotations, "test", dataset="flickr30k")
    assert [item.media.path for item in test.items] == ["1004.jpg", "1005.jpg"]
    for captions, sizes in ((None, [5, 6]), (5, [5, 5])):
        coco = karpathy.load(samples("coco").annotations, "test", dataset="coco", captions=captions)
        assert [
            len(item.captions) for item in coco.items if isinstance(item, RetrievalItem)
        ] == sizes


def test_ego4ds_last_equal_narration_is_the_answer(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    split = ego4d.load(samples("ego4d").annotations, "val")
    items = [item for item in split.items if isinstance(item, ChoiceItem)]
    assert [item.answer for item in items] == [0, 1, 2, 3, 3]
    assert items[1].choices[1] == "#C C says 'hm', walks"
    assert items[2].media == Media("uid-2", "uid-2", 2 / 30, 122 / 30)
    assert any("narration is repeated" in note and ": 1 (" in note for note in split.notes)
    dropped = ego4d.load(samples("ego4d").annotations, "val", tags="drop").items[0]
    assert isinstance(dropped, ChoiceItem)
    assert dropped.choices[0] == "C opens a drawer"


def test_egomcqs_types_are_inter_and_intra(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    split = egomcq.load(samples("egomcq").annotations, "test")
    items = [item for item in split.items if isinstance(item, ClipChoiceItem)]
    assert [
        (item.kind, item.answer, len({clip.path for clip in item.clips})) for item in items
    ] == [
        ("inter", 2, 5),
        ("intra", 3, 1),
        ("inter", 4, 5),
        ("intra", 0, 1),
    ]
    assert items[0].clips[0] == Media("uid-0@0-0.5", "uid-0", 0.0, 0.5)
    chunks = egomcq.load(samples("egomcq").annotations, "test", chunk_s=0.45)
    assert isinstance(chunks.items[0], ClipChoiceItem)
    assert chunks.items[0].clips[0] == Media("uid-0@0-0.5", "uid-0/0.mp4", 0.0, 0.45)
    assert any("clips cut at the end of a chunk" in note for note in chunks.notes)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_an_unbalanced_quote_costs_its_own_line(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    lines = [
        'video0|"a caption, with a comma"',
        'video1|"never closed',
        "video2|plain",
        'video3|"closed late',
        "video4|a row of its own",
        'video5|end of it"',
        'video6|"two\nlines\u2028and more"',
        "video7|last",
    ]
    text = "\n".join(["id|caption", *lines]).replace("|", delimiter) + "\n"
    path.write_text(text, encoding="utf-8")
    builder = Builder("train")
    rows = table(path, builder, columns=["id", "caption"], delimiter=delimiter, quoted=True)
    found = {row["id"]: row["caption"] for _, row in rows}
    assert found["video0"] == "a caption, with a comma"
    assert found["video6"] == "two\nlines\u2028and more"
    assert {"video2", "video4", "video7"} <= found.keys()
    assert not {"video1", "video3"} & found.keys()
    with pytest.raises(AnnotationError, match=r"a quote is not closed.*a\.csv:3"):
        builder.split()
