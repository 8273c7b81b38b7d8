"""Exit codes have one meaning each, which --help prints."""

from __future__ import annotations

from allinone.common.exit_codes import ExitCode, exit_codes_help


def test_codes_are_those_that_batch_scripts_know() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "DISK_FULL": 3,
        "NON_FINITE": 4,
        "HANG": 5,
        "REQUEUE": 75,
    }


def test_the_table_lists_every_code_with_its_meaning() -> None:
    lines = exit_codes_help().splitlines()
    assert len(lines) == len(ExitCode)
    for code, line in zip(ExitCode, lines, strict=True):
        assert line.split(maxsplit=1) == [str(int(code)), code.meaning]
