"""`allinone zero-shot`: one row per benchmark and way of scoring, and faults of its file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from allinone.common.errors import InputError
from allinone.finetune.evaluation.results import EvaluationResult, Score, read_results
from allinone.tools.zero_shot import ZeroShotOptions, jobs, table
from tests.finetune.official import WRITERS
from tests.forked import ROOT, rank_env
from tests.tools.conftest import tiny_model


def options(path: Path, **changes: object) -> ZeroShotOptions:
    plain = ZeroShotOptions(path, Path("model"), Path("out"))
    return replace(plain, **changes)  # type: ignore[arg-type]


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "benchmarks.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_the_file_overrides_flags_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    entry = {"annotations": "a", "media": "m", "views": 3, "loader.workers": 2, "variant": "1k"}
    path = written(tmp_path, {"coco_retrieval": entry})
    ((benchmark, config),) = jobs(options(path, frames=8, dual_softmax=False))
    assert benchmark.name == "coco_retrieval"
    assert (config.annotations, config.media) == (tmp_path / "a", tmp_path / "m")
    assert (config.views, config.frames, config.loader.workers) == (3, 8, 2)
    assert config.eval_only
    assert config.out == Path("out/coco_retrieval")
    assert config.task.folds == 5, "the variant's defaults"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no benchmarks"),
        (["msrvtt_retrieval"], "holds no benchmarks"),
        ({"msrvtt_retrieval": {"media": "m"}}, "give annotations and media"),
        ({"msrvtt_retrival": {"annotations": "a", "media": "m"}}, "did you mean msrvtt_retrieval"),
        ({"msrvtt_qa": {"annotations": "a", "media": "m"}}, "is no retrieval benchmark"),
        ({"vatex_retrieval": {"annotations": "a", "media": "m", "fps": 1}}, "fps"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        jobs(options(written(tmp_path, content)))


def test_a_dual_softmax_has_a_row_of_its_own() -> None:
    names = [f"{way}/{name}" for way in ("t2v", "v2t") for name in ("R@1", "R@5", "R@10", "MdR")]
    scores = {name: Score(10.0 + k) for k, name in enumerate(names)}
    scores |= {f"dual-softmax/{name}": Score(30.0 + k) for k, name in enumerate(names)}
    plain = EvaluationResult(
        *("vatex_retrieval", "test", "retrieval", True, 3, 1, 224, 40, "base", 1, "c", "", 1_500),
        scores,
        official_items=1_500,
        official=True,
    )
    part = replace(plain, items=7, official=False, scores={"t2v/R@1": Score(1.0)})
    rows = [line.split(" | ") for line in table([plain, part]).splitlines()]
    assert rows[2][:3] == ["| vatex_retrieval", "cosine", "1,500, official"]
    assert rows[2][3:5] == ["10.0", "11.0"]
    assert rows[3][:4] == ["| vatex_retrieval", "dual softmax", "1,500, official", "30.0"]
    assert rows[4][:5] == ["| vatex_retrieval", "cosine", "7 of 1,500", "1.0", "–"]
    assert len(rows) == 7, "no dual softmax without such scores; then an empty line, the setting"


def test_two_benchmarks_are_evaluated_by_one_command(tmp_path: Path) -> None:
    content = {}
    for name, sample in (("vatex_retrieval", "vatex"), ("ssv2_retrieval", "ssv2")):
        made = WRITERS[sample](tmp_path / sample)
        content[name] = {
            "annotations": str(made.annotations),
            "media": str(made.media),
            "cache": str(tmp_path / "cache"),
            "train.ds_config": "zero1_fp32",
        }
    path = written(tmp_path, content)
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    line = [sys.executable, "tools/zero_shot.py", str(path), "--checkpoint"]
    line += [str(tmp_path / "model"), "--out", str(out), "--dual-softmax", "--device", "cpu"]
    done = subprocess.run(
        line, cwd=ROOT, env=rank_env(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (out / "zero_shot.md").read_text()
    assert text in done.stdout + done.stderr
    rows = [line.split(" | ")[:3] for line in text.splitlines() if "retrieval" in line]
    assert rows == [
        ["| vatex_retrieval", "cosine", "2 of 1,500"],
        ["| vatex_retrieval", "dual softmax", "2 of 1,500"],
        ["| ssv2_retrieval template", "cosine", "4 of 2,088"],
        ["| ssv2_retrieval template", "dual softmax", "4 of 2,088"],
    ]
    ((_, result),) = read_results(out / "ssv2_retrieval")
    assert result.zero_shot
    assert result.details["dual_softmax"]["texts_at_once"] == 2
