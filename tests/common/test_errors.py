"""Errors that a user can act on, as a command prints them."""

from __future__ import annotations

import pytest

from allinone.common.command_line import run_command
from allinone.common.errors import AllInOneError, ConfigError, DataError, InputError
from allinone.common.exit_codes import ExitCode


@pytest.mark.parametrize("kind", [ConfigError, DataError, InputError])
def test_an_error_is_one_line_and_a_hint(
    kind: type[AllInOneError], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise kind("--x is wrong", hint="try --x 3", exit_code=ExitCode.DISK_FULL)

    assert run_command(command) == ExitCode.DISK_FULL
    assert capsys.readouterr().err == "error: --x is wrong\nhint: try --x 3\n"


def test_an_error_for_users_exits_with_2() -> None:
    def command() -> None:
        raise InputError("--x is wrong")

    assert run_command(command) == 2


def test_an_unexpected_error_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyError("a bug")

    assert run_command(command) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    assert run_command(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_no_result_is_success_and_a_number_is_the_code() -> None:
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 5) == 5
