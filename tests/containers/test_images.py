"""The files of the images agree with the project: same dependencies, same steps, same variables."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"


def canonical(text: str) -> tuple[str, str, str, str]:
    one = Requirement(text)
    extras = ",".join(sorted(one.extras))
    return one.name.lower().replace("_", "-"), extras, str(one.specifier), str(one.marker or "")


def declared() -> set[tuple[str, str, str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {canonical(text) for text in project["dependencies"]}
    for extra, texts in project["optional-dependencies"].items():
        found |= {canonical(f"{text}; extra == '{extra}'") for text in texts}
    return {row for row in found if row[0] != project["name"]}


def locked() -> list[dict[str, Any]]:
    return tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def test_the_lock_is_of_the_declared_dependencies() -> None:
    (own,) = (package for package in locked() if package["name"] == "allinone-pretrain")
    rows = {
        canonical(
            row["name"]
            + (f"[{','.join(row['extras'])}]" if row.get("extras") else "")
            + row.get("specifier", "")
            + (f"; {row['marker']}" if "marker" in row else "")
        )
        for row in own["metadata"]["requires-dist"]
    }
    rows = {row for row in rows if row[0] != "allinone-pretrain"}
    assert rows == declared(), "run `uv lock` with the version that containers/install.sh names"


def test_the_lock_has_public_sources_only() -> None:
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r'registry = "([^"]*)"', text)) == {"https://pypi.org/simple"}
    assert set(re.findall(r'url = "(https://[^/]*)', text)) == {"https://files.pythonhosted.org"}


def test_the_lock_has_torch_for_cuda_13_and_no_pypi_apex() -> None:
    names = {package["name"]: package.get("version", "") for package in locked()}
    assert "apex" not in names
    assert names["nvidia-dali-cuda130"]
    assert names["cuda-toolkit"].startswith("13.")


@pytest.mark.parametrize("name", ["Dockerfile", "allinone.def"])
def test_both_images_run_every_step_and_allow_nvdec(name: str) -> None:
    text = (CONTAINERS / name).read_text()
    steps = re.findall(r"install\.sh (system|packages|project)", text)
    assert steps == ["system", "packages", "project"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in text
    (base,) = set(re.findall(r"nvidia/cuda:[\w.-]*base[\w.-]*", text))
    assert base == "nvidia/cuda:13.0.2-base-ubuntu24.04"


def test_the_image_runs_without_privileges() -> None:
    lines = (CONTAINERS / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER allinone"]


def test_a_wrong_step_is_refused() -> None:
    done = subprocess.run(
        [CONTAINERS / "install.sh", "all"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage: install.sh" in done.stderr


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_site_examples_mount_project_and_data(kind: str, tmp_path: Path) -> None:
    example = ROOT / f"slurm/site.{kind}.sh.example"
    script = (
        f'project={tmp_path} SRUN_OPTIONS=() COMMAND_PREFIX=(); source "{example}"\n'
        'printf "%s\\n" "${SRUN_OPTIONS[@]}" "${COMMAND_PREFIX[@]}" "PYTHON=$PYTHON" '
        '"HOST_PYTHON=$HOST_PYTHON"'
    )
    done = subprocess.run(
        ["bash", "-u", "-c", script], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\n")
    assert any(str(tmp_path) in word and "/data" in word for word in words)
    assert "PYTHON=/opt/venv/bin/python" in words
    assert "HOST_PYTHON=python3" in words
