"""Permissions of published files, and what is said about those that may not be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from allinone.common.access import require_writable
from allinone.common.atomic_io import publish_dir
from allinone.common.errors import ConfigError
from allinone.engine.checkpoint.layout import CheckpointError, step_folder
from allinone.engine.checkpoint.manifest import newest_complete, write_manifest
from allinone.engine.checkpoint.weights import find_weights
from allinone.model.weights_file import WeightsError, read_weights
from tests.users import AS_OTHER_USER, nobody


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_published_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").mkdir()
        save_file({"w": torch.zeros(2)}, folder / "weights" / "model.safetensors")
        (folder / "config.json").write_text("{}")

    before = os.umask(umask)
    try:
        publish_dir(tmp_path / "model", fill)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {mode(path) for path in files} == {0o666 & ~umask}


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    return str(caught.value)


@AS_OTHER_USER
def test_unreadable_missing_and_damaged_weights_differ(public: Path) -> None:
    save_file({"w": torch.zeros(2)}, public / "private.safetensors")
    torch.save({"w": torch.zeros(2)}, public / "private.pt")
    (public / "cut.safetensors").write_bytes((public / "private.safetensors").read_bytes()[:20])
    (public / "cut.safetensors").chmod(0o644)
    for name in ("private.safetensors", "private.pt"):
        (public / name).chmod(0o600)
    (public / "closed").mkdir(mode=0o700)
    save_file({"w": torch.zeros(2)}, public / "closed" / "model.safetensors")
    with nobody():
        for name in ("private.safetensors", "private.pt"):
            assert "cannot be read: permission denied" in refusal(public / name)
            assert "mode 0600 and belongs to root" in refusal(public / name)
        assert "does not exist" in refusal(public / "missing.safetensors")
        assert "is damaged" in refusal(public / "cut.safetensors")
        for path in (public / "closed", public / "closed" / "model.safetensors"):
            assert "cannot be read: permission denied" in refusal(path)
            with pytest.raises(CheckpointError, match="permission denied"):
                find_weights(path)


@AS_OTHER_USER
def test_an_unreadable_checkpoint_is_not_taken_for_damaged(public: Path) -> None:
    folder = step_folder(public, 5)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    write_manifest(folder)
    (folder / "run.json").chmod(0o600)
    with nobody(), pytest.raises(CheckpointError, match="cannot be read: permission denied"):
        newest_complete(public)
    assert folder.exists()
    assert newest_complete(public) == (folder, [])


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="is a file"):
            require_writable(out)
    require_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists(), "nothing is created"


@AS_OTHER_USER
def test_a_folder_without_permission_is_refused(public: Path) -> None:
    with nobody(), pytest.raises(ConfigError, match="may not be written by this user"):
        require_writable(public / "run")
