"""A home or temporary folder that cannot be used is replaced, and that is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from allinone.common import surroundings
from tests.common.test_limits import limited
from tests.users import AS_OTHER_USER, nobody

HELP = (
    '"$0" finetune/msrvtt_qa.py --help >/dev/null && "$0" pretrain/train.py demo --help >/dev/null'
)


@pytest.mark.parametrize("home", ["/nonexistent", "relative", "/proc/1/x", "/dev/null"])
def test_help_is_shown_without_a_home_folder(home: str) -> None:
    ended = limited(f"export HOME={home}; {HELP}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(f"warning: the home folder {home}") == 2, ended.stderr


def test_a_long_temporary_folder_is_replaced(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 101)
    long.mkdir()
    program = (
        "from allinone.common.command_line import run_command\n"
        "from allinone.common.processes import forkserver_context\n"
        "import sys\n"
        "def work():\n"
        "    process = forkserver_context().Process(target=print)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    return process.exitcode\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(run_command(work))\n"
    )
    (tmp_path / "program.py").write_text(program)
    ended = limited(
        'export TMPDIR="$1" PYTHONPATH="$PWD"; "$0" "$2"', str(long), str(tmp_path / "program.py")
    )
    assert ended.returncode == 0, ended.stderr
    assert f"warning: TMPDIR={long} has more than 70 characters" in ended.stderr


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*surroundings.CACHES, "HF_HOME", "LOGNAME", "USER", "USERNAME", "LNAME", "HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_user_without_entry_and_home_gets_a_private_one(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean.setattr(os, "getuid", lambda: 54321)
    clean.setattr(surroundings.tempfile, "gettempdir", lambda: str(tmp_path))
    (note,) = surroundings.adapt()
    assert "no entry in /etc/passwd" in note
    home = Path.home()
    assert home.is_dir()
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.environ["LOGNAME"] == "user54321"
    assert surroundings.adapt() == [], "once"


@AS_OTHER_USER
def test_a_home_that_may_not_be_entered_is_replaced(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    clean.setenv("HOME", str(tmp_path / "home"))
    with nobody():
        (note,) = surroundings.adapt()
    assert "may not be entered" in note


@AS_OTHER_USER
def test_a_read_only_home_keeps_what_can_be_read(clean: pytest.MonkeyPatch, public: Path) -> None:
    home = public / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    clean.setenv("HOME", str(home))
    with nobody():
        (note,) = surroundings.adapt()
        assert f"{home} cannot be written" in note
        assert Path(os.environ["XDG_CACHE_HOME"]).parent.is_dir()
    assert os.environ["HOME"] == str(home)
    assert os.environ["HF_HOME"] == str(home / ".cache" / "huggingface")


def test_a_folder_of_another_user_is_not_used(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"allinone-{os.getuid()}").symlink_to(tmp_path / "theirs")
    clean.setattr(surroundings.tempfile, "tempdir", str(tmp_path))
    clean.setenv("HOME", "/nonexistent")
    surroundings.adapt()
    assert not Path.home().is_symlink()
    assert Path.home().is_dir()
