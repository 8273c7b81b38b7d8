"""Output that nobody reads, in real processes, and the project's logger."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
import unicodedata
from pathlib import Path

import pytest

from allinone.common.command_line import run_command
from allinone.common.console import (
    LOGGER,
    ForgivingStream,
    log_to_file,
    setup_logging,
    terminal_codes,
)
from allinone.common.errors import InputError
from allinone.common.formatting import printable, printable_values

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from allinone.common.command_line import run_command
def command():
    for _ in range(20000):
        print("a line of output → with an arrow")
    print("to stderr →", file=sys.stderr)
    handle = open(sys.argv[1], "w")
    import os
    os.write(1, b"from C\\n")
    handle.write("done")
    handle.close()
    return 7
sys.exit(run_command(command))
"""


def shell(redirection: str, target: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program by a shell; its exit code is that of the program, also in a pipe."""
    return subprocess.run(
        [
            *("bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'),
            *(sys.executable, PROGRAM, str(target)),
        ],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "redirection", ["| head -1", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "2>&1 | true"]
)
def test_a_command_ends_though_nobody_reads_it(tmp_path: Path, redirection: str) -> None:
    ended = shell(redirection, tmp_path / "file")
    assert ended.returncode == 7, ended.stderr
    assert (tmp_path / "file").read_text() == "done"
    assert b"Traceback" not in ended.stderr
    assert b"Exception ignored" not in ended.stderr


COMMANDS = ["plan model", "--help", "--version", "report --out {tmp}/report", "plan model --json"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("target", "code"), [("> /dev/full", 1), ("| true", 0)])
def test_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, command: str, target: str, code: int
) -> None:
    line = f"set -o pipefail; {sys.executable} -m allinone {command.format(tmp=tmp_path)} {target}"
    ended = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, timeout=120, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert (b"error: the output could not be written" in ended.stderr) == bool(code)
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_no_character_breaks_a_message(tmp_path: Path, encoding: str) -> None:
    ended = shell("| tail -1", tmp_path / "file", PYTHONIOENCODING=encoding)
    assert ended.returncode == 7
    arrow = "→" if encoding == "utf-8" else "\\u2192"
    assert f"to stderr {arrow}".encode() in ended.stderr


def test_levels_go_to_their_streams(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("allinone.test")
    setup_logging()
    log.debug("hidden")
    log.info("plain")
    log.warning("odd")
    log.error("bad")
    printed = capsys.readouterr()
    assert printed.out == "plain\nwarning: odd\n"
    assert printed.err == "error: bad\n"
    setup_logging(quiet=True)
    log.info("plain")
    setup_logging(stderr=True, verbose=True)
    log.debug("detail")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "detail\n")
    setup_logging(terminal=False)
    log.error("on another rank")
    assert capsys.readouterr().err == ""
    setup_logging()


def test_a_log_file_has_all_levels(tmp_path: Path) -> None:
    setup_logging(terminal=False)
    handler = log_to_file(tmp_path / "logs" / "rank_1.txt")
    logging.getLogger("allinone.test").debug("detail")
    LOGGER.removeHandler(handler)
    assert "DEBUG allinone.test: detail" in (tmp_path / "logs" / "rank_1.txt").read_text()
    setup_logging()


def test_an_unusable_log_file_is_only_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    (tmp_path / "file").write_text("")
    log_to_file(tmp_path / "file" / "rank_0.txt")
    assert "warning: no log file" in capsys.readouterr().out


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\x7f\u202egpj.exe\u2066\u2028end\rover"


def assert_harmless(text: str) -> None:
    unprintable = [c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl"}]
    assert not unprintable, unprintable


def test_control_characters_of_foreign_text_are_shown_as_codes() -> None:
    assert printable(HOSTILE) == (
        "\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u0008\\u007f\\u202egpj.exe\\u2066\\u2028end"
        "\\u000dover"
    )
    assert printable("a\tb\nno change: é 日本 😀 \u200d") == "a\tb\nno change: é 日本 😀 \u200d"
    assert json.loads(printable(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE
    assert_harmless(str(printable_values({HOSTILE: [HOSTILE, (HOSTILE,)]})))


def test_no_control_character_reaches_terminal_or_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("allinone.test")
    log_file = tmp_path / "rank.log"

    def command() -> int:
        handler = log_to_file(log_file)
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        log.info("%s", HOSTILE)
        log.warning("%s", HOSTILE)
        LOGGER.removeHandler(handler)
        try:
            raise RuntimeError(HOSTILE)
        except RuntimeError:
            traceback.print_exc()
        raise InputError(f"no file {HOSTILE}", hint=HOSTILE)

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # restored after the test
    assert run_command(command) == 2
    printed = capsys.readouterr()
    assert printed.out.count("gpj.exe") == 3
    assert printed.err.count("gpj.exe") == 4
    for text in (printed.out, printed.err, log_file.read_text()):
        assert_harmless(text)


def test_progress_bars_and_own_colours_pass(capsys: pytest.CaptureFixture[str]) -> None:
    stream = ForgivingStream(sys.stdout)
    stream.write("\r 50 %|####  |")
    stream.write("\r")
    stream.write("\r \x1b[1m\r")
    with terminal_codes():
        stream.write("\x1b[1mbold")
    assert capsys.readouterr().out == "\r 50 %|####  |\r\r \\u001b[1m\r\x1b[1mbold"
