"""18 optimizer steps of the original's own code, repeated through our objectives, parameter groups
and training engine, for every trajectory_*.json of this folder.

With the formula of the original's AdamW the differences are rounding. With the product's fused
AdamW they are those of the two formulas: an element whose gradient is about eps in its first step,
as in the row of a rare word, moves differently, so final weights are compared for the first only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from allinone.engine.optim.adamw import parameter_groups
from allinone.model.convert import CONTRASTIVE, reference_name
from tests.engine.ranks import RankServer
from tests.parity.trajectory import Trajectory, loss_differences, weight_differences

FILES = sorted(Path(__file__).parent.glob("trajectory_*.json"))
TOLERANCE = 1e-5
LAYOUTS = [(0, 1, 1), (0, 2, 2), (1, 2, 2), (2, 2, 2), (3, 2, 2)]
"""(ZeRO stage, ranks, micro-batches accumulated per rank)."""


@pytest.fixture(scope="module")
def server() -> Iterator[RankServer]:
    ranks = RankServer()
    yield ranks
    ranks.close()


def replay(
    server: RankServer, out: Path, file: Path, layout: tuple[int, int, int], product: bool
) -> Trajectory:
    stage, world, accumulation = layout
    codes, output = server.run(
        out,
        world,
        program="tests.parity.trajectory",
        file=str(file),
        stage=stage,
        accumulation=accumulation,
        product=product,
    )
    assert codes == [0] * world, output
    return Trajectory.load(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_norms_and_weights_equal_the_originals(
    server: RankServer, tmp_path: Path, file: Path, layout: tuple[int, int, int]
) -> None:
    trajectory = replay(server, tmp_path / "run", file, layout, product=False)
    losses = loss_differences(trajectory, tmp_path / "run")
    assert max(losses.values()) < TOLERANCE, losses
    weights = weight_differences(trajectory, tmp_path / "run")
    assert len(weights) > 40
    assert max(weights.values()) < 1e-4, weights


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_adamw_follows_the_original_within_5e_4(
    server: RankServer, tmp_path: Path, file: Path, layout: tuple[int, int, int]
) -> None:
    trajectory = replay(server, tmp_path / "run", file, layout, product=True)
    losses = loss_differences(trajectory, tmp_path / "run")
    assert max(losses.values()) < 5e-4, losses


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_same_parameters_decay_as_in_the_original(file: Path) -> None:
    trajectory = Trajectory.load(file)
    model = trajectory.model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying = {
        names[parameter]
        for group in parameter_groups(model, 0.01)
        for parameter in group["params"]
        if group["weight_decay"]
    }
    untrained = set(trajectory.facts["not_trained"])
    expected = {
        reference_name(name)
        for name in trajectory.facts["optimizer"]["decayed"]
        if name not in untrained
    }
    assert {name for name in decaying if not name.startswith(CONTRASTIVE)} == expected


def test_another_patch_order_in_one_pass_would_be_noticed(
    server: RankServer, tmp_path: Path
) -> None:
    file = tmp_path / "changed.json"
    file.write_text(FILES[0].read_text())
    tensors = load_file(FILES[0].with_suffix(".safetensors"))
    tensors["step01/patch_order_itm"] = tensors["step01/patch_order_itm"].flip(1)
    save_file(tensors, file.with_suffix(".safetensors"))
    trajectory = replay(server, tmp_path / "run", file, (0, 1, 1), product=False)
    assert loss_differences(trajectory, tmp_path / "run")["total"] > TOLERANCE
