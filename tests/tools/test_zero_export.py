"""to-safetensors: checkpoints of real ranks become model folders without a process group."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from allinone.data import AllInOneProcessor
from allinone.engine.distributed.launch import free_port
from allinone.model import AllInOneForPreTraining
from allinone.tools.convert import main
from tests.forked import ROOT, rank_env


def train(out: Path, world: int, **options: object) -> Path:
    """Train two steps on `world` ranks; returns the checkpoint."""
    port, ranks = str(free_port()), []
    for rank in range(world):
        env = rank_env(rank, world, port)
        line = [sys.executable, "-m", "tests.tools.zero_run", str(out), json.dumps(options)]
        ranks.append(
            subprocess.Popen(
                line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    finally:
        for rank in ranks:  # ranks that hang would slow down all other tests
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)
    return out / "checkpoints" / "step-00000002"


@pytest.fixture(scope="module")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("zero3") / "run", 4, ds_config="zero3_fp32")


def equal(folder: Path, gathered: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == gathered.keys()
    assert all(torch.equal(found[name], value) for name, value in gathered.items())


def test_zero_3_partitions_join_to_the_gathered_weights(zero3: Path, tmp_path: Path) -> None:
    gathered = load_file(zero3 / "weights" / "model.safetensors")
    assert (
        main(["to-safetensors", str(zero3), "--out", str(tmp_path / "joined"), "--from-shards"])
        == 0
    )
    equal(tmp_path / "joined", gathered)
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "joined")
    assert isinstance(model, AllInOneForPreTraining)
    assert all(torch.equal(value, gathered[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "precision", "world"),
    [(0, "fp32", 1), (0, "bf16", 1), (1, "fp32", 2), (2, "bf16", 2)],
)
def test_partitions_of_every_stage_hold_the_gathered_weights(
    tmp_path: Path, stage: int, precision: str, world: int
) -> None:
    folder = train(tmp_path / "run", world, ds_config=f"zero{stage}_{precision}")
    assert (
        main(["to-safetensors", str(folder), "--out", str(tmp_path / "joined"), "--from-shards"])
        == 0
    )
    equal(tmp_path / "joined", load_file(folder / "weights" / "model.safetensors"))


def test_a_run_is_exported_with_normalisation_and_geometry(zero3: Path, tmp_path: Path) -> None:
    assert main(["to-safetensors", str(zero3.parent.parent), "--out", str(tmp_path / "out")]) == 0
    model = AllInOneForPreTraining.from_pretrained(tmp_path / "out")
    assert model.config.hidden_size == 24
    processor = AllInOneProcessor.from_pretrained(tmp_path / "out")
    assert processor.config.std == (0.5, 0.25, 0.5)
    assert processor.config.geometry == "squash"
    assert (processor.clip.num_frames, processor.clip.image_size, processor.clip.max_text_len) == (
        2,
        32,
        5,
    )


def test_a_changed_weight_is_not_exported_partitions_still_are(
    zero3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "step-00000002"
    shutil.copytree(zero3, damaged)
    file = damaged / "weights" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["to-safetensors", str(damaged), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "weights/model.safetensors" in error
    assert not (tmp_path / "out").exists()
    assert (
        main(["to-safetensors", str(damaged), "--out", str(tmp_path / "out"), "--from-shards"]) == 0
    )
    equal(tmp_path / "out", load_file(zero3 / "weights" / "model.safetensors"))


def test_a_lost_partition_or_tensor_parallel_part_is_named(
    zero3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from allinone.engine.checkpoint.manifest import write_manifest

    lost = tmp_path / "step-00000002"
    shutil.copytree(zero3, lost)
    (lost / "deepspeed" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    assert main(["to-safetensors", str(lost), "--out", str(tmp_path / "out"), "--from-shards"]) == 2
    assert "is missing deepspeed/zero_pp_rank_2" in capsys.readouterr().err
    (lost / "manifest.json").unlink()
    write_manifest(lost)  # even where the manifest agrees
    assert main(["to-safetensors", str(lost), "--out", str(tmp_path / "out"), "--from-shards"]) == 2
    assert "ranks [0, 1, 3], but 4 ranks wrote it" in capsys.readouterr().err
    path = lost / "deepspeed" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({**torch.load(path, weights_only=True), "mp_world_size": 2}, path)
    (lost / "manifest.json").unlink()
    write_manifest(lost)
    assert main(["to-safetensors", str(lost), "--out", str(tmp_path / "out"), "--from-shards"]) == 2
    assert "tensor-parallel part 1: no *mp_rank_01" in capsys.readouterr().err


def test_inspect_shows_the_training_state(zero3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(zero3), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["training"]["step"],
        facts["training"]["samples"],
        facts["training"]["world"],
    ) == (2, 16, 4)
    assert facts["training"]["code"]["version"]
    assert facts["run"]["model"]["size"] == "odd"
    assert main(["inspect", str(zero3.parent.parent)]) == 0
    text = capsys.readouterr().out
    assert "zero3_fp32" in text
    assert f"{facts['parameters']:,} parameters" in text
