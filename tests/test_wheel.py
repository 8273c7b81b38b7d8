"""The wheel has one top-level name and trains from a folder with hostile module names."""

from __future__ import annotations

import csv
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

HOSTILE = ("model", "data", "tools", "engine", "finetune", "pretrain", "tests", "config")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tracked files, as a user's `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        original, copy = ROOT / name, source / name
        if name.startswith(("data/demo/videos", "tests/")) or not original.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            copy.symlink_to(original.readlink())
        else:
            copy.write_bytes(original.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, source],
        capture_output=True,
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel; third-party packages come from the one of the tests.

    A .pth line adds their folder to sys.path without running its own .pth files, so that an
    editable installation of the project stays invisible.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel],
        check=True,
    )
    return folder / "bin"


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_wheel_has_one_top_level_name_and_its_data_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"allinone"}
    for needed in (
        "allinone/py.typed",
        "allinone/ds_configs/zero1_bf16.json",
        "allinone/slurm/pretrain_128gpu.sh",
        "allinone/pretrain/recipes/webvid_howto.py",
        "allinone/data/vocab/bert-base-uncased.txt",
        "allinone/finetune/evaluation/paper_numbers.json",
        "allinone/common/templates/page.html.j2",
        "allinone/tools/reporting/templates/results.html.j2",
        "allinone/tools/inspection/templates/figure.html.j2",
    ):
        assert needed in names


def test_installed_wheel_trains_among_hostile_modules(installed: Path, tmp_path: Path) -> None:
    for name in HOSTILE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong module')\n")
    (tmp_path / "empty" / "data").mkdir(parents=True)
    python = installed / "python"
    program = (
        "import allinone\n"
        "from allinone import AllInOneConfig, AllInOneForPreTraining, AllInOneModel\n"
        "from allinone import AllInOneProcessor\n"
        "print(allinone.__file__)"
    )
    for folder in (tmp_path, tmp_path / "empty"):
        assert str(installed.parent) in run(python, "-c", program, cwd=folder)
    videos = sorted((ROOT / "data" / "demo" / "videos" / "000001_000200").glob("*.mp4"))[:8]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        rows.writerows([video, f"clip number {index}"] for index, video in enumerate(videos))
    run(installed / "allinone", "prepare", "mine.csv", "--out", "prepared", cwd=tmp_path)
    run(
        *(installed / "allinone", "train", "demo", "--data", "prepared", "--val", "none"),
        *("--out", "out", "--steps", 2, "--global-batch", 4, "--micro-batch", 4, "--workers", 0),
        cwd=tmp_path,
    )
    assert (tmp_path / "out" / "checkpoints" / "step-00000002" / "manifest.json").is_file()
