"""Passes without padding against padded ones, and the branch of CUDA up to its kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allinone.model import AllInOneForPreTraining, all_in_one, kernels
from allinone.model.packing import Packing
from tests.model.test_kernels import (
    CLIPS,
    POSITIONS,
    TEXTS,
    VARIANTS,
    WORDS,
    assert_equal,
    gradients,
    model_of,
)

LENGTHS = torch.tensor([8, 3, 5, 6])
READS = {"all": None, "words": POSITIONS, "pooled": "pooled"}


def inputs(lengths: Tensor = LENGTHS, frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = (torch.arange(WORDS) < lengths[:, None]).long()
    ids = torch.randint(1, 50, (TEXTS, WORDS), generator=generator) * mask
    return torch.randn(3, frames, 3, 64, 64, generator=generator), ids, mask


def outputs(
    model: AllInOneForPreTraining, read: str, packed: bool, frames: int = 3
) -> dict[str, Tensor]:
    """What a joint pass gives for real tokens."""
    pixels, ids, mask = inputs(frames=frames)
    found = model(
        pixels,
        ids,
        mask,
        clips=CLIPS,
        read=READS[read],
        text_lengths=LENGTHS if packed else None,
    )
    found = dict(found.items())
    if "text" in found:
        found["text"] = found["text"][mask.bool()]
    return found


def assert_same(model: AllInOneForPreTraining, read: str, frames: int = 3) -> None:
    packed, padded = outputs(model, read, True, frames), outputs(model, read, False, frames)
    assert packed.keys() == padded.keys()
    generator = torch.Generator().manual_seed(5)
    losses = []
    for name, expected in padded.items():
        torch.testing.assert_close(packed[name], expected, rtol=0, atol=2e-6, msg=name)
        upstream = torch.randn(expected.shape, generator=generator)
        losses.append([(x * upstream).sum() for x in (packed[name], expected)])
    ours, plain = (torch.stack(part).sum() for part in zip(*losses, strict=True))
    assert_equal(gradients(model, ours), gradients(model, plain))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("read", READS)
def test_packed_passes_equal_padded_ones(options: dict[str, object], read: str) -> None:
    # the order of shuffled patches is constant in evaluation
    assert_same(model_of(**options).train("patch_order" not in options), read)


@pytest.mark.parametrize("read", READS)
def test_packed_passes_recompute_their_blocks(read: str) -> None:
    model = model_of().train()
    model.gradient_checkpointing_enable()
    assert_same(model, read)


@pytest.mark.parametrize("read", READS)
def test_packed_images_equal_padded_ones(read: str) -> None:
    assert_same(model_of(), read, frames=1)


def test_packed_texts_alone_equal_padded_ones() -> None:
    model = model_of()
    _, ids, mask = inputs()
    padded, packed = model.encode_text(ids, mask), model.encode_text(ids, mask, LENGTHS)
    torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6)
    upstream = torch.randn_like(padded)
    assert_equal(
        gradients(model, (packed * upstream).sum()), gradients(model, (padded * upstream).sum())
    )


def test_reading_no_word_of_packed_texts_gives_zero_gradients() -> None:
    model = model_of().train()
    pixels, ids, mask = inputs()
    nothing = torch.empty(0, dtype=torch.long)
    read = model(pixels, ids, mask, clips=CLIPS, read=nothing, text_lengths=LENGTHS).read
    for name, gradient in gradients(model, read.sum()).items():
        assert not gradient.any(), name


def test_dropped_branches_are_those_of_the_padded_pass() -> None:
    model = model_of(drop_path=0.5).train()
    found = []
    for packed in (True, False):
        torch.manual_seed(3)
        found.append(outputs(model, "pooled", packed)["pooled"])
    torch.testing.assert_close(*found, rtol=0, atol=2e-6)


def test_a_packing_places_every_token_once() -> None:
    mask = inputs()[2]
    packing = Packing.of(mask, int(LENGTHS.sum()), frames=2, visual=3)
    padded = torch.arange(8 * 11).view(8, 11, 1)
    packed = packing.pack(padded)
    real = torch.cat([mask, torch.ones(4, 3, dtype=torch.long)], 1).repeat_interleave(2, 0).bool()
    assert torch.equal(packed.flatten(), padded[real].flatten())
    assert torch.equal(packing.owner, padded[real].flatten() // 11)
    assert packing.starts.tolist() == [0, 11, 22, 28, 34, 42, 50, 59, 68]
    assert torch.equal(packing.unpack(packed), padded * real[..., None])
    texts, numbers = packing.first(WORDS)
    assert texts.starts.tolist() == [0, 8, 16, 19, 22, 27, 32, 38, 44]
    assert torch.equal(packed[0, numbers], padded[:, :WORDS][mask.repeat_interleave(2, 0).bool()])
    classes, numbers = packing.first(1)
    assert classes.starts.tolist() == list(range(9))
    assert torch.equal(numbers, packing.starts[:-1].long())


def test_lengths_that_contradict_the_mask_are_refused() -> None:
    pixels, ids, mask = inputs()
    with pytest.raises((RuntimeError, ValueError)):
        model_of()(pixels, ids, mask, clips=CLIPS, text_lengths=LENGTHS - 1)


class Kernel:
    """Checks its arguments as `torch.nn.attention.varlen.varlen_attn` on CUDA does, and computes
    sequence by sequence."""

    def __init__(self, dtypes: tuple[torch.dtype, ...]) -> None:
        self.dtypes = dtypes
        self.calls: list[tuple[int, int]] = []

    def __call__(self, *args: Any) -> Tensor:
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k = args
        for part in (query, key, value):
            assert part.dtype in self.dtypes
            assert part.dim() == 3
            assert part.stride(-1) == 1
            assert part.shape[-1] % 8 == 0
        for starts, longest, tokens in ((cu_seq_q, max_q, query), (cu_seq_k, max_k, key)):
            assert starts.dtype == torch.int32
            assert starts.is_contiguous()
            assert isinstance(longest, int)
            assert int(starts.diff().max()) <= longest
            assert (int(starts[0]), int(starts[-1])) == (0, tokens.shape[0])
        assert key.shape == value.shape
        assert cu_seq_q.shape == cu_seq_k.shape
        self.calls.append((max_q, max_k))
        found = []
        sizes = [starts.diff().tolist() for starts in (cu_seq_q, cu_seq_k, cu_seq_k)]
        parts = [
            x.transpose(0, 1).split(size, 1)
            for x, size in zip((query, key, value), sizes, strict=True)
        ]
        for q, k, v in zip(*parts, strict=True):
            weights = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)
            found.append((weights @ v.float()).to(q.dtype))
        return torch.cat(found, 1).transpose(0, 1)


def use(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_in_one, "flash_attention", lambda device, dtype: kernel)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("options", [{}, {"roll": "flatten"}], ids=str)
def test_the_kernels_branch_equals_the_padded_pass(
    options: dict[str, object], read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel((torch.float32,))
    use(kernel, monkeypatch)
    assert_same(model_of(**options).train(), read)
    tokens = WORDS + (3 * 17 if options else 17)
    queries = {"all": tokens, "words": WORDS, "pooled": 1}[read]
    assert kernel.calls == [(tokens, tokens)] * 3 + [(queries, tokens)]


def test_the_kernel_gets_16_bit_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((torch.bfloat16,))
    use(kernel, monkeypatch)
    model = model_of().bfloat16()
    found, expected = (outputs(model, "words", packed)["read"] for packed in (True, False))
    assert kernel.calls
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_attention_dropout_takes_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((torch.float32,))
    use(kernel, monkeypatch)
    model = model_of(attention_dropout=0.5)
    outputs(model.train(), "words", True)
    assert not kernel.calls
    outputs(model.eval(), "words", True)
    assert kernel.calls


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "built", "runs"),
    [
        ("cuda", torch.bfloat16, (8, 0), True, True),
        ("cuda", torch.float16, (9, 0), True, True),
        ("cuda", torch.float32, (9, 0), True, False),
        ("cuda", torch.float16, (7, 0), True, False),
        ("cuda", torch.bfloat16, (9, 0), False, False),
        ("cpu", torch.bfloat16, (9, 0), True, False),
    ],
)
def test_the_kernel_runs_where_torch_has_it(
    device: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    built: bool,
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch 2.9 has no varlen_attn")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = kernels.flash_attention(torch.device(device), dtype)
    assert found is (varlen.varlen_attn if runs else None)


@pytest.mark.parametrize("read", READS)
def test_compiled_blocks_have_few_graphs_for_all_lengths(read: str) -> None:
    model, graphs = model_of(), 0

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model.compile_blocks(backend=backend)
    generator = torch.Generator().manual_seed(1)
    words = torch.tensor([1, 2, 9]) if read == "words" else READS[read]
    torch._dynamo.reset()
    counts = []
    for _ in range(6):
        lengths = torch.randint(3, WORDS + 1, (TEXTS,), generator=generator)
        pixels, ids, mask = inputs(lengths)
        model(pixels, ids, mask, clips=CLIPS, read=words, text_lengths=lengths)
        counts.append(graphs)
    # a block and the last one: first with constant lengths, then with lengths that may change
    assert counts[1] == counts[-1] <= 4
