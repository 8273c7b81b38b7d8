"""The cost table against the published numbers and against torch's own counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allinone.model import SIZES, AllInOneConfig, AllInOneModel
from allinone.tools.plan import cost_of, main


def test_base_costs_the_papers_58_70_giga_multiply_adds() -> None:
    cost = cost_of("base")
    assert (cost.frames, cost.image_size, cost.text_tokens) == (3, 224, 32)
    assert f"{cost.macs / 1e9:.2f}" == "58.70"
    assert cost.paper_macs == "58.7G"
    assert abs(cost_of("base", text_tokens=40).macs / 1e9 - 60.74) < 0.005
    assert abs(cost_of("base", text_tokens=40).flops / 1e9 - 127.68) < 0.005


@pytest.mark.parametrize(
    ("size", "without_heads", "paper"),
    [("tiny", 11_431_104, "12M"), ("small", 33_553_536, "33M"), ("base", 109_867_776, "110M")],
)
def test_parameters_without_heads_are_those_of_the_original(
    size: str, without_heads: int, paper: str
) -> None:
    cost = cost_of(size)
    # the released S has DeiT's distillation token and its position on top: two rows of 384 that
    # nothing reads
    assert cost.parameters_without_heads == without_heads - (768 if size == "small" else 0)
    assert cost.paper_parameters == paper
    assert sum(cost.parts.values()) == cost.parameters


def test_flops_are_what_torch_counts_for_other_shapes_too() -> None:
    cost = cost_of("nano", frames=5, image_size=96, text_tokens=24)
    model = AllInOneModel(
        AllInOneConfig.from_size("nano", num_frames=5, image_size=96, max_text_len=24)
    ).eval()
    ids = torch.ones(1, 24, dtype=torch.long)
    # the mathematical kernel: torch's counter does not see inside the CPU's fused one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 5, 3, 96, 96), ids, ids)
    assert cost.flops == counter.get_total_flops()


def test_table_json_and_markdown_hold_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model"]) == 0
    table = capsys.readouterr().out
    for text in ("11.4M", "33.6M", "109.9M", "12M", "33M", "110M", "58.70G", "58.7G", *SIZES):
        assert text in table
    assert main(["model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [size["size"] for size in found["sizes"]] == list(SIZES)
    assert main(["model", "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(SIZES) + 2}


def test_other_shapes_are_not_put_beside_the_papers_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["model", "--frames", "8"]) == 0
    assert "58.7G" not in capsys.readouterr().out.split("Parameters:")[0]


def test_impossible_shapes_are_refused_with_their_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["model", "--image-size", "100"]) == 2
    assert "image_size 100 is not a multiple of patch_size 16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["model", "--frames", "0"])
    assert stopped.value.code == 2


def test_a_recipe_is_planned_with_its_own_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(
            [
                "train",
                "webvid-howto",
                "--gpus",
                "64",
                "--device",
                "h100-80g",
                "--json",
                "--frames",
                "4",
            ]
        )
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert (
        plan["command"]
        == "pretrain/train.py webvid-howto --frames 4 --ds-config zero1_bf16 --micro-batch 32"
    )
    assert plan["cost"]["total"] > 4 / 3 * 3 * 2 * 127e9 * 0.95, (
        "four frames, two passes, forward and backward"
    )
    step = plan["outcome"][1]
    assert step["mfu"] == 0.4
    assert step["samples_per_s"] * plan["cost"]["total"] == pytest.approx(
        step["mfu_of_step"] * 64 * 989.4e12
    )
    assert step["kwh"] == pytest.approx(step["hours"] * 64 * 0.7 * 1.2)
    picture = tmp_path / "scaling.png"
    assert main(["train", "plus-cc3m-webvid", "--markdown", "--picture", str(picture)]) == 0
    assert "images per clip of the global batch" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


def test_what_cannot_be_planned_is_refused_with_what_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "webvid-howto", "--device", "a100"]) == 2
    assert "valid devices: v100-32g" in capsys.readouterr().err
    assert main(["train", "webvid-howto", "--gpus", "100"]) == 2
    assert "--global-batch 2048 is not a multiple of --gpus 100" in capsys.readouterr().err
