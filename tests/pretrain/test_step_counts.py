"""The planner's counts of a step against counters that watch a real step, and its roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from allinone.common.paths import ROOT
from allinone.engine.objective import StepModule
from allinone.engine.planning.hardware import DEVICES
from allinone.engine.planning.operations import Operation, OperationRecorder, totals
from allinone.engine.planning.step_time import HOST_LAUNCH_S, KERNEL_GAP_S, compute_time
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import masked_tokens, sample_flops
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from allinone.pretrain.step_counts import Pass
from tests.benchmarks import step_counts
from tests.engine.measured import make_batch

CLIPS = 3


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class WrittenBytes(TorchDispatchMode):
    """Bytes of the tensors that operations create."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        # a view has its base's storage
        new = [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and _storage(leaf) not in given
        ]
        self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in new)
        self.operations += bool(new) or "out" in (kwargs or {})
        return result


def _step(
    size: str, objective: ObjectiveConfig, dropout: float | None = None
) -> tuple[Pass, StepModule, object]:
    plain = {} if dropout is None else {"hidden_dropout": dropout, "drop_path": dropout}
    config = AllInOneConfig.from_size(size, **plain)
    module = StepModule(AllInOneForPreTraining(config), PretrainObjective(objective)).train()
    batch = make_batch(config, CLIPS, masked=masked_tokens(config))
    return Pass(config, objective, config.num_frames, "fp32"), module, batch


@pytest.mark.parametrize(
    ("size", "objective"),
    [
        ("nano", ObjectiveConfig()),
        ("nano", ObjectiveConfig(passes="separate", wpa=0.1, vtc=1.0)),
        ("tiny", ObjectiveConfig()),
    ],
    ids=str,
)
def test_counted_flops_are_torchs(size: str, objective: ObjectiveConfig) -> None:
    step, module, batch = _step(size, objective)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(batch)[0].backward()
    counts = totals(step.operations(CLIPS))
    # fused attention's backward pass computes the weights once more: 5 products, the plain one 4
    attention = counts["attention"].flops * 6 / 7
    # the products with B x B matrices of VTM and VTC are extrapolated from other sizes: nano has
    # 2 B (2 B) 3 x 65 x 128 of 1 GFLOP per clip
    assert counts["GEMM"].flops + attention == pytest.approx(counter.get_total_flops(), rel=2e-3)


@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_counted_bytes_are_those_of_a_real_step(size: str) -> None:
    step, module, batch = _step(size, ObjectiveConfig(), dropout=0.0)
    with WrittenBytes() as seen:
        module(batch)[0].backward()
    counted = step.operations(CLIPS)
    written = sum(each.written for each in counted)
    # what differs: two tensors that one operation creates and another fills, and draws [B, B]
    assert written == pytest.approx(seen.bytes, rel=1e-3)
    assert len(counted) == pytest.approx(seen.operations, abs=2)


def test_fused_kernels_move_less_and_compute_the_same() -> None:
    step, _, _ = _step("nano", ObjectiveConfig())
    eager, compiled, everything = (
        totals(step.operations(16, mode)) for mode in ("eager", "compiled", "everything")
    )
    for kind in ("GEMM", "attention"):
        assert eager[kind] == compiled[kind] == everything[kind]
    assert compiled["memory-bound"].bytes < 0.8 * eager["memory-bound"].bytes
    # embeddings, heads and losses stay as they are unless everything is compiled
    fewer = [each["memory-bound"].launches for each in (eager, compiled, everything)]
    assert fewer[1] < 0.75 * fewer[0]
    assert fewer[2] < 0.5 * fewer[0]


def test_recomputed_blocks_cost_one_more_forward_pass() -> None:
    config = AllInOneConfig.from_size("nano")
    plain, again = (
        totals(Pass(config, ObjectiveConfig(), 3, checkpointing=recompute).operations(16))
        for recompute in (False, True)
    )
    # forward is a third of a step; patches and heads are not recomputed
    assert 1.2 < again["GEMM"].flops / plain["GEMM"].flops < 4 / 3
    # attention: forward 2 of 7 products
    assert again["attention"].flops / plain["attention"].flops == pytest.approx(9 / 7)


def test_a_kernel_takes_the_longer_of_its_flops_and_bytes() -> None:
    a100 = DEVICES["a100-80g"]
    product = Operation("GEMM", 312e12 * 0.7, 0.0, 0.0, 0)
    copy = Operation("memory-bound", 0.0, 2039e9 * 0.85, 0.0, 0)
    both = Operation("GEMM", 312e12 * 0.35, 2039e9 * 0.85, 0.0, 0)
    time = compute_time([product, copy, both], a100, "bf16")
    assert time.gemm == pytest.approx(1)
    assert time.memory == pytest.approx(2)
    assert compute_time([product], a100, "fp32").gemm == pytest.approx(2), "TF32 has half the rate"
    launches = [Operation("memory-bound", 0.0, 1.0, 0.0, 1)] * 100
    assert compute_time(launches, a100, "bf16").total == pytest.approx(100 * HOST_LAUNCH_S)
    busy = compute_time([product, *launches], a100, "bf16")
    assert busy.launches == pytest.approx(100 * KERNEL_GAP_S)


TOKENS = 10
"""Of nano's 16 per text."""


def test_counts_of_packed_texts_are_those_of_a_real_step() -> None:
    step, module, batch = _step("nano", ObjectiveConfig(), dropout=0.0)
    masked = masked_tokens(step.model, CLIPS, text_tokens=TOKENS)
    mask = (torch.arange(16) < TOKENS).long().expand(CLIPS, -1)
    batch = replace(
        batch,
        text_mask=mask,
        text_lengths=mask.sum(1),
        mlm_positions=batch.mlm_positions[:masked],
    )
    with WrittenBytes() as seen:
        module(batch)[0].backward()
    counted = replace(step, text_tokens=TOKENS, texts="packed").operations(CLIPS)
    assert sum(each.written for each in counted) == pytest.approx(seen.bytes, rel=2e-3)
    assert len(counted) == pytest.approx(seen.operations, abs=4)


def test_flash_attention_computes_real_tokens_only() -> None:
    config, objective = AllInOneConfig.from_size("nano"), ObjectiveConfig()
    step = Pass(config, objective, 3, "bf16", text_tokens=TOKENS, texts="flash")
    operations = step.operations(CLIPS)
    counts = totals(operations)
    masked = masked_tokens(config, text_tokens=TOKENS)
    flops = sample_flops(config, objective, 3, masked, text_tokens=TOKENS)
    assert counts["GEMM"].flops + counts["attention"].flops * 6 / 7 == pytest.approx(
        CLIPS * sum(flops.values()), rel=5e-3
    )
    # two texts of three frames per clip: q, k, v and their mix in bf16, and a float32 per head
    rows = 2 * 3 * CLIPS * (TOKENS + config.num_visual_tokens)
    width, heads = config.hidden_size, config.num_attention_heads
    forward = next(each for each in operations if each.kind == "attention")
    starts = 4 * (2 * 3 * CLIPS + 1)
    assert forward.bytes == pytest.approx(rows * (4 * 2 * width + 4 * heads) + starts, abs=64)
    # no padding is read or written in the blocks
    padded = totals(replace(step, text_tokens=None, texts="padded").operations(CLIPS))
    assert counts["GEMM"].bytes < padded["GEMM"].bytes


def test_only_compiled_functions_are_fused_and_only_with_themselves() -> None:
    x = torch.ones(4, 4, requires_grad=True)

    def twice(block: object, exchange: object, x: Tensor) -> Tensor:
        return x.sin().exp()

    with OperationRecorder() as recorder:
        run = recorder.compiled_form(twice)
        y = run(None, None, x.cos())
        run(None, None, y).tan().sum().backward()
    # forward: cos, twice, twice, tan, sum; one kernel for each backward pass of `twice`
    names = [access.name for access in recorder._accesses]
    assert names[:7] == ["cos", "sin", "exp", "sin", "exp", "tan", "sum"]
    inside = [access.region for access in recorder._accesses]
    forward = inside[:7]
    assert forward[1] == forward[2] != forward[3] == forward[4]
    assert [forward[0], *forward[5:]] == [0, 0, 0]
    regions = {region for region in inside if region}
    assert len(regions) == 4
    alone = inside.count(0)
    assert len(recorder.compiled()) == alone + 4
    assert len(recorder.compiled(everything=True)) == 1
    assert len(recorder.eager()) == len(inside)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["packed", "full"])
def test_the_tables_of_the_performance_page_are_current(
    capsys: pytest.CaptureFixture[str], padding: str
) -> None:
    assert step_counts.main(["webvid-howto", "--wpa", "0", "--text-padding", padding]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (ROOT / "docs/performance.md").read_text().splitlines()
    assert len(printed) == 13
    missing = [line for line in printed if line not in page]
    assert not missing, "run tests/benchmarks/step_counts.py and replace its tables"
