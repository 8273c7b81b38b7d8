"""Options: precedence, old spellings, suggestions, files, completion."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from allinone.common.command_line import (
    Choice,
    CompletionRequest,
    choose,
    completing,
    config_from_file,
    messages,
    parse,
    parser,
    run_command,
    to_yaml,
)
from allinone.common.errors import InputError
from allinone.common.exit_codes import ExitCode

RENAMED = {"old-depth": "depth"}


@dataclass(frozen=True)
class Inner:
    """Inner options."""

    lr: float = 0.1
    """Learning rate."""
    depth: int = 2
    """Depth."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Range."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"--depth must be at least 1, got {self.depth}")


@dataclass(frozen=True)
class Options:
    """Options of a test."""

    out: Path = Path("runs/a")
    """Folder."""
    kind: Literal["red", "blue"] = "red"
    """Colour."""
    loud: bool = False
    """Print more."""
    sets: tuple[str, ...] = ("x",)
    """Names."""
    size: int | None = None
    """Size."""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class WithPosition:
    """A positional argument."""

    run: tyro.conf.Positional[Path]
    """Folder."""
    top: int = 3
    """Rows."""


def read(*argv: str, default: object = Options) -> Options:
    return parse(default, argv, prog="prog")


def refused(capsys: pytest.CaptureFixture[str], *argv: str, default: object = Options) -> str:
    with pytest.raises(SystemExit) as ended:
        read(*argv, default=default)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--loud"], True),
        (["--no-loud"], False),
        (["--loud", "True"], True),
        (["--loud", "false"], False),
        (["--loud=yes"], True),
        ([], False),
    ],
)
def test_booleans_are_read_in_both_spellings(argv: list[str], value: bool) -> None:
    assert read(*argv).loud is value


def test_nested_options_are_plain_flags() -> None:
    options = read("--lr", "3", "--scale", "0.1", "0.2", "--sets", "a", "b", "--size", "4")
    assert (options.inner.lr, options.inner.scale) == (3.0, (0.1, 0.2))
    assert (options.sets, options.size) == (("a", "b"), 4)
    assert read("--lr=3").inner.lr == 3.0
    assert read("--sets").sets == ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning-rate", "3"], "did you mean --lr?"),
        (["--dept", "3"], "did you mean --depth?"),
        (["--learing-rate", "3"], "did you mean --lr?"),
        (["--size", "3x"], "--size 3x: expected INT;"),
        (["--lr", "abc"], "could not convert string to float: 'abc'"),
        (["--kind", "green"], "--kind: invalid choice 'green'; choose from: red, blue;"),
        (["--kind", "bleu"], "did you mean blue?"),
        (["--depth", "0"], "--depth must be at least 1, got 0"),
        (["--loud=maybe"], "--loud maybe: give --loud or --no-loud"),
        (["--no-loud=3"], "--no-loud takes no value"),
        (["stray"], "Unrecognized options: stray"),
        (["--depth"], "Missing value for argument '--depth'"),
        (["--tyro-print-completion", "bash"], "unknown option --tyro-print-completion"),
    ],
)
def test_a_wrong_option_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    printed = refused(capsys, *argv)
    assert message in printed
    assert printed.startswith("error: prog: ")
    assert printed.count("\n") == 1
    assert "__tyro" not in printed
    assert "│" not in printed


def test_a_missing_positional_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(capsys, default=WithPosition)
    assert "PATH" in printed
    assert "required" in printed
    assert "__tyro" not in printed
    assert "unknown option --run" in refused(capsys, "--run", "x", default=WithPosition)


def test_a_renamed_flag_is_read_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert read("--old-depth", "5").inner.depth == 5
    assert "--old-depth is now called --depth" in capsys.readouterr().err


def test_flags_win_over_the_file_and_it_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("inner:\n  lr: 1e-4\n  depth: 7\nkind: blue\n")
    options = read("--config", str(file), "--depth", "9")
    assert (options.inner.lr, options.inner.depth, options.kind) == (1e-4, 9, "blue")
    assert options.out == Path("runs/a")


def test_flags_give_what_is_required_and_not_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("top: 7\n")
    options = read("--config", str(file), "/data/run", default=WithPosition)
    assert options == WithPosition(Path("/data/run"), top=7)
    assert "missing: " in refused(capsys, "--config", str(file), default=WithPosition)


def test_printed_options_give_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", "/tmp/ünï", "--lr", "0.3", "--sets", "p", "q", "--loud", "--size", "3"]
    with pytest.raises(SystemExit) as ended:
        read(*argv, "--print-config")
    assert ended.value.code == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert read(f"--config={file}") == read(*argv)


def test_json_of_a_checkpoint_and_old_names_are_read(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"step": 3, "run": {"inner": {"old_depth": 4}, "sets": ["z"]}}))
    options = read("--config", str(file))
    assert (options.inner.depth, options.sets) == (4, ("z",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dept: 3", r"unknown option dept; did you mean depth\?"),
        ("depth: many", "inner.depth = 'many'"),
        ("depth: 0", "--depth must be at least 1"),
        ("- 1", "must hold options"),
        ("a: [", "neither YAML nor JSON"),
        ("inner:\n  lr: 1\n  lr: 2", "line 3: lr is given twice"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        config_from_file(file, Options)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        config_from_file(tmp_path / "none.yaml", Options)


def test_yaml_holds_plain_values() -> None:
    assert "out: runs/a" in to_yaml(Options())


def test_an_unknown_choice_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    choices = {"demo": Choice("the demo", Options()), "paper": Choice("the paper", Options())}
    with pytest.raises(SystemExit) as ended:
        choose(choices, ["dmeo"], prog="prog", kind="recipe")
    assert ended.value.code == 2
    assert "unknown recipe 'dmeo'; did you mean demo?" in capsys.readouterr().err
    assert choose(choices, ["paper", "--lr", "2"], prog="prog", kind="recipe")[0] == "paper"


def test_help_is_fast_and_legible_in_one_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--old-depth" not in printed
    assert max(map(len, printed.splitlines())) >= parser.MIN_COLUMNS
    assert "Learning rate." in printed


def test_a_program_is_shown_under_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(messages._shown_as, "tools/x.py", "allinone x")
    with pytest.raises(SystemExit):
        parse(Options, ["--nothing"], prog="tools/x.py")
    assert capsys.readouterr().err.startswith("error: allinone x: unknown option --nothing")


def test_completion_offers_flags_values_and_choices() -> None:
    def words(*argv: str) -> list[str]:
        with completing(), pytest.raises(CompletionRequest) as request:
            choose({"a": Choice("first", Options())}, argv, prog="prog", kind="command")
        return request.value.words

    assert words() == ["a", "--help", "--version"]
    assert {"--lr", "--loud", "--no-loud", "--config"} <= set(words("a"))
    assert words("a", "--kind") == ["red", "blue"]
    assert words("a", "--out") == words("a", "--config") == []  # the shell offers files
    assert "--lr" in words("a", "--loud")
    assert words("b", "--kind") == []


def test_a_missing_extra_is_named_with_its_install_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> int:
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow.parquet")

    assert run_command(command) == ExitCode.USAGE
    assert "pip install 'allinone-pretrain[train]'" in capsys.readouterr().err
