"""Word-patch alignment against the golden vectors, linear programming, and what an
optimal-transport plan must satisfy; its compiled form and its planned cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linprog
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from allinone.model import AllInOneConfig
from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize
from allinone.pretrain.objectives.optimal_transport import (
    CompiledFunction,
    ipot_plan,
    proximal_iterations,
    word_patch_distance,
)
from allinone.pretrain.objectives.wpa import WordPatchAlignment

GOLDEN = Path(__file__).parents[1] / "parity" / "golden_dev.safetensors"


@pytest.mark.parametrize("prefix", ["", "perm_"])
def test_distance_equals_the_golden_one(prefix: str) -> None:
    golden = load_file(GOLDEN)
    distance = word_patch_distance(
        golden[f"output/{prefix}text_feats"],
        golden[f"output/{prefix}image_feats"],
        golden["input/text_masks"].long(),
    )
    torch.testing.assert_close(distance, golden[f"output/{prefix}wpa_distance"], atol=2e-5, rtol=0)


def test_the_objective_leaves_out_the_distillation_token() -> None:
    torch.manual_seed(0)
    config = AllInOneConfig.from_size("nano", distillation_token=True)
    text, video = torch.randn(2, 6, 8), torch.randn(2, 5, 8)

    def loss(video: torch.Tensor) -> float:
        pairs = SimpleNamespace(labels=torch.tensor([1, 0]), text=text, video=video)
        batch = SimpleNamespace(text_mask=torch.ones(2, 6, dtype=torch.long))
        context = SimpleNamespace(
            model=SimpleNamespace(config=config),
            matching=pairs,
            batch=batch,
            metrics={},
            record=lambda name, values: None,
        )
        return float(WordPatchAlignment().loss(context))  # type: ignore[arg-type]

    def changed(slot: int) -> torch.Tensor:
        other = video.clone()
        other[0, slot] = -other[0, slot]
        return other

    assert loss(changed(0)) == loss(changed(1)) == loss(video)
    assert loss(changed(2)) != loss(video)


def test_plan_has_uniform_marginals_and_no_mass_on_padding() -> None:
    torch.manual_seed(0)
    cost = torch.rand(2, 5, 7)
    words = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    patches = torch.ones(2, 7, dtype=torch.bool)
    plan = ipot_plan(cost, words, patches, iterations=500)
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        plan[1].sum(1), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0]), atol=1e-3, rtol=0
    )
    assert plan[1, 3:].abs().max() == 0


def test_plan_finds_the_optimal_assignment() -> None:
    """For a square cost the optimal plan with uniform marginals is a permutation matrix / N
    (Birkhoff): compare with brute force."""
    import itertools

    torch.manual_seed(1)
    cost = torch.rand(1, 4, 4)
    valid = torch.ones(1, 4, dtype=torch.bool)
    best = (
        min(
            sum(float(cost[0, i, j]) for i, j in enumerate(order))
            for order in itertools.permutations(range(4))
        )
        / 4
    )
    plan = ipot_plan(cost, valid, valid, beta=0.05, iterations=2000)
    assert abs(float((plan * cost).sum()) - best) < 2e-3


def test_wpa_gradient_flows_and_empty_captions_cost_nothing() -> None:
    torch.manual_seed(0)
    text, video = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    distance = word_patch_distance(text, video, mask)
    distance.sum().backward()
    assert text.grad is not None
    assert text.grad[0, 1:3].abs().sum() > 0
    assert text.grad[0, [0, 3, 4, 5]].abs().sum() == 0
    assert distance.detach()[1] == 0
    assert torch.isfinite(distance).all()
    assert torch.isfinite(text.grad).all()


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_that_of_the_linear_program(seed: int) -> None:
    """Optimal transport is a linear program; scipy solves it exactly for the valid tokens."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(1, 5, 8, generator=generator, dtype=torch.float64)
    words, patches = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    words[0, 3:], patches[0, 6:] = False, False
    plan = ipot_plan(cost, words, patches, beta=0.1, iterations=1000)[0]
    rows, columns = 3, 6
    sums = [[float(cell // columns == row) for cell in range(18)] for row in range(rows)]
    sums += [[float(cell % columns == column) for cell in range(18)] for column in range(columns)]
    best = linprog(
        cost[0, :rows, :columns].flatten().numpy(),
        A_eq=sums,
        b_eq=[1 / rows] * rows + [1 / columns] * columns,
    )
    assert best.success
    assert float((plan * cost[0]).sum()) == pytest.approx(best.fun, abs=1e-3)


def tokens(clips: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kernel, valid words and valid patches of clips with 1, 2, ... words of 9."""
    generator = torch.Generator().manual_seed(2)
    words = (torch.arange(9) < torch.arange(1, clips + 1)[:, None]).float()
    kernel = torch.exp(-2 * torch.rand(clips, 9, 16, generator=generator))
    return kernel * words[:, :, None], words, torch.ones(clips, 16)


def test_compiled_iterations_equal_the_uncompiled_ones() -> None:
    compiled = CompiledFunction(proximal_iterations, "aot_eager")
    torch.testing.assert_close(compiled(*tokens()), proximal_iterations(*tokens()))


def test_inductor_computes_the_same_plan() -> None:
    """Three iterations: their C++ code compiles in seconds."""
    compiled = CompiledFunction(proximal_iterations)
    expected = proximal_iterations(*tokens(), 3)
    torch.testing.assert_close(compiled(*tokens(), 3), expected)


def test_without_a_compiler_it_runs_uncompiled_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no C compiler")

    function = CompiledFunction(proximal_iterations, broken)
    with caplog.at_level("WARNING"):
        results = [function(*tokens()) for _ in range(2)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], proximal_iterations(*tokens()))
    assert len(caplog.records) == 1
    assert "proximal_iterations runs uncompiled" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_plan_on_a_gpu_is_compiled_and_equals_the_cpus() -> None:
    cost = torch.rand(4, 9, 16)
    words, patches = tokens()[1].bool(), torch.ones(4, 16, dtype=torch.bool)
    expected = ipot_plan(cost, words, patches)
    found = ipot_plan(cost.cuda(), words.cuda(), patches.cuda())
    torch.testing.assert_close(found.cpu(), expected)


def test_planned_flops_equal_the_counted_ones() -> None:
    """Torch's counter sees the cosines; the plan's products are multiplications followed by sums,
    so that each summed element is one multiply-add."""

    class Sums(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.sum.dim_IntList and args[0].dim() == 3:
                self.elements += args[0].numel()
            return func(*args, **(kwargs or {}))

    config = AllInOneConfig.from_size("nano")
    length, patches, clips = config.max_text_len, config.num_patches, 3
    text = torch.randn(clips, length, config.hidden_size, requires_grad=True)
    video = torch.randn(clips, 1 + patches, config.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        with Sums() as sums:
            distance = word_patch_distance(text, video, torch.ones(clips, length, dtype=torch.long))
        distance.sum().backward()
    planned = clips * WordPatchAlignment().training_flops(ClipSize(config, 3, 1))
    # the distance itself is one more sum over words and patches, which the plan leaves out
    counted = counter.get_total_flops() + 2 * (sums.elements - clips * length * patches)
    assert planned == counted


@pytest.mark.parametrize(("dtype", "element"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_planned_bytes_are_those_that_autograd_keeps(dtype: torch.dtype, element: int) -> None:
    config = AllInOneConfig.from_size("nano")
    length, patches, clips = config.max_text_len, config.num_patches, 3
    text, video = (
        torch.randn(clips, tokens, config.hidden_size, dtype=dtype).requires_grad_()
        for tokens in (length, 1 + patches)
    )
    mask = torch.ones(clips, length, dtype=torch.long)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        kept = word_patch_distance(text, video, mask)
    measured = sum(
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    del kept
    size = MicroBatchSize(config, clips, 3, 1, element, element)
    assert sum(WordPatchAlignment().activation_bytes(size)) == pytest.approx(measured, rel=0.001)
