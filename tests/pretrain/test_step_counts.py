"""The planner's counts of a step against counters that watch a real step, and its roofline."""

from __future__ import annotations

import pytest
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from allinone.engine.objective import StepModule
from allinone.engine.planning.hardware import DEVICES
from allinone.engine.planning.operations import Operation, totals
from allinone.engine.planning.step_time import HOST_LAUNCH_S, KERNEL_GAP_S, compute_time
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import masked_tokens
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from allinone.pretrain.step_counts import Pass
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
        self.operations += bool(new)
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
    eager, compiled = totals(step.operations(16)), totals(step.operations(16, compiled=True))
    for kind in ("GEMM", "attention"):
        assert eager[kind] == compiled[kind]
    assert compiled["memory-bound"].bytes < 0.8 * eager["memory-bound"].bytes
    assert compiled["memory-bound"].launches < 0.5 * eager["memory-bound"].launches


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
