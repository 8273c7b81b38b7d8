"""The planner compared with tensors and collectives of DeepSpeed's ranks, activations kept by
autograd, and torch's FLOP counter."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allinone.engine.objective import StepModule
from allinone.engine.planning.estimate import Activations
from allinone.engine.planning.hardware import DEVICES, NETWORKS, find_device, peak_of_card
from allinone.engine.planning.memory import Zero, owned, state_memory, traffic
from allinone.engine.planning.operations import Operation
from allinone.engine.planning.step_time import (
    TrainingJob,
    candidate,
    collective_seconds,
    compute_time,
    recommend,
)
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.config import CoTrainOptions, ModelOptions, PretrainConfig
from allinone.pretrain.cost import activations, masked_tokens, sample_flops, training_cost
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from allinone.pretrain.recipes import RECIPES
from tests.engine.measured import MASKED, Case, make_batch, measure
from tests.engine.planned import compare

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 2500,
    "image_size": 32,
}
CASES = [
    Case(0, "bf16", 2, model=SMALL),
    Case(1, "bf16", 2, bucket=40_000, model=SMALL),
    Case(1, "fp32", 4, accumulation=2, bucket=40_000, model=SMALL),
    Case(2, "bf16", 4, accumulation=2, bucket=40_000, model=SMALL),
    Case(3, "fp32", 4, bucket=40_000, model=SMALL),
    Case(3, "bf16", 2, accumulation=2, bucket=40_000, model=SMALL),
    Case(1, "bf16", 2, bucket=40_000, model={**SMALL, "distillation_token": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planned_bytes_equal_deepspeeds_tensors_and_traffic(case: Case) -> None:
    """Weights, gradients, fp32 masters and moments, buckets between steps, in the backward pass and
    in the update; bytes of each collective."""
    lines = {line.what: line for line in compare(case, measure(case))}
    for what, line in lines.items():
        # the error of a part is relative to everything the rank holds at that moment
        moment = lines.get(f"{what.partition(':')[0]}: all", line)
        if not what.startswith("peak"):
            assert abs(line.planned - line.measured) < 0.02 * moment.measured, (case.name, line)


def test_a_rank_keeps_parameters_that_overlap_its_partition() -> None:
    touched, piece = owned(((10, 4, 2), (8,)), world=2)  # partitions of 8 and 4 elements
    assert touched == [{0, 3}, {0, 1, 2, 3}]
    assert piece == 8


def test_zero_0_needs_14_bytes_per_parameter_and_20_at_the_peak() -> None:
    """In bf16: 14 bytes between steps; the peak is 2.05 GiB for 110M parameters, 18.6 for 1B."""
    for parameters, gib in ((110_000_000, 2.05), (1_000_000_000, 18.6)):
        memory = state_memory([[parameters]], 128, Zero(0, "bf16"))
        assert memory.between.total == 14 * parameters
        assert memory.peak() / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "offload", "ranks", "host"),
    [(0, False, 4, False), (1, False, 4, False), (3, False, 4, False), (2, True, 4, True)],
)
def test_ema_adds_4_bytes_per_parameter_of_the_optimizers_share(
    stage: int, offload: bool, ranks: int, host: bool
) -> None:
    groups, zero = [[8_000, 24], [800]], Zero(stage, "bf16", offload=offload)
    plain, averaged = (state_memory(groups, ranks, zero, average=ema) for ema in (False, True))
    added = 4 * 8_824 / (1 if stage == 0 else ranks)
    for moment in ("between", "backward", "update"):
        totals = [getattr(memory, moment).total for memory in (plain, averaged)]
        assert totals[1] - totals[0] == (0 if host else added)
    assert averaged.peak(1e6) - plain.peak(1e6) == (0 if host else added)
    assert averaged.host - plain.host == (added if host else 0)


KEPT = ObjectiveConfig(patch_keep=0.5, patch_keep_until=1.0)


@pytest.mark.parametrize(
    ("frames", "words", "clips", "element", "recompute", "model", "objective"),
    [
        (3, 16, 4, 4, False, {}, ObjectiveConfig()),
        (5, 12, 2, 2, False, {}, ObjectiveConfig()),
        (3, 16, 6, 4, True, {}, ObjectiveConfig()),
        (3, 16, 4, 2, True, {}, ObjectiveConfig(vtc=1.0)),
        (3, 16, 4, 2, False, {}, ObjectiveConfig(vtc=1.0, vtm_negatives="hard")),
        (1, 16, 4, 4, False, {}, ObjectiveConfig(mlm=0.0, vtc=1.0)),
        (3, 16, 4, 4, False, {"distillation_token": True}, ObjectiveConfig(vtc=1.0)),
        (3, 16, 4, 4, False, {"distillation_token": True}, ObjectiveConfig(wpa=0.1)),
        (3, 16, 4, 4, False, {}, ObjectiveConfig(passes="separate")),
        (3, 16, 4, 2, False, {}, ObjectiveConfig(passes="separate", wpa=0.1)),
        (3, 40, 2, 4, False, {"size": "tiny", "patch_order": "shuffled"}, ObjectiveConfig(wpa=0.1)),
        (3, 40, 2, 4, True, {"size": "tiny"}, ObjectiveConfig(passes="separate", wpa=0.1)),
        (3, 16, 4, 4, False, {}, replace(KEPT, wpa=0.1)),
        (3, 16, 4, 2, True, {"distillation_token": True}, replace(KEPT, vtc=1.0)),
    ],
)
def test_planned_activations_equal_what_autograd_keeps(
    frames: int,
    words: int,
    clips: int,
    element: int,
    recompute: bool,
    model: dict[str, Any],
    objective: ObjectiveConfig,
) -> None:
    options = ModelOptions(**{"size": "nano", "frames": frames, "max_text_len": words, **model})
    config = PretrainConfig(out=Path("out"), data=(), model=options, objective=objective)
    network = AllInOneForPreTraining(config.model_config()).to(
        torch.float32 if element == 4 else torch.bfloat16
    )
    if recompute:
        network.gradient_checkpointing_enable()
    batch = make_batch(network.config, clips, masked=masked_tokens(network.config))
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        kept = StepModule(network, PretrainObjective(objective))(batch)
    measured = sum(
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    del kept
    planned = activations(
        config, element, element, micro_batch=clips, checkpointing=recompute
    ).total
    if recompute:  # each checkpoint also keeps the CPU generator's state
        passes = (objective.mlm > 0) + (objective.vtm > 0) + 2 * (objective.vtc > 0)
        passes -= objective.joint_pass
        planned += passes * network.config.num_hidden_layers * torch.get_rng_state().numel()
    assert planned == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("passes", ["joint", "separate"])
@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"wpa": 0.1, "vtc": 1.0},
        {"vtm": 0.0},
        {"patch_keep": 0.5},
        {"patch_keep": 0.3, "wpa": 0.1, "vtc": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [1, 3])
def test_planned_flops_of_a_step_equal_torchs_count(
    frames: int, weights: dict[str, float], passes: str
) -> None:
    """Forward and backward of MLM, VTM, WPA and VTC with their heads."""
    config = AllInOneConfig.from_size("nano", num_frames=frames, attention_dropout=0.0)
    objective, clips = ObjectiveConfig(passes=passes, **weights), 3  # type: ignore[arg-type]
    module = StepModule(AllInOneForPreTraining(config), PretrainObjective(objective))
    # the counter does not see inside fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(make_batch(config, clips))[0].backward()
    patches = objective.kept_patches(config.num_patches)
    planned = clips * sum(sample_flops(config, objective, frames, MASKED, clips, patches).values())
    assert planned == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_images_count_by_their_share_of_the_steps() -> None:
    recipe = RECIPES["plus-cc3m-webvid"][1]
    video = sum(training_cost(recipe).video.values())
    image = sum(training_cost(recipe).images.values())
    assert training_cost(recipe).total == video + image
    assert 0.3 < image / video < 0.36, "an image is one frame of three"
    alternate = replace(
        recipe, cotrain=replace(recipe.cotrain, image_mode="alternate", image_share=0.25)
    )
    assert training_cost(alternate).total == pytest.approx(0.75 * video + 0.25 * image)
    assert training_cost(replace(recipe, cotrain=CoTrainOptions())).total == video


def test_rings_take_the_time_of_their_slowest_link() -> None:
    a100, hdr, ethernet = DEVICES["a100-80g"], NETWORKS["ib-hdr"], NETWORKS["eth-100"]
    assert collective_seconds("all_reduce", 1e9, 1, 1, a100, hdr) == 0
    inside = collective_seconds("all_reduce", 1e9, 1, 8, a100, ethernet)
    assert inside == pytest.approx(2 * 7 / 8 * 1e9 / 240e9, rel=0.02), (
        "eight GPUs of a node do not use the network"
    )
    across = collective_seconds("all_reduce", 1e9, 1, 128, a100, ethernet)
    assert across == pytest.approx(2 * 127 / 128 * 1e9 / (12.5e9 * 0.7), rel=0.02)
    assert collective_seconds("all_gather", 1e9, 1, 128, a100, ethernet) == pytest.approx(
        across / 2, rel=0.01
    )


def test_zero_1_is_recommended_and_zero_3_if_only_it_fits() -> None:
    device, network = find_device("a100-40g"), NETWORKS["ib-hdr"]

    def best(parameters: int) -> int:
        job = TrainingJob([[1_000_000] * (parameters // 1_000_000)], 128, 2048, 7e11, 1 / 3)
        kept = Activations(8e9, 4e9, 1e8)
        compute = compute_time([Operation("GEMM", 16 * 7e11, 0.0, 0.0, 100)], device, "bf16")
        found = [
            candidate(
                job, f"zero{stage}_bf16", Zero(stage, "bf16"), 16, kept, compute, device, network
            )
            for stage in range(4)
        ]
        return recommend(found)[0].stage

    assert best(110_000_000) == 1
    assert best(9_000_000_000) == 3
    with pytest.raises(
        ValueError, match=r"nothing fits: the smallest, zero\d_bf16 with micro-batch 16, needs"
    ):
        best(100_000_000_000)


def test_devices_are_found_by_planning_name_and_by_cudas_name() -> None:
    with pytest.raises(ValueError, match="valid devices: v100-32g, a100-40g, a100-80g"):
        find_device("a100")
    assert peak_of_card("NVIDIA A100-SXM4-80GB", "bf16") == (312e12, "A100")
    assert peak_of_card("NVIDIA A100-SXM4-80GB", "fp32") == (156e12, "A100"), "TF32"
    assert peak_of_card("Tesla T4", "fp32") == (8.1e12, "T4"), "no TF32"
    assert peak_of_card("NVIDIA GeForce RTX 4090", "bf16") == (165.2e12, "RTX 4090")
    assert peak_of_card("NVIDIA RTX A6000", "fp16") == (154.8e12, "A6000")
    assert peak_of_card("NVIDIA A10", "bf16") == (125e12, "A10")
    assert peak_of_card("NVIDIA H100 80GB HBM3", "bf16") == (989.4e12, "H100")
    assert peak_of_card("NVIDIA H100 PCIe", "bf16") == (756.5e12, "H100 PCIe")
    for unknown in ("NVIDIA A10G", "NVIDIA GeForce RTX 3090 Ti", "GeForce GTX 1080"):
        assert peak_of_card(unknown, "bf16") is None


def test_stage_2_reduces_every_micro_batch_and_one_rank_none() -> None:
    groups = [[100_000], [64]]
    assert traffic(groups, 1, Zero(1, "bf16")) == []
    reduced = {
        stage: traffic(groups, 4, Zero(stage, "bf16"), accumulation=3)[0].bytes for stage in (1, 2)
    }
    assert reduced[2] == 3 * reduced[1] == 3 * 2 * 100_064
