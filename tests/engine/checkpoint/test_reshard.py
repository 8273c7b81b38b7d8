"""ZeRO stages, tensor-parallel sizes and numbers of ranks compute the same, and checkpoints move
between them. All combinations: tests/benchmarks/equality_matrix.py."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from allinone.common.errors import ConfigError
from allinone.engine import ds_config
from allinone.engine.checkpoint import reshard
from allinone.engine.checkpoint.layout import CheckpointError
from allinone.engine.checkpoint.zero_reader import SavedState
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.topology import Division, Layout
from allinone.model.linear import SplitDropout
from allinone.tools.convert import main as convert
from tests.benchmarks.equality_matrix import CUT, TOLERANCE, Cell, Trace, move, trace, train
from tests.engine.ranks import RankServer

SINGLE = Cell(1, 1, 1)
SPLIT = Cell(2, 2, 4)


@pytest.fixture(scope="module")
def runs(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete runs, with dropout and stochastic depth, at layouts that differ in everything."""
    root = tmp_path_factory.mktemp("layouts")
    for cell in (SINGLE, SPLIT, Cell(0, 2, 2), Cell(3, 2, 2)):
        train(server, root / str(cell), cell)
    return root


@pytest.fixture(scope="module")
def full_run(runs: Path) -> Trace:
    return trace(runs / str(SINGLE))


def assert_same(found: Trace, expected: Trace) -> None:
    assert max(found.differences(expected)) < TOLERANCE


@pytest.mark.parametrize("cell", [SPLIT, Cell(0, 2, 2), Cell(3, 2, 2)], ids=str)
def test_divided_layers_compute_what_full_layers_compute(
    runs: Path, full_run: Trace, cell: Cell
) -> None:
    assert_same(trace(runs / str(cell)), full_run)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (SINGLE, Cell(2, 2, 2)),
        (SPLIT, Cell(3, 1, 2)),
        (Cell(3, 2, 2), Cell(0, 1, 1)),
        (Cell(0, 2, 2), Cell(3, 2, 4)),
    ],
    ids=str,
)
def test_a_checkpoint_continues_at_another_layout(
    server: RankServer, runs: Path, tmp_path: Path, full_run: Trace, source: Cell, target: Cell
) -> None:
    output = move(server, runs / str(source), tmp_path / "run", target)
    assert f"ZeRO {source.stage} → {target.stage}" in output
    assert_same(trace(tmp_path / "run"), full_run)


def test_at_the_same_layout_a_run_continues_bit_equal(
    server: RankServer, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / str(SPLIT), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    codes, output = server.run(
        tmp_path / "run", SPLIT.world, **SPLIT.options(), activation_checkpointing=True
    )
    assert codes == [0] * SPLIT.world, output
    resumed = output.partition("resumed from")[2].partition("\n")[0]
    assert resumed
    assert "→" not in resumed, "the state was redistributed"
    assert trace(tmp_path / "run").differences(trace(runs / str(SPLIT))) == (0, 0, 0)


def test_the_moments_of_every_layout_are_the_same_by_name(runs: Path) -> None:
    first, *others = (
        SavedState(folder / "checkpoints" / "step-00000006")
        for folder in sorted(runs.iterdir())
        if folder.is_dir()
    )
    assert first.step == 6
    for other in others:
        assert sorted(other.names) == sorted(first.names)
        for name in first.names:
            for key, scale in (("exp_avg", 1e3), ("exp_avg_sq", 1e5)):
                expected, found = first.full_tensor(name, key), other.full_tensor(name, key)  # type: ignore[arg-type]
                assert found.shape == expected.shape
                assert (found - expected).abs().max() <= TOLERANCE * scale, (name, key)


def test_ranks_of_a_group_hold_equal_replicated_parameters(runs: Path) -> None:
    folder = runs / str(Cell(0, 2, 2)) / "checkpoints" / "step-00000006" / "deepspeed"
    parts = [
        torch.load(folder / f"mp_rank_0{part}_model_states.pt", weights_only=False)["module"]
        for part in (0, 1)
    ]
    divided = re.compile(r"(qkv|fc1)\.(weight|bias)|(proj|fc2)\.weight")
    for name, value in parts[0].items():
        if value is not None:
            assert torch.equal(value, parts[1][name]) != bool(divided.search(name)), name


def test_divided_checkpoints_are_exported_from_their_partitions(runs: Path, tmp_path: Path) -> None:
    folder = runs / str(SPLIT) / "checkpoints" / "step-00000006"
    assert (
        convert(["to-safetensors", str(folder), "--out", str(tmp_path / "joined"), "--from-shards"])
        == 0
    )
    assert convert(["diff", str(folder), str(tmp_path / "joined"), "--json"]) == 0


def test_contrast_gathers_the_clips_of_data_ranks_only(server: RankServer, tmp_path: Path) -> None:
    """Two data ranks, each of one or two ranks: the same negatives, and the same gradients through
    the all-gather."""
    found = []
    for cell in (Cell(1, 1, 2), SPLIT):
        codes, output = server.run(
            tmp_path / str(cell), cell.world, **cell.options(), contrast=True
        )
        assert codes == [0] * cell.world, output
        found.append(trace(tmp_path / str(cell)))
    assert_same(*found)


def test_16_bit_masters_move_unrounded(server: RankServer, tmp_path: Path) -> None:
    """ZeRO 1 and 2 are bit-equal on one rank, so rounded masters would differ. ZeRO 0 is not equal:
    it accumulates gradients in 16 bits."""
    train(server, tmp_path / "run", Cell(1, 1, 1, "bf16"))
    move(server, tmp_path / "run", tmp_path / "moved", Cell(2, 1, 1, "bf16"))
    assert trace(tmp_path / "moved").differences(trace(tmp_path / "run")) == (0, 0, 0)
    train(server, tmp_path / "low", Cell(0, 1, 1, "bf16"))
    for source, target in (("run", Cell(0, 1, 1, "bf16")), ("low", Cell(1, 1, 1, "bf16"))):
        move(server, tmp_path / source, tmp_path / f"{source}-moved", target)
        found, expected = trace(tmp_path / f"{source}-moved"), trace(tmp_path / source)
        assert found.losses[: CUT + 1] == expected.losses[: CUT + 1], (
            "the first step after the move starts from the same weights"
        )


def test_offloaded_optimizer_state_computes_the_same_and_moves(
    server: RankServer, runs: Path, tmp_path: Path, full_run: Trace
) -> None:
    offloaded = Cell(2, 1, 1, offload="cpu")
    train(server, tmp_path / "run", offloaded)
    assert_same(trace(tmp_path / "run"), full_run)
    assert "offload cpu → none" in move(server, tmp_path / "run", tmp_path / "back", SINGLE)
    assert_same(trace(tmp_path / "back"), full_run)
    move(server, runs / str(SINGLE), tmp_path / "there", Cell(3, 1, 1, offload="cpu"))
    assert_same(trace(tmp_path / "there"), full_run)


def test_a_nan_skips_the_step_on_all_ranks_of_a_group(server: RankServer, tmp_path: Path) -> None:
    codes, output = server.run(tmp_path / "run", 2, **Cell(0, 2, 2).options(), poison=12)
    assert codes == [0, 0], output
    assert "step 2 skipped, its loss not finite; clips: clip12, clip13\n" in output
    found = trace(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in found.weights.values())  # type: ignore[arg-type]


def test_sizes_that_do_not_divide_are_refused_with_valid_ones(
    server: RankServer, tmp_path: Path
) -> None:
    options = {"ds_config": "zero1_fp32", "micro_batch": 1}
    codes, output = server.run(tmp_path / "run", 1, **options, tensor_parallel=2)
    assert codes == [2]
    assert "--tensor-parallel 2 does not divide the 1 ranks; valid here: 1" in output
    codes, output = server.run(tmp_path / "run", 3, **options, tensor_parallel=3)
    assert codes == [2] * 3
    assert "does not divide the model's 2 attention heads; valid for this size: 1, 2" in output
    with pytest.raises(ConfigError, match="choose zero1"):
        ds_config.resolve(
            TrainConfig(ds_config="zero0_bf16", tensor_parallel=2, global_batch=16), 1, True
        )


def test_what_cannot_move_is_refused_with_an_alternative(tmp_path: Path) -> None:
    layout = {
        "stage": 1,
        "precision": "bf16",
        "offload": "none",
        "data_ranks": 2,
        "tensor_parallel": 1,
    }
    with pytest.raises(CheckpointError, match=r"swap files.*--init-from"):
        reshard.load(None, nn.Module(), tmp_path, {**layout, "offload": "nvme", "stage": 3}, layout)
    with pytest.raises(CheckpointError, match="written in bf16, this run computes in fp32"):
        reshard.load(None, nn.Module(), tmp_path, layout, {**layout, "precision": "fp32"})


def test_parts_of_a_parameter_are_complete_heads_and_join_again() -> None:
    heads, head_dim, width = 4, 2, 3
    rows = torch.tensor(
        [[100 * kind + head for _ in range(head_dim)] for kind in range(3) for head in range(heads)]
    ).flatten()
    qkv, division = rows[:, None].expand(-1, width).contiguous(), Division(0, 3)
    parts = [division.part(qkv, rank, 2) for rank in range(2)]
    assert parts[1][:, 0].unflatten(0, (3, 2, head_dim))[..., 0].tolist() == [
        [2, 3],
        [102, 103],
        [202, 203],
    ]
    assert torch.equal(division.join(parts), qkv)
    assert torch.equal(
        Division(1).join([Division(1).part(qkv.T, rank, 4) for rank in range(4)]), qkv.T
    )


def test_divided_layers_drop_the_elements_that_full_layers_drop() -> None:
    x, found = torch.randn(5, 3, 8), []
    for part in range(4):
        dropout = SplitDropout(0.4)
        dropout.share = (part, 4)
        torch.manual_seed(0)
        found.append(dropout(x[..., 2 * part : 2 * part + 2]))
        after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.cat(found, -1), SplitDropout(0.4)(x))
    assert torch.equal(after, torch.rand(1)), "a different number of random numbers was drawn"


def test_data_ranks_follow_from_groups_of_neighbours() -> None:
    layouts = [Layout(rank, 6, 2) for rank in range(6)]
    assert [(layout.data_rank, layout.tensor_rank) for layout in layouts] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert layouts[0].data_world == 3
    assert layouts[0].one_per_data_rank(list("aabbcc")) == ["a", "b", "c"]
