"""Results and predictions survive a round trip, keep older numbers, and report damaged files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from allinone.finetune.evaluation.official_counts import with_official_count
from allinone.finetune.evaluation.results import (
    EvaluationResult,
    MissingItem,
    ResultError,
    Score,
    read_predictions,
    read_results,
    write_predictions,
    write_result,
)


def result(**changes: Any) -> EvaluationResult:
    facts = EvaluationResult(
        "msrvtt_qa",
        "test",
        "open_ended_qa",
        False,
        3,
        1,
        224,
        40,
        "base",
        110_000_000,
        "runs/x",
        "ab12",
        100,
        {"accuracy": Score(42.9, 41.0, 44.8)},
    )
    return dataclasses.replace(facts, **changes)


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = result(
        variant="x",
        missing=(MissingItem("q1", "video1", "no video track"),),
        details={"chance": 0.1},
        settings={"k": [1, None]},
    )
    path = write_result(tmp_path, written)
    assert path == tmp_path / "results" / "msrvtt_qa-x-test.json"
    assert (
        read_results(tmp_path)
        == read_results(path)
        == read_results(path.parent)
        == [(path, written)]
    )


def test_other_settings_keep_the_old_results_file(
    tmp_path: Path,
) -> None:
    for frames, value in ((3, 40.0), (3, 41.0), (8, 42.0), (3, 43.0)):
        write_result(tmp_path, result(frames=frames, scores={"accuracy": Score(value)}))
        write_predictions(
            tmp_path / "predictions" / "msrvtt_qa-test.jsonl", [{"id": "q", "prediction": value}]
        )
    found = {
        path.name: (one.frames, one.scores["accuracy"].value)
        for path, one in read_results(tmp_path)
    }
    assert found == {
        "msrvtt_qa-test.1.json": (3, 41.0),
        "msrvtt_qa-test.2.json": (8, 42.0),
        "msrvtt_qa-test.json": (3, 43.0),
    }
    said = {
        path.name: read_predictions(path)["q"]["prediction"]
        for path in (tmp_path / "predictions").iterdir()
    }
    assert said == {name.replace(".json", ".jsonl"): value for name, (_, value) in found.items()}
    with pytest.raises(ValueError, match="accuracy is not a finite number"):
        write_result(tmp_path, result(scores={"accuracy": Score(float("nan"))}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "benchm', "is not an evaluation result or is damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "does not hold a JSON object"),
        (b'{"format": 99}', "format 99, this version reads 1"),
        (b'{"format": 1, "benchmark": "x"}', "no field split, protocol"),
        (json.dumps({**result().as_json(), "scores": {"accuracy": 3}}).encode(), "form"),
        (
            json.dumps({**result().as_json(), "official": True, "official_items": 101}).encode(),
            "claims the official items, but has 100 of 101",
        ),
    ],
)
def test_a_damaged_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = write_result(tmp_path, result())
    path.write_bytes(content)
    with pytest.raises(ResultError, match=message) as error:
        read_results(tmp_path)
    assert str(path) in str(error.value)


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="contains no results"):
        read_results(tmp_path)
    with pytest.raises(ResultError, match="neither a file nor a folder"):
        read_results(tmp_path / "nothing")


def test_predictions_have_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [
        {"id": name, "media": "v", "prediction": "café", "measures": {"accuracy": 1.0}}
        for name in ("b", "a10", "a9")
    ]
    contents = set()
    for order in itertools.permutations(rows):
        write_predictions(tmp_path / "p.jsonl", [dict(reversed(row.items())) for row in order])
        contents.add((tmp_path / "p.jsonl").read_bytes())
    assert len(contents) == 1
    assert list(read_predictions(tmp_path / "p.jsonl")) == ["a10", "a9", "b"]
    with pytest.raises(ValueError, match="two predictions for item 'b'"):
        write_predictions(tmp_path / "p.jsonl", [*rows, rows[0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"}\n{"id"', ":2 is not JSON"),
        ('{"id": 3}', ":1 has no id"),
        ('{"id":"a"}\n{"id":"a"}', "repeats the id 'a'"),
        ("\n", "holds no"),
    ],
)
def test_a_damaged_predictions_file_is_named_with_its_line(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ResultError, match=message):
        read_predictions(tmp_path / "p.jsonl")


def test_a_file_without_the_official_number_is_read_as_unstated(tmp_path: Path) -> None:
    content = result().as_json()
    del content["official"], content["official_items"]
    path = tmp_path / "results" / "msrvtt_qa-test.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    ((_, old),) = read_results(path)
    assert old == result()
    assert old.official is None
    assert "earlier version" in old.unofficial_reason
    # the same evaluation, now with the number, replaces the file
    write_result(tmp_path, with_official_count(result()))
    assert [one.official for _, one in read_results(tmp_path)] == [False]
