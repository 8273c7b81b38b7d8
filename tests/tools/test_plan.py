"""tools/plan.py: model sizes against published numbers and torch's counter; plans of recipes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allinone.data.text import Tokenizer
from allinone.engine import ds_config
from allinone.engine.distributed.topology import Layout
from allinone.engine.planning import estimate
from allinone.engine.planning.hardware import DEVICES, NETWORKS
from allinone.engine.planning.memory import Activations, groups_of
from allinone.engine.planning.operations import totals
from allinone.model import SIZES, AllInOneConfig, AllInOneForPreTraining, AllInOneModel
from allinone.pretrain.cost import TYPICAL_TOKENS, training_cost
from allinone.pretrain.objectives.config import ObjectiveConfig
from allinone.pretrain.step_counts import Pass, counted_steps
from allinone.pretrain.train import parse
from allinone.tools.plan import main
from allinone.tools.planning.measured_shares import with_measured_shares
from allinone.tools.planning.model_plan import cost_of
from allinone.tools.planning.options import split_arguments
from allinone.tools.planning.train_plan import make_plan
from allinone.tools.reporting import gpu_report
from tests.data.helpers import prepare_small_demo


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
def test_parameters_without_heads_equal_the_original(
    size: str, without_heads: int, paper: str
) -> None:
    cost = cost_of(size)
    # the original's S also holds a temporal embedding of 3 x 384 that it never adds
    assert cost.parameters_without_heads == without_heads - (3 * 384 if size == "small" else 0)
    assert cost.paper_parameters == paper
    assert sum(cost.parts.values()) == cost.parameters


def test_flops_equal_torchs_count_for_other_shapes() -> None:
    cost = cost_of("nano", frames=5, image_size=96, text_tokens=24)
    model = AllInOneModel(
        AllInOneConfig.from_size("nano", num_frames=5, image_size=96, max_text_len=24)
    ).eval()
    ids = torch.ones(1, 24, dtype=torch.long)
    # torch's counter does not see inside the CPU's fused attention kernel
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


def test_the_papers_cost_is_shown_for_its_own_shape_only(
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
    words = "train webvid-howto --gpus 64 --device h100-80g --json --frames 4"
    assert main(words.split()) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (
        plan["command"]
        == "pretrain/train.py webvid-howto --frames 4 --ds-config zero1_bf16 --micro-batch 32"
    )
    # four frames, two passes, forward and backward; a caption of 16 tokens instead of 40
    assert plan["cost"]["total"] > 4 / 3 * 3 * 2 * 127e9 * 0.95 * 213 / 237
    eager, compiled = plan["outcome"]
    assert (eager["mode"], compiled["mode"]) == ("eager", "compiled")
    assert compiled["step_s"] < eager["step_s"]
    for step in plan["outcome"]:
        assert step["samples_per_s"] * plan["cost"]["total"] == pytest.approx(
            step["mfu"] * 64 * 989.4e12
        )
        assert step["mfu"] < 0.62, "no faster than its matrix products"
    assert sum(plan["bounds"].values()) == pytest.approx(plan["chosen"]["step_s"])
    step = eager
    assert step["kwh"] == pytest.approx(step["hours"] * 64 * 0.7 * 1.2)
    picture = tmp_path / "scaling.png"
    assert main(["train", "plus-cc3m-webvid", "--markdown", "--picture", str(picture)]) == 0
    assert "images per clip of the global batch" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


def test_the_recommendation_comes_first_and_names_the_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "train webvid-howto --size tiny --gpus 8 --global-batch 256 --micro-batch 32"
    assert main(words.split()) == 0
    text = capsys.readouterr().out
    assert text.startswith("recommended: pretrain/train.py webvid-howto --size tiny")
    assert "a step is bound by" in text
    assert "--prepared DIR" in text
    assert "eth-100" not in text, "eight GPUs of one node use no network"
    assert main([*words.split(), "--gpus-per-node", "4"]) == 0
    assert "eth-100" in capsys.readouterr().out, "two nodes"


def test_a_custom_device_is_planned_from_its_three_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "train webvid-howto --size tiny --gpus 8 --global-batch 64 --micro-batch 8 --json"

    def step_s(device: str) -> float:
        assert main([*words.split(), *device.split()]) == 0
        return float(json.loads(capsys.readouterr().out)["chosen"]["compute_s"])

    # the data sheet of an A10, whose share of matrix products is the default one
    custom = "--device custom --memory-gb 24 --tflops 125 --bandwidth 600"
    assert step_s(custom) == pytest.approx(step_s("--device a10"))
    with pytest.raises(SystemExit):
        main([*words.split(), "--device", "custom"])
    assert "--memory-gb must be above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words.split(), "--tflops", "100"])
    assert "give --device custom" in capsys.readouterr().err


def test_both_phases_of_patch_keep_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    plans = {}
    for recipe in ("webvid-howto-base", "webvid-howto-fast"):
        # the operations are counted for full captions
        options = ["--gpus", "64", "--text-padding", "full", "--json"]
        assert main(["train", recipe, *options]) == 0
        plans[recipe] = json.loads(capsys.readouterr().out)
    paper, fast = plans.values()
    kept, complete = fast["phases"]
    assert (kept["steps"], complete["steps"]) == (380_000, 20_000)
    assert fast["outcome"][1]["hours"] == pytest.approx(kept["hours"] + complete["hours"])
    # the last phase and the peak of memory are those of the paper's recipe
    assert complete["hours"] == pytest.approx(0.05 * paper["outcome"][1]["hours"])
    assert fast["chosen"] == paper["chosen"]
    gemm = {name: fast[name]["compiled"]["compute"]["gemm"] for name in ("kept_by_mode", "by_mode")}
    assert gemm["kept_by_mode"] / gemm["by_mode"] == pytest.approx(
        kept["flops"] / complete["flops"], rel=0.03
    )
    assert main(["train", "webvid-howto-fast", "--gpus", "64", "--markdown"]) == 0
    assert "| --patch-keep 0.5 | 98 of 196 | 380,000 |" in capsys.readouterr().out


def test_what_cannot_be_planned_is_refused_with_valid_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "webvid-howto", "--device", "a100"]) == 2
    assert "valid devices: v100-32g" in capsys.readouterr().err
    assert main(["train", "webvid-howto", "--gpus", "100"]) == 2
    assert "--global-batch 2048 is not a multiple of --gpus 100" in capsys.readouterr().err


def test_flags_are_divided_between_planner_and_recipe() -> None:
    words = "webvid-howto --gpus 64 --size large --json --data a b --device=b200 --no-compile -h"
    own, recipe = split_arguments(words.split())
    assert own == ["webvid-howto", "--gpus", "64", "--json", "--device=b200", "-h"]
    assert recipe == ["--size", "large", "--data", "a", "b", "--no-compile"]


def test_options_that_exclude_each_other_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["model"], ["train", "demo"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--json", "--markdown"])
        assert stopped.value.code == 2
        assert "exclude each other" in capsys.readouterr().err


def test_help_lists_every_device_and_does_not_import_torch() -> None:
    program = (
        "import sys; from allinone.tools.plan import main\n"
        "try: main(['train', '--help'])\n"
        "finally: assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in (*DEVICES, *NETWORKS):
        assert name in done.stdout


def test_an_unknown_command_names_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trian", "demo"])
    assert stopped.value.code == 2
    assert "did you mean train" in capsys.readouterr().err


TINY = "train webvid-howto --size tiny --gpus 8 --global-batch 64 --micro-batch 8"


def test_captions_of_the_data_set_the_length_of_texts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = prepare_small_demo(tmp_path)
    lines = (tmp_path / "source" / "results_demo_train.csv").read_text().splitlines()
    name = lines[0].split(",").index("name")
    lengths = Tokenizer().lengths([row[name] for row in csv.reader(lines[1:])])
    assert main([*TINY.split(), "--data", str(data), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    # 512 captions of 40, drawn at random
    assert known["text_tokens"] == pytest.approx(lengths.mean(), rel=0.06)
    assert main([*TINY.split(), "--json"]) == 0
    assumed = json.loads(capsys.readouterr().out)
    assert assumed["text_tokens"] == TYPICAL_TOKENS
    for plan in (known, assumed):
        assert plan["cost"]["total"] * 8 == pytest.approx(
            plan["chosen"]["mfu"] * plan["chosen"]["step_s"] * 312e12
        )
    shorter = known["text_tokens"] < TYPICAL_TOKENS
    gemm = [plan["chosen"]["compute"]["gemm"] for plan in (known, assumed)]
    assert (gemm[0] < gemm[1]) is shorter
    assert main([*TINY.split(), "--data", str(data)]) == 0
    assert f"a sample of 512 captions has {known['text_tokens']:.1f}" in capsys.readouterr().out
    assert main(TINY.split()) == 0
    assert "captions of 16 on average are assumed" in capsys.readouterr().out
    assert main([*TINY.split(), "--data", str(tmp_path / "missing")]) != 0
    assert str(tmp_path / "missing") in capsys.readouterr().err


def test_packed_texts_save_time_and_padded_ones_cost_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = {}
    for padding in ("packed", "full"):
        assert main([*TINY.split(), "--text-padding", padding, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        steps[padding] = plan["chosen"]["compute"]["gemm"] / plan["cost"]["total"]
    # time of matrix products follows their FLOPs
    assert steps["packed"] == pytest.approx(steps["full"], rel=0.05)


def report_of(card: str, shares: tuple[float, float, float]) -> gpu_report.GpuReport:
    """What a GPU of an A100's rates reports if its kernels reach these shares of them."""
    model = AllInOneConfig.from_size("tiny")
    step = Pass(model, ObjectiveConfig(), model.num_frames)
    checks = []
    for mode in ("eager", "compiled"):
        counts = totals(step.operations(4, mode))
        kinds = {
            "GEMM": 1e3 * counts["GEMM"].flops / (shares[0] * 312e12),
            "attention": 1e3 * counts["attention"].flops / (shares[1] * 312e12),
            "copies": 250 * counts["memory-bound"].bytes / (shares[2] * 2039e9),
            "memory-bound": 750 * counts["memory-bound"].bytes / (shares[2] * 2039e9),
            "idle": 1.0,
        }
        checks.append(gpu_report.Check(mode, "measured", "", 1.0, {"trace": {"kinds": kinds}}))
    stage = gpu_report.Stage("speed", "(d) speed", "passed", 1.0, 9.0, checks)
    options = {"size": "tiny", "micro_batch": 4}
    return gpu_report.GpuReport(
        gpu_report.FORMAT, "2026-01-02T03:04:05+00:00", 1.0, options, card, {}, [stage]
    )


def test_measured_shares_replace_the_assumed_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gpu_report.write(report_of("NVIDIA A100-SXM4-80GB", (0.5, 0.2, 0.6)), tmp_path)
    path = tmp_path / gpu_report.REPORT
    device = with_measured_shares(DEVICES["a100-80g"], gpu_report.read(path))
    assert (device.gemm_share, device.attention_share, device.memory_share) == pytest.approx(
        (0.5, 0.2, 0.6)
    )
    assert main([*TINY.split(), "--measured", str(path)]) == 0
    assert "measured on 2026-01-02: 50 % of the rate" in capsys.readouterr().out
    assert main([*TINY.split(), "--measured", str(path), "--device", "h100-80g"]) == 2
    assert "give --device a100-80g" in capsys.readouterr().err
    empty = replace(report_of("NVIDIA A100-SXM4-80GB", (1, 1, 1)), stages=[])
    gpu_report.write(empty, tmp_path)
    assert main([*TINY.split(), "--measured", str(path)]) == 2
    assert "has no trace of a training step" in capsys.readouterr().err


def test_a_run_is_planned_as_the_planner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = parse(
        ["webvid-howto", "--size", "tiny", "--global-batch", "64", "--micro-batch", "8"]
    )
    device, network = DEVICES["a100-80g"], NETWORKS["ib-hdr"]
    plan = make_plan("x", config, 8, device, network)
    chosen = next(
        each
        for each in plan.candidates
        if (each.ds_config, each.micro_batch, each.checkpointing) == ("zero1_bf16", 8, False)
    )
    monkeypatch.setattr(estimate, "planned_device", lambda _: device)
    monkeypatch.setattr(estimate, "peak_rate", lambda *_: (device.rate, "A100"))
    with torch.device("meta"):
        groups = groups_of(AllInOneForPreTraining(config.model_config()))
    run = estimate.plan_run(
        config.train,
        ds_config.load("zero1_bf16"),
        groups,
        Layout(world=8),
        torch.device("cuda"),
        plan.cost.total,
        Activations(),
        counted_steps(config, training_cost(config, 8), ()),
        compiled=True,
    )
    assert run.mfu_from == "counted"
    assert run.step_s == pytest.approx(chosen.step_s)
    assert run.mfu == pytest.approx(chosen.mfu)
    assert run.hours == pytest.approx(config.train.steps * chosen.step_s / 3600)
