"""No file of a checkpoint can make a resumed run execute what a pickle names."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.engine import deepspeed_adapter
from allinone.engine.checkpoint.manifest import find_damage, write_manifest
from tests.benchmarks.equality_matrix import Cell, trace, train
from tests.engine.ranks import RankServer

CELLS = [Cell(2, 1, 2), Cell(3, 1, 1), Cell(0, 1, 1), Cell(2, 1, 1, "bf16")]
RESUMED = "step-00000003"


class Canary:
    """Creates a folder where it is unpickled with pickle.load."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _replaced(path: Path, canary: Canary) -> None:
    torch.save(canary, path)


def _added(path: Path, canary: Canary) -> None:
    torch.save({**torch.load(path, weights_only=False), "note": canary}, path)


def _legacy(path: Path, canary: Canary) -> None:
    torch.save({"note": canary}, path, _use_new_zipfile_serialization=False)


def _plain(path: Path, canary: Canary) -> None:
    path.write_bytes(pickle.dumps(canary))


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: f"{cell}-{cell.precision}")
def run(
    request: pytest.FixtureRequest, server: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Cell]:
    """A run with a checkpoint in its middle."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(server, out, request.param)
    return out, request.param


def _list_again(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert find_damage(folder) is None


def _resumable(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints" / "step-00000006")
    return target / "checkpoints" / RESUMED


def test_every_precision_and_stage_resumes_bit_equal(
    server: RankServer, run: tuple[Path, Cell], tmp_path: Path
) -> None:
    out, cell = run
    _resumable(out, tmp_path / "run")
    assert "→" not in train(server, tmp_path / "run", cell).partition("resumed from")[2][:300]
    assert trace(tmp_path / "run").differences(trace(out)) == (0, 0, 0)


@pytest.mark.parametrize("harm", [_replaced, _added, _legacy, _plain])
def test_a_program_in_a_deepspeed_file_is_refused(
    server: RankServer, run: tuple[Path, Cell], tmp_path: Path, harm: Callable[[Path, Canary], None]
) -> None:
    out, cell = run
    files = sorted(path.name for path in out.glob(f"checkpoints/{RESUMED}/deepspeed/*.pt"))
    assert files
    # each kind of damage in one file: all of them in another cell
    name = files[[_replaced, _added, _legacy, _plain].index(harm) % len(files)]
    folder = _resumable(out, tmp_path / "run")
    harm(folder / "deepspeed" / name, Canary(tmp_path / "canary"))
    _list_again(folder)
    codes, output = server.run(tmp_path / "run", cell.world, **cell.options())
    assert not (tmp_path / "canary").exists()
    assert codes == [2] * cell.world, output
    assert name in output
    assert "Traceback" not in output


def test_a_pickle_in_no_file_of_a_checkpoint_runs(
    server: RankServer, run: tuple[Path, Cell], tmp_path: Path
) -> None:
    out, cell = run
    if cell is not CELLS[0]:
        pytest.skip("the other files do not depend on the layout")
    folder = out / "checkpoints" / RESUMED
    others = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
    assert len(others) >= 5
    for number, path in enumerate(others):
        copy = _resumable(out, tmp_path / f"run{number}")
        _plain(copy / path.relative_to(folder), Canary(tmp_path / "canary"))
        if path.name != "manifest.json":
            _list_again(copy)
        server.run(tmp_path / f"run{number}", cell.world, **cell.options())
        assert not (tmp_path / "canary").exists(), path.name


def test_deepspeed_cannot_unpickle_what_was_not_checked(tmp_path: Path) -> None:
    """The file may have been exchanged after the check."""
    file = tmp_path / "state.pt"
    torch.save(Canary(tmp_path / "canary"), file)

    class Engine:
        def load_checkpoint(self, folder: str, tag: str) -> tuple[str, None]:
            torch.load(file, weights_only=False)
            return folder, None

    with pytest.raises(pickle.UnpicklingError):
        deepspeed_adapter.load_checkpoint(Engine(), str(tmp_path), "tag", ())
    assert not (tmp_path / "canary").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "canary").exists(), "the canary does not work"
