"""tools/prepare.py: its options, messages and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from allinone.common.command_line import parse
from allinone.common.paths import ROOT
from allinone.data.prepare.options import RETRY_REASONS, FormatName, PrepareOptions
from allinone.data.sources import FORMATS
from allinone.tools import prepare
from allinone.tools.prepare import PrepareCommand
from tests.data.media import write_video


def read(*arguments: str) -> PrepareCommand:
    return parse(PrepareCommand, ["source", "--out", "out", *arguments], prog="prepare")


def test_options_list_every_format_and_retry_reason() -> None:
    assert get_args(FormatName) == ("auto", *FORMATS)
    source = (ROOT / "data" / "prepare" / "options.py").read_text()
    listed = source.partition("Reasons: ")[2].partition('."""')[0]
    assert tuple(listed.replace("\n", " ").replace(" ", "").split(",")) == RETRY_REASONS


def test_parts_reasons_and_old_spellings_are_read() -> None:
    options = read("--part", "3/16", "--retry", "missing,timeout", "--merge", "True", "--json")
    assert (options.source, options.out) == (Path("source"), Path("out"))
    assert (options.part, options.retry) == ((3, 16), ("missing", "timeout"))
    assert options.merge
    assert options.json
    assert read("--workers", "3", "--workers", "5").workers == 5, "the last one counts"
    assert read("--min_frames", "4").min_frames == 4
    for wrong in (["--part", "3"], ["--format", "avi"], ["--codec", "mpeg2"], ["--gops", "4"]):
        with pytest.raises(SystemExit) as ended:
            read(*wrong)
        assert ended.value.code == 2


def test_the_exit_code_depends_on_the_share_of_bad_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", frames=6)
    (tmp_path / "my.csv").write_text("path,caption\na.mp4,x\ngone.mp4,y\n")
    command = [str(tmp_path / "my.csv"), "--out", str(tmp_path / "out"), "--json"]
    assert prepare.main(command) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["bad"] == {"missing": 1}
    assert "50.0 % of the clips are bad, more than --max-bad-share 0.2" in shown.err
    assert "--retry missing tries them again" in shown.err
    assert prepare.main([*command, "--max-bad-share", "0.5"]) == 0
    assert prepare.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "out2")]) == 2
    assert "no such source" in capsys.readouterr().err


def test_folders_of_earlier_versions_are_continued(tmp_path: Path) -> None:
    fingerprint = PrepareOptions(tmp_path, tmp_path, format="csv").fingerprint()
    assert list(fingerprint) == [
        "layout",
        "source",
        "kind",
        "videos",
        "names",
        "exclude",
        "shard_clips",
        "min_frames",
        "max_duration_s",
        "max_pixels",
        "codec",
        "short_side",
        "gop",
    ]
    assert fingerprint["kind"] == "csv"


@pytest.mark.parametrize("command", ["prepare", "check_data"])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = (
        "import contextlib, sys\n"
        f"from allinone.tools import {command}\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    {command}.main(['--help'])\n"
        "heavy = {'torch', 'av', 'pyarrow', 'nvidia', 'numpy', 'matplotlib', 'PIL'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: " in done.stdout
    assert "heavy: []" in done.stdout
