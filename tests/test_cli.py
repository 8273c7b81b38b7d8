"""The command `allinone` and the scripts, as a user starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from allinone.cli import COMMANDS, COMPLETION, complete
from allinone.version import __version__

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "deepspeed", "nvidia.dali", "av", "matplotlib")
IMPORTS = """
import sys
from allinone.cli import main
code = 0
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("heavy:", [name for name in {heavy} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def allinone(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "allinone", *arguments)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def helps() -> list[list[str]]:
    more = [["train", "demo"], ["finetune", "msrvtt_qa"]]
    return [[], *([name] for name in COMMANDS), *more]


@pytest.mark.parametrize("words", helps(), ids=lambda words: " ".join(words) or "allinone")
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    ended = python("-c", IMPORTS.format(heavy=HEAVY), *words, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout.lower()
    assert "heavy: []" in ended.stderr
    assert "__tyro" not in ended.stdout


def test_version_is_printed_by_every_level() -> None:
    for words in ([], ["train"], ["train", "demo"]):
        assert allinone(*words, "--version").stdout == f"allinone {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["train", "dmeo"], "allinone train: unknown recipe 'dmeo'; did you mean demo?"),
        (["train", "demo", "--learning-rate", "1"], "did you mean --lr?"),
        (["--completion", "tcsh"], "give one of bash, zsh, fish"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(words: list[str], message: str) -> None:
    ended = allinone(*words)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_a_misspelt_benchmark_gets_a_suggestion() -> None:
    ended = allinone("finetune", "msrvtt_aq")
    assert ended.returncode == 2
    assert "did you mean msrvtt_qa" in ended.stderr


def test_script_and_command_read_the_same_options(tmp_path: Path) -> None:
    words = ["demo", "--lr", "0.5", "--data", "a=2", "--print-config"]
    command, script = allinone("train", *words), python("pretrain/train.py", *words)
    assert command.returncode == script.returncode == 0
    assert command.stdout == script.stdout
    (tmp_path / "run.yaml").write_text(command.stdout)
    replayed = allinone("train", "--config", str(tmp_path / "run.yaml"), "--print-config")
    assert replayed.stdout == command.stdout


def test_run_json_of_an_earlier_version_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        '{"out": "r", "data": ["d"], "model": {"size": "nano"}, "train": {"max_dossiers": 7}}'
    )
    ended = allinone("train", "--config", str(tmp_path / "run.json"), "--print-config")
    assert ended.returncode == 0, ended.stderr
    assert "size: nano" in ended.stdout
    assert ": 7\n" in ended.stdout


@pytest.mark.parametrize("shell", COMPLETION)
def test_completion_code_is_printed_for_a_shell(shell: str) -> None:
    ended = allinone("--completion", shell)
    assert ended.returncode == 0
    assert "allinone --complete" in ended.stdout


def test_completion_knows_commands_recipes_and_options() -> None:
    assert {*COMMANDS, "--help", "--version"} <= set(complete([]))
    assert {"demo", "webvid-howto"} <= set(complete(["train"]))
    assert {"--lr", "--data", "--compile", "--no-compile"} <= set(complete(["train", "demo"]))
    assert complete(["train", "demo", "--roll"]) == ["roll", "average", "flatten", "channel"]
    assert complete(["train", "demo", "--roll", "="]) == ["roll", "average", "flatten", "channel"]
    assert complete(["--completion"]) == list(COMPLETION)
    assert complete(["nothing", "like"]) == []


def test_completion_prints_nothing_where_a_file_is_expected() -> None:
    assert allinone("--complete", "train", "demo", "--out").stdout == ""


@pytest.mark.parametrize(
    ("words", "cursor", "offered"),
    [
        ("train de", 2, "demo"),
        ("train demo --roll = fl", 5, "flatten"),
        ("train demo --roll =", 4, "roll average flatten channel"),
    ],
)
def test_completion_of_bash_works(tmp_path: Path, words: str, cursor: int, offered: str) -> None:
    script = tmp_path / "complete.sh"
    script.write_text(
        f'allinone() {{ "{sys.executable}" -m allinone "$@"; }}\n{COMPLETION["bash"]}'
        f"COMP_WORDS=(allinone {words}); COMP_CWORD={cursor}; _allinone; echo ${{COMPREPLY[@]}}\n"
    )
    ended = subprocess.run(
        ["bash", str(script)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.strip() == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_completion_of_fish_works(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    script = (
        f'function allinone; env PYTHONPATH="{ROOT}" "{sys.executable}" -m allinone $argv; end\n'
        f"{COMPLETION['fish']}"
        "for line in 'train de' 'train demo --roll=f' 'train demo --out fo'\n"
        '    complete -C "allinone $line"\n'
        "end\n"
    )
    ended = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.split() == ["demo", "--roll=flatten", "folder/"]


def test_env_names_the_versions_of_a_bug_report() -> None:
    ended = allinone("env", "--no-torch")
    assert ended.returncode == 0
    for name in ("allinone", "python", "torch", "deepspeed", "megatron-core", "apex", "os"):
        assert any(line.split()[0] == name for line in ended.stdout.splitlines()), name
