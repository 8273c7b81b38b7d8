"""The command line of benchmarks: quick help, suggestions, files of options, old spellings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from allinone.common.errors import InputError
from allinone.finetune.benchmarks import benchmark_names, load_benchmark
from allinone.finetune.command import main, parse
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.tasks import TASKS
from tests.finetune.runs import ROOT

HEAVY = ("torch", "transformers", "deepspeed", "nvidia.dali", "av", "numpy")
REQUIRED = ["--annotations", "a", "--media", "m", "--checkpoint", "c", "--out", "o"]


@pytest.mark.parametrize(
    "name", ["msrvtt_qa", "msrvtt_retrieval", "tvqa", "vcr", "k400_linear", "coco_retrieval"]
)
def test_help_imports_no_heavy_library(name: str) -> None:
    program = (
        "import sys, runpy, atexit\n"
        f"atexit.register(lambda: print('HEAVY', [x for x in {HEAVY!r} if x in sys.modules]))\n"
        f"sys.argv = ['{name}.py', '--help']\n"
        f"runpy.run_path('finetune/{name}.py', run_name='__main__')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "--annotations" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_registry_lists_every_benchmark_with_one_line() -> None:
    names = benchmark_names()
    assert len(names) == 22
    for name, text in names.items():
        assert 0 < len(text) < 90, name
        benchmark = load_benchmark(name)
        assert benchmark.name == name
        assert benchmark.task in TASKS
        assert benchmark.description.startswith(text)


def test_unknown_benchmark_suggests_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean msrvtt_qa"):
        load_benchmark("msrvt_qa")


def test_foreign_option_names_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(load_benchmark("msrvtt_qa"), [*REQUIRED, "--learning-rate", "1e-4"])
    assert end.value.code == 2
    assert "did you mean --lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], False), (["--eval-only"], True), (["--eval-only", "True"], True),
     (["--no-eval-only"], False), (["--eval_only=false"], False)],
)  # fmt: skip
def test_booleans_read_all_spellings(words: list[str], expected: bool) -> None:
    assert parse(load_benchmark("msrvtt_qa"), [*REQUIRED, *words])[0].eval_only is expected


def test_printed_config_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load_benchmark("msrvtt_retrieval")
    words = [*REQUIRED, "--rank", "1", "--rerank", "32", "--frames", "8", "--ds-config", "zero3"]
    with pytest.raises(SystemExit) as end:
        parse(benchmark, [*words, "--print-config"])
    assert end.value.code == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert parse(benchmark, ["--config", str(tmp_path / "run.yaml")]) == parse(benchmark, words)


@pytest.mark.parametrize("name", sorted(benchmark_names()))
def test_run_json_is_replayed_by_config(name: str, tmp_path: Path) -> None:
    benchmark = load_benchmark(name)
    config = parse(benchmark, [*REQUIRED, "--lr", "3e-5", "--val-items", "7"])[0].with_steps(5000)
    (tmp_path / "run.json").write_text(json.dumps(config.as_json()))
    again, _ = parse(benchmark, ["--config", str(tmp_path / "run.json")])
    assert again == config
    changed, _ = parse(benchmark, ["--config", str(tmp_path / "run.json"), "--seed", "3"])
    assert isinstance(changed, FinetuneConfig)
    assert (changed.train.seed, changed.train.lr) == (3, 3e-5)


def test_unusable_config_file_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(load_benchmark("vcr"), ["--config", "missing.yaml"]) == 2
    assert "--config missing.yaml" in capsys.readouterr().err
