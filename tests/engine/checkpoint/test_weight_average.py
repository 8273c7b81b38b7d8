"""The moving average of the weights: timm's numbers, exact resume, every layout, its evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.engine import ds_config
from allinone.engine.checkpoint.layout import CheckpointError
from allinone.engine.checkpoint.manifest import find_damage
from allinone.engine.checkpoint.weight_average import WeightAverage
from allinone.engine.checkpoint.weights import resolve_weights
from allinone.engine.config import TrainConfig
from tests.benchmarks.equality_matrix import CUT, STEPS, Cell
from tests.engine.ranks import RankServer
from tests.parity.timm_golden import EMA_DECAY, EMA_UPDATES, GOLDEN, ema_weights

DECAY = 0.75


def test_average_has_the_bits_of_timms() -> None:
    module = nn.ParameterDict({"weight": nn.Parameter(ema_weights(0))})
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    average, found = WeightAverage(optimizer, module, EMA_DECAY, stage=0), []
    for update in range(1, EMA_UPDATES + 1):
        with torch.no_grad():
            module["weight"].copy_(ema_weights(update))
        average.update()
        with average.applied():
            found.append(module["weight"].tolist())
        assert torch.equal(module["weight"], ema_weights(update)), "the weights are back"
    assert found == json.loads(GOLDEN.read_text())["averages"]


def train(server: RankServer, out: Path, cell: Cell, **more: object) -> str:
    codes, output = server.run(out, cell.world, **{**cell.options(), "ema": DECAY, **more})
    assert codes == [0] * cell.world, output
    return output


def weights(out: Path, step: int, kind: str) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / kind / "model.safetensors")


def recomputed(out: Path, first: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average by its formula, from the weights of every step."""
    average = {name: value.double() for name, value in first.items()}
    for step in range(1, STEPS + 1):
        for name, value in weights(out, step, "weights").items():
            average[name] = DECAY * average[name] + (1 - DECAY) * value.double()
    return average


@pytest.fixture(scope="module")
def runs(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs at every ZeRO stage, with a checkpoint of every step."""
    root = tmp_path_factory.mktemp("average")
    for cell in CELLS:
        train(server, root / str(cell), cell, save_every=1)
    return root


CELLS = [Cell(0, 1, 1), Cell(1, 1, 2), Cell(2, 2, 4), Cell(3, 1, 2), Cell(2, 1, 1, offload="cpu")]


@pytest.fixture(scope="module")
def initial(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The first weights: those after a step at learning rate 0."""
    out = tmp_path_factory.mktemp("initial")
    train(server, out, Cell(0, 1, 1), lr=0.0, steps=1, save_every=1)
    return weights(out, 1, "weights")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_stage_saves_the_average_of_its_weights(
    runs: Path, initial: dict[str, Tensor], cell: Cell
) -> None:
    out = runs / str(cell)
    average, raw = weights(out, STEPS, "ema"), weights(out, STEPS, "weights")
    expected = recomputed(out, initial)
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    for name, value in average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)
    manifest = json.loads((out / f"checkpoints/step-{STEPS:08d}/manifest.json").read_text())
    assert "ema/model.safetensors" in manifest


def continued(server: RankServer, source: Path, out: Path, cell: Cell) -> Path:
    shutil.copytree(source, out)
    for step in range(CUT + 1, STEPS + 1):
        shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")
    train(server, out, cell, save_every=1)
    return out


@pytest.mark.parametrize("cell", CELLS[1:4], ids=str)
def test_resumed_average_is_bit_equal(
    server: RankServer, runs: Path, tmp_path: Path, cell: Cell
) -> None:
    out = continued(server, runs / str(cell), tmp_path / "run", cell)
    for kind in ("weights", "ema"):
        found, expected = weights(out, STEPS, kind), weights(runs / str(cell), STEPS, kind)
        assert all(torch.equal(found[name], expected[name]) for name in expected), kind


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Cell(1, 1, 2), Cell(3, 1, 2)),
        (Cell(3, 1, 2), Cell(2, 1, 1)),
        (Cell(2, 2, 4), Cell(0, 1, 1)),
    ],
    ids=str,
)
def test_average_moves_to_another_layout_unchanged(
    server: RankServer, runs: Path, tmp_path: Path, source: Cell, target: Cell
) -> None:
    out = continued(server, runs / str(source), tmp_path / "run", target)
    # what the new layout loaded, moved on by the weights that it computed, bit for bit
    average = weights(runs / str(source), CUT, "ema")
    for step in range(CUT + 1, STEPS + 1):
        raw, found = weights(out, step, "weights"), weights(out, step, "ema")
        for name, value in average.items():
            value.lerp_(raw[name], 1 - DECAY)
            assert torch.equal(found[name], value), (step, name)


def test_16_bit_runs_average_their_fp32_weights(server: RankServer, tmp_path: Path) -> None:
    for stage in (0, 1, 3):
        out = tmp_path / str(stage)
        train(server, out, Cell(stage, 1, 1, "bf16"), save_every=1, lr=1e-4)
        average, raw = weights(out, STEPS, "ema"), weights(out, STEPS, "weights")
        rounded = [torch.equal(average[name], average[name].bfloat16().float()) for name in raw]
        assert not all(rounded)


def test_runs_with_and_without_average_train_alike(
    server: RankServer, runs: Path, tmp_path: Path
) -> None:
    cell = Cell(1, 1, 2)
    train(server, tmp_path / "plain", cell, ema=0.0)
    raw = weights(runs / str(cell), STEPS, "weights")
    plain = weights(tmp_path / "plain", STEPS, "weights")
    assert all(torch.equal(plain[name], raw[name]) for name in raw)
    step = tmp_path / "plain" / "checkpoints" / f"step-{STEPS:08d}"
    with pytest.raises(CheckpointError, match="trained without --ema"):
        resolve_weights(step, "ema")


def test_one_resolver_finds_both_kinds_of_weights(runs: Path, tmp_path: Path) -> None:
    out = runs / str(CELLS[0])
    step = out / "checkpoints" / f"step-{STEPS:08d}"
    for source in (out, step):
        assert resolve_weights(source).path == step / "weights"
        found = resolve_weights(source, "ema")
        assert found.path == step / "ema"
        assert "moving average (EMA)" in str(found)
    assert resolve_weights(step / "ema").path == step / "ema", "a model folder of its own"
    with pytest.raises(CheckpointError, match="one set of weights"):
        resolve_weights(step / "weights", "ema")
    shutil.copytree(step, tmp_path / "step-00000006")
    (tmp_path / "step-00000006" / "ema" / "model.safetensors").write_bytes(b"damaged")
    assert "ema/model.safetensors" in (find_damage(tmp_path / "step-00000006") or "")


def test_nvme_offload_refuses_the_average(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NVME_DIR", str(tmp_path))
    names = [path.stem for path in ds_config.FOLDER.glob("*nvme*.json")]
    assert names
    config = TrainConfig(ds_config=names[0], ema=0.9)
    with pytest.raises(ConfigError, match=r"--ema 0\.9 with --ds-config .* choose .*offload_cpu"):
        ds_config.resolve(config, 1, False)
