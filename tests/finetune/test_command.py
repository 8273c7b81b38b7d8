"""The command line of benchmarks: quick help, suggestions, files of options, old spellings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from allinone.common.errors import InputError
from allinone.engine.resume import changed_options
from allinone.finetune.benchmarks import benchmark_names, load_benchmark
from allinone.finetune.command import main, parse
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.tasks import TASKS
from allinone.finetune.tasks.options import RetrievalOptions
from tests.finetune.official import MadeUpBenchmark
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
    assert len(names) == 33
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


def options_of(name: str, *words: str) -> FinetuneConfig:
    return parse(load_benchmark(name), [*REQUIRED, *words])[0]


@pytest.mark.parametrize(
    ("variant", "contrast", "rank", "views"),
    [("", 1.0, 0.0, 1), ("9k", 1.0, 0.0, 1), ("7k", 1.0, 0.0, 1), ("7k-clipbert", 1.0, 0.0, 1),
     ("9k-joint", 2.0, 1.0, 3), ("7k-joint", 2.0, 1.0, 3), ("9k-contrast", 2.0, 0.0, 3),
     ("7k-contrast", 2.0, 0.0, 3)],
)  # fmt: skip
def test_variants_have_the_losses_of_the_papers_rows(
    variant: str, contrast: float, rank: float, views: int
) -> None:
    config = options_of("msrvtt_retrieval", "--variant", variant)
    task = config.task
    assert isinstance(task, RetrievalOptions)
    assert (config.variant, task.contrast, task.rank, config.views) == (
        variant, contrast, rank, views,
    )  # fmt: skip
    assert task.matching == 0, "the original's 0.5 creates the head only"


def test_flags_and_files_override_a_variants_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options_of("msrvtt_retrieval", "--variant=9k-joint", "--views", "1", "--rank", "0.5")
    assert isinstance(config.task, RetrievalOptions)
    assert (config.views, config.task.rank, config.task.contrast) == (1, 0.5, 2.0)
    file = tmp_path / "run.yaml"
    file.write_text("variant: 9k-joint\ncontrast: 3\n")
    config = options_of("msrvtt_retrieval", "--config", str(file))
    assert isinstance(config.task, RetrievalOptions)
    assert (config.views, config.task.rank, config.task.contrast) == (3, 1.0, 3.0)
    words = ["--variant", "9k-joint", "--views", "2"]
    with pytest.raises(SystemExit):
        options_of("msrvtt_retrieval", *words, "--print-config")
    file.write_text(capsys.readouterr().out)
    benchmark = load_benchmark("msrvtt_retrieval")
    printed, _ = parse(benchmark, ["--config", str(file)])
    assert printed == options_of("msrvtt_retrieval", *words)


def test_named_rows_read_the_splits_of_their_protocol(
    samples: Callable[[str], MadeUpBenchmark],
) -> None:
    benchmark = load_benchmark("msrvtt_retrieval")
    config = replace(benchmark.config, annotations=samples("msrvtt").annotations)
    for variant in ("9k-joint", "7k-joint", "9k-contrast", "7k-contrast"):
        protocol = variant.partition("-")[0]
        assert benchmark.variants[variant] == benchmark.variants[protocol]
        for split in ("train", "held-out", "test"):
            assert benchmark.read(config, split, variant) == benchmark.read(config, split, protocol)


@pytest.mark.parametrize(
    ("name", "folder", "absent", "changed"),
    [
        ("msrvtt_qa", "", (), {}),
        ("msrvtt_choice", "", ("zero_shot_score",), {"zero_shot_score": "log-odds"}),
        ("k400_linear", "", ("probe_dropout",), {"probe_dropout": False}),
        ("hmdb51_linear", "fold-1", ("probe_dropout",), {}),
    ],
)
def test_a_run_of_an_earlier_version_keeps_its_values(
    tmp_path: Path, name: str, folder: str, absent: tuple[str, ...], changed: dict[str, object]
) -> None:
    benchmark = load_benchmark(name)
    words = [*REQUIRED[:-1], str(tmp_path)]
    recorded = json.loads(json.dumps(parse(benchmark, words)[0].as_json()))
    # version 0.2 stopped after 5 validations, and did not have the other options
    recorded["patience"] = 5
    for option in absent:
        del recorded["task"][option]
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "run.json").write_text(json.dumps(recorded))
    config, kept = parse(benchmark, words)
    assert config.patience == 5
    assert {option: getattr(config.task, option) for option in changed} == changed
    expected = ["patience 5", *(f"task.{option} {value}" for option, value in changed.items())]
    assert sorted(kept) == sorted(expected)
    assert changed_options(recorded, config.as_json()) == []
    assert parse(benchmark, [*words, "--patience", "0"])[0].patience == 0
    assert options_of(name).patience == 0, "a new run trains to the end"


def test_unusable_config_file_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(load_benchmark("vcr"), ["--config", "missing.yaml"]) == 2
    assert "--config missing.yaml" in capsys.readouterr().err
