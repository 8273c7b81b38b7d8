"""Traps of ActivityNet-QA, NExT-QA, VATEX, YouCook2, Something-Something v2 and LSMDC's blanks."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from allinone.data.text import Tokenizer
from allinone.finetune.annotations import activitynet_qa, lsmdc, nextqa, ssv2, vatex, youcook2
from allinone.finetune.annotations.schema import AnnotationError, Media
from allinone.finetune.evaluation.retrieval_rows import text_queries
from tests.finetune.official import MadeUpBenchmark

Samples = Callable[[str], MadeUpBenchmark]


def test_activitynet_qas_types_are_named_and_files_start_with_v(samples: Samples) -> None:
    split = activitynet_qa.load(samples("activitynet_qa").annotations, "test")
    assert [(item.kind, item.answers) for item in split.items] == [
        ("motion", ("run",)),
        ("spatial", ("left",)),
        ("free:yes/no", ("yes",)),
        ("free:number", ("2",)),
        ("free:other", ("sunny",)),
    ]
    assert {item.media for item in split.items} == {Media("v__est0", "v__est0")}
    assert {item.question for item in split.items} == {"is it so"}, "spaces around it are removed"
    assert any("no usable row in test_a.json: 1 (test_q.json[5])" in note for note in split.notes)


def test_nextqas_questions_are_named_by_video_and_qid(samples: Samples) -> None:
    split = nextqa.load(samples("nextqa").annotations, "test")
    assert [item.id for item in split.items] == ["6_0", "6_1", "7_0", "7_1"]
    assert [item.kind for item in split.items] == [
        "causal:why",
        "temporal:before/after",
    ] * 2, "previous (TP) and next (TN) are one type"
    assert [item.media.path for item in split.items] == ["0004/6"] * 2 + ["0005/7"] * 2
    assert split.items[0].choices[0] == "a, b", "a quoted option keeps its comma"
    assert [item.answer for item in split.items] == [1, 2, 1, 2], "answers count from 0"


def test_nextqa_without_the_map_looks_in_one_folder(samples: Samples, tmp_path: Path) -> None:
    shutil.copytree(samples("nextqa").annotations, tmp_path / "a")
    (tmp_path / "a" / "map_vid_vidorID.json").unlink()
    split = nextqa.load(tmp_path / "a", "val")
    assert {item.media.path for item in split.items} == {"55"}
    assert any("map_vid_vidorID.json is not there" in note for note in split.notes)
    (tmp_path / "a" / "map_vid_vidorID.json").write_text('{"1": "2/1"}')
    with pytest.raises(AnnotationError, match=r"the video is not in map_vid_vidorID.json: 2"):
        nextqa.load(tmp_path / "a", "val")


def test_nextgqas_answers_as_texts_are_left_out(samples: Samples, tmp_path: Path) -> None:
    shutil.copytree(samples("nextqa").annotations, tmp_path / "a")
    path = tmp_path / "a" / "val.csv"
    path.write_text(path.read_text().replace(",2,1,TP", ",hit,1,TP"))
    split = nextqa.load(tmp_path / "a", "val")
    assert any("'answer' is not an integer: 1 (val.csv:3)" in note for note in split.notes)


def test_vatexs_halves_follow_hgrs_lists(samples: Samples, tmp_path: Path) -> None:
    sample = samples("vatex")
    found = {split: vatex.load(sample.annotations, split) for split in vatex.SPLITS}
    ids = {name: [item.id for item in split.items] for name, split in found.items()}
    assert ids["test"] == ["Ptf_4VRj-V0_000126_000136", "Ptf_5VRj-V0_000127_000137"]
    assert ids["val"] == ["Ptf_3VRj-V0_000125_000135"], "from a NumPy file"
    item = found["test"].items[0]
    assert len(item.captions) == 10
    assert all(caption.isascii() for caption in item.captions), "no Chinese captions"
    assert any(
        "not in vatex_validation_v1.0.json: 1 (test_list.txt:3)" in note
        for note in found["test"].notes
    )
    shutil.copytree(sample.annotations, tmp_path / "a")
    (tmp_path / "a" / "test_list.txt").unlink()
    with pytest.raises(AnnotationError, match=r"lacks any of test_list.txt.*Source: .*hgr_v2t"):
        vatex.load(tmp_path / "a", "test")


def test_vatexs_list_of_objects_is_refused_not_unpickled(samples: Samples, tmp_path: Path) -> None:
    shutil.copytree(samples("vatex").annotations, tmp_path / "a")

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    names = np.array([Runs()], dtype=object)
    assert pickle.dumps(names), "the object can be pickled"
    path = tmp_path / "a" / "public_split" / "val_names.npy"
    np.save(path, names, allow_pickle=True)
    with pytest.raises(AnnotationError, match=r"without pickle.*val_list.txt"):
        vatex.load(tmp_path / "a", "val")
    assert not (tmp_path / "executed").exists()


def test_youcook2s_csv_has_its_end_before_its_start(samples: Samples) -> None:
    sample = samples("youcook2")
    unseen = youcook2.load(sample.annotations, "val", videos=sample.media)
    assert [item.media for item in unseen.items] == [
        Media("RY10IUcz3bk", "validation/106/RY10IUcz3bk", start, end)
        for start, end in ((0, 0.3), (0.3, 0.5), (0.5, 0.7))
    ]
    full = youcook2.load(sample.annotations, "val", protocol="all", videos=sample.media)
    assert list(full.items[:3]) == list(unseen.items), "both files give the same clips"
    assert full.items[3].captions == ("serve",)


def test_youcook2_in_one_folder_is_found(samples: Samples, tmp_path: Path) -> None:
    split = youcook2.load(samples("youcook2").annotations, "val", videos=tmp_path)
    assert {item.media.path for item in split.items} == {"RY10IUcz3bk"}


def test_youcook2s_held_out_clips_are_of_other_videos(samples: Samples) -> None:
    folder = samples("youcook2").annotations
    train, held = (youcook2.load(folder, part) for part in ("train", "held-out"))
    assert not {i.media.id for i in train.items} & {i.media.id for i in held.items}
    assert len(train.items) + len(held.items) == 12


def test_ssv2s_classes_have_no_brackets_and_keep_their_numbers(
    samples: Samples, tmp_path: Path
) -> None:
    split = ssv2.load(samples("ssv2").annotations, "val")
    assert split.classes == ("Moving something from left to right", "Putting part on something")
    assert [item.label for item in split.items] == [0, 1, 0, 1]
    shutil.copytree(samples("ssv2").annotations, tmp_path / "a")
    path = tmp_path / "a" / "labels.json"
    path.write_text(json.dumps({split.classes[0]: "0", split.classes[1]: "0"}))
    with pytest.raises(AnnotationError, match="two classes have the same number"):
        ssv2.load(tmp_path / "a", "val")


def test_an_ssv2_template_is_one_query_for_all_its_videos(samples: Samples) -> None:
    folder = samples("ssv2").annotations
    split = ssv2.load_retrieval(folder, "val", text="template")
    assert [item.id for item in split.items] == ["6", "8", "7", "9"]
    queries = text_queries(split.items, shared=split.shared_captions)
    assert queries.texts == ["Moving something from left to right", "Putting part on something"]
    assert queries.relevant.tolist() == [[True, True, False, False], [False, False, True, True]]
    labels = ssv2.load_retrieval(folder, "val", text="label")
    queries = text_queries(labels.items, shared=True)
    assert queries.texts == [f"label {k}" for k in range(6, 10)]
    assert np.array_equal(queries.relevant, np.eye(4, dtype=bool))


def test_a_blank_is_masked_and_the_answer_is_not_in_the_text(samples: Samples) -> None:
    split = lsmdc.load(samples("lsmdc").annotations, "test", task="blank")
    assert [(item.question, item.answers) for item in split.items[:2]] == [
        ("SOMEONE [MASK] out.", ("steps",)),
        ("[MASK] Steps out.", ("he",)),
    ], "answers in lower case; the complete sentence of column 6 is not read"
    tokenizer = Tokenizer()
    assert tokenizer.ids(split.items[0].question).count(tokenizer.mask_id) == 1


def test_a_sentence_without_a_gap_is_left_out(samples: Samples, tmp_path: Path) -> None:
    shutil.copytree(samples("lsmdc").annotations, tmp_path / "a")
    path = tmp_path / "a" / "LSMDC16_annos_test_FIB.csv"
    path.write_text(path.read_text().replace("SOMEONE _____ out.", "SOMEONE out.", 1))
    split = lsmdc.load(tmp_path / "a", "test", task="blank")
    note = "'fill_in' does not have one _____: 1 (LSMDC16_annos_test_FIB.csv:1)"
    assert any(note in found for found in split.notes)
