"""Blocks compiled one by one: the number of graphs, and the uncompiled pass as the twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from allinone.model import AllInOneForPreTraining
from allinone.tools.inspection.patch_attribution import AttentionRecorder
from tests.model.test_kernels import CLIPS, POSITIONS, assert_equal, gradients, inputs, model_of


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=8, skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


def read(model: AllInOneForPreTraining, frames: int, what: Tensor | str | None) -> Tensor:
    pixels, ids, mask = inputs(frames)
    output = model(pixels, ids, mask, clips=CLIPS, read=what)
    return output.pooled if output.read is None else output.read


def every_pass(model: AllInOneForPreTraining, *, train: bool) -> None:
    """Passes over videos and images that read words, another number of words, the class token and
    all tokens."""
    model.train(train)
    for frames in (3, 1):
        for what in (POSITIONS, POSITIONS[:3], "pooled", None):
            with torch.set_grad_enabled(train):
                result = read(model, frames, what)
            if train:
                result.float().sum().backward()


def test_graphs_are_per_kind_of_pass_not_per_block() -> None:
    counter = CompileCounterWithBackend("eager")
    model = model_of(drop_path=0.3, hidden_dropout=0.1)
    names = list(model.state_dict())
    model.compile_blocks(backend=counter)
    # two numbers of frames; each has a graph of all blocks but the last, which is also that of the
    # last block where all tokens are read, one of a last block that reads words, and one of a last
    # block that reads the class token. Four blocks of four rates share them
    kind = 2 * 3
    every_pass(model, train=True)
    assert counter.frame_count == kind
    every_pass(model, train=False)
    assert counter.frame_count == 2 * kind
    with torch.autocast("cpu", dtype=torch.bfloat16):
        every_pass(model, train=True)
    assert counter.frame_count == 3 * kind
    model.gradient_checkpointing_enable()
    every_pass(model, train=True)
    every_pass(model, train=False)
    assert counter.frame_count == 3 * kind, "nothing is compiled again"
    assert list(model.state_dict()) == names


def test_an_evaluation_before_does_not_change_the_training_graphs() -> None:
    graphs = []
    for evaluates in (False, True):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        model = model_of()
        model.compile_blocks(backend=counter)
        if evaluates:
            with torch.no_grad():
                pixels, ids, mask = inputs()
                model.eval()(pixels[:2], ids[:2], mask[:2])
        before = len(counter.graphs)
        read(model.train(), 3, POSITIONS)
        graphs.append(
            [graph.print_readable(print_output=False) for graph in counter.graphs[before:]]
        )
    assert len(graphs[0]) == 2
    assert graphs[1] == graphs[0]


def test_a_share_of_the_patches_has_one_more_set_of_graphs() -> None:
    """As in a run with --patch-keep, also after its change to all patches."""
    counter = CompileCounterWithBackend("eager")
    model, (pixels, ids, mask) = model_of().train(), inputs()
    order = torch.arange(1, 16, 3).expand(len(CLIPS) * 3, -1)
    plain = model(pixels, ids, mask, order, clips=CLIPS, read=POSITIONS).read
    model.compile_blocks(backend=counter)
    for kept, graphs in ((order, 2), (None, 4), (order, 4), (None, 4)):
        result = model(pixels, ids, mask, kept, clips=CLIPS, read=POSITIONS).read
        assert counter.frame_count == graphs
        if kept is not None:
            torch.testing.assert_close(result, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("what", [POSITIONS, "pooled", None], ids=["words", "pooled", "all"])
def test_compiled_blocks_equal_uncompiled_ones(
    what: Tensor | str | None, checkpointing: bool
) -> None:
    # at rates from 0 in the first block to 0.5 in the last, wrong rates drop other sequences
    model = model_of(drop_path=0.5).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    results, steps = [], []
    for compiled in (False, True):
        torch.manual_seed(5)
        if compiled:
            model.compile_blocks(backend="aot_eager")
        else:
            for _ in range(2):  # the draws of a block with rate 0, which is left out here
                torch.rand(len(CLIPS) * 3, 1, 1)
        results.append(read(model, 3, what))
        steps.append(gradients(model, results[-1].square().sum()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=2e-6)
    assert_equal(steps[1], steps[0])


def test_hooks_registered_after_the_first_pass_are_called() -> None:
    model = model_of().eval()
    pixels, ids, mask = inputs()
    with torch.no_grad(), AttentionRecorder(model.backbone.encoder) as plain:
        model(pixels[CLIPS], ids, mask)
    model.compile_blocks(backend="eager")
    with torch.no_grad():
        model(pixels[CLIPS], ids, mask)
        with AttentionRecorder(model.backbone.encoder) as seen:
            model(pixels[CLIPS], ids, mask)
        model(pixels[CLIPS], ids, mask)
    assert len(seen.weights) == len(plain.weights) == 4
    for found, expected in zip(seen.weights, plain.weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
