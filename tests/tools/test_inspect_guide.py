"""The commands of docs/guides/inspect.md run as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from allinone import cli
from allinone.common.paths import ROOT


def test_commands_of_the_inspect_guide_run(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "train").symlink_to(checkpoint)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "guides" / "inspect.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    assert len(lines) == 4
    for line in lines:
        program, *argv = shlex.split(line, comments=True)
        assert program == "allinone"
        if "--help" in argv:
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main(argv)
            assert "--checkpoint" in capsys.readouterr().out
        else:
            assert cli.main(argv) == 0, capsys.readouterr().err
            assert "[MASK] 2" in capsys.readouterr().out
