"""The kernels against their twins in plain torch, and passes that compute only what is read against
the full pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from allinone.model import AllInOneConfig, AllInOneForPreTraining, AllInOneModel
from allinone.model.all_in_one import DropPath
from allinone.model.embeddings import PatchProjection
from allinone.model.kernels import add_kept, add_scaled, permute_tokens, rolled_rows, select_clips
from allinone.model.roll import roll_tokens
from tests.model.perturbed import perturbed_nano

TEXTS, FRAMES, WORDS = 4, 3, 8
CLIPS = torch.tensor([2, 0, 2, 2])
POSITIONS = torch.tensor([1, 2, 5, 9, 26])
"""Words that are read: three of text 0, one of text 1, none of text 2, one of text 3."""
VARIANTS = [
    {},
    {"patch_order": "shuffled"},
    {"roll": "flatten"},
    {"roll": "channel"},
    {"roll": "average"},
    {"distillation_token": True},
]


model_of = partial(perturbed_nano, vocab_size=50)


def inputs(frames: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(TEXTS, WORDS, dtype=torch.long)
    mask[1, 4:] = 0
    ids = torch.randint(1, 50, (TEXTS, WORDS), generator=generator) * mask
    return torch.randn(3, frames, 3, 64, 64, generator=generator), ids, mask


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(fast: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """Gradients differ by less than 1e-6 of the largest element of any of them."""
    assert fast.keys() == plain.keys()
    size = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, rtol=0, atol=1e-6 * size, msg=name)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_permutation_and_gradient_equal_the_plain_rolls_bits(frames: int) -> None:
    x = torch.randn(2 * frames, 21, 5, requires_grad=True)
    upstream = torch.randn(2 * frames, 21, 5)
    plain = roll_tokens(x, frames, 4, 2)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    source, target = rolled_rows(2 * frames, 21, frames, 4, 2, x.device)
    rolled = permute_tokens(x, source, target)
    (found,) = torch.autograd.grad(rolled, x, upstream)
    assert torch.equal(rolled, plain)
    assert torch.equal(found, expected)


def test_selected_clips_have_index_selects_gradient() -> None:
    x = torch.randn(3, 2, 5, requires_grad=True)
    upstream = torch.randn(4, 2, 5)
    plain = x.index_select(0, CLIPS)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    (found,) = torch.autograd.grad(select_clips(x, CLIPS), x, upstream)
    assert torch.equal(select_clips(x, CLIPS), plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not found[1].any(), "clip 1 is not selected"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_branches_equal_the_division_by_the_kept_share(dtype: torch.dtype) -> None:
    x, branch = torch.randn(2, 6, 7, 5, dtype=dtype)
    keep = torch.tensor([1, 0, 1, 1, 0, 1], dtype=dtype)[:, None, None]
    added = branch.double() * keep.double() / (1 - 0.1)
    found = add_kept(x, branch, keep, 0.1).double()
    # in bf16 the result is rounded once; a rounded factor 1 / 0.9 alone would be off by 0.2 %
    bound = torch.finfo(dtype).eps / 2 * (x.double() + added).abs() + 2e-7 * added.abs() + 1e-12
    assert ((found - x.double() - added).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_on_the_device_is_not_rounded_to_bf16(dtype: torch.dtype) -> None:
    x, branch = torch.randn(2, 6, 7, 5, dtype=dtype)
    keep = torch.tensor([1, 0, 1, 1, 0, 1], dtype=dtype)[:, None, None]
    exact = x.double() + branch.double() * keep.double() / (1 - 0.1)
    found = add_scaled(x, branch, keep, torch.tensor(0.1))
    # one rounding to bf16 of a sum whose terms have an error of float32
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 3e-7 * (x.abs() + branch.abs()).double()
    assert ((found.double() - exact).abs() <= bound).all()
    assert found.dtype == dtype


def test_drop_path_keeps_sequences_alike_in_both_forms() -> None:
    drop, owner = DropPath(0.5).train(), torch.arange(8).repeat_interleave(3)
    x, branch = torch.randn(2, 8, 3, 4)
    torch.manual_seed(1)
    complete = drop(x, branch, 8)
    torch.manual_seed(1)
    read = drop(x.flatten(0, 1), branch.flatten(0, 1), 8, owner)
    assert torch.equal(read.view(8, 3, 4), complete)
    kept = (complete != x).flatten(1).any(1)
    assert kept.any()
    assert not kept.all()


def test_patch_projection_equals_the_convolution() -> None:
    torch.manual_seed(0)
    projection = PatchProjection(3, 32, kernel_size=16, stride=16).double()
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.double)
    upstream = torch.randn(2, 16, 32, dtype=torch.double)
    plain = F.conv2d(pixels, projection.weight, projection.bias, stride=16)
    plain = plain.flatten(2).transpose(1, 2)
    found = projection(pixels)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    parameters = list(projection.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters, upstream),
        torch.autograd.grad(plain, parameters, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_packed_qkv_gradient_is_not_copied() -> None:
    model = model_of().train()
    names: list[str] = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            names.append(str(func))
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    block = model.backbone.encoder.blocks[0]
    x = torch.randn(2, 9, 128, requires_grad=True)
    out = block.attention(x, None)  # type: ignore[operator]
    with Names():
        out.sum().backward()
    assert names.count("aten.stack.default") + names.count("aten.cat.default") == 1
    assert "aten.clone.default" not in names


Read = Callable[[AllInOneForPreTraining, bool], Tensor]


def read_words(model: AllInOneForPreTraining, fast: bool) -> Tensor:
    pixels, ids, mask = inputs()
    if fast:
        return model(pixels, ids, mask, clips=CLIPS, read=POSITIONS).read
    text = model(pixels[CLIPS], ids, mask).text
    return text.flatten(0, 1)[POSITIONS]


def read_pooled(model: AllInOneForPreTraining, fast: bool) -> Tensor:
    pixels, ids, mask = inputs()
    if fast:
        return model(pixels, ids, mask, clips=CLIPS, read="pooled").pooled
    return model(pixels[CLIPS], ids, mask).pooled


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("read", [read_words, read_pooled])
def test_reading_few_tokens_equals_the_full_pass(
    read: Read, options: dict[str, object], checkpointing: bool
) -> None:
    # the order of shuffled patches is constant in evaluation
    model = model_of(**options).train("patch_order" not in options)
    if checkpointing:
        model.gradient_checkpointing_enable()
    found, expected = read(model, True), read(model, False)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    upstream = torch.randn_like(found)
    fast = gradients(model, (found * upstream).sum())
    plain = gradients(model, (expected * upstream).sum())
    assert_equal(fast, plain)


def test_uni_modal_passes_equal_the_full_encoder() -> None:
    model = model_of().eval()
    backbone = model.backbone
    pixels, ids, mask = inputs()
    text = backbone.encoder(
        backbone.modality(backbone.text_embeddings(ids), 0), mask[:, None, None].bool()
    )
    video = backbone.encoder(backbone.modality(backbone.video_embeddings(pixels, rolls=False), 1))
    torch.testing.assert_close(model.encode_text(ids, mask), text[:, 0], rtol=0, atol=2e-6)
    expected = video[:, 0].unflatten(0, (3, FRAMES)).mean(1)
    torch.testing.assert_close(model.encode_video(pixels), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_reading_no_word_gives_zero_gradients(options: dict[str, object]) -> None:
    model = model_of(**options).train()
    pixels, ids, mask = inputs()
    nothing = torch.empty(0, dtype=torch.long)
    read = model(pixels, ids, mask, clips=CLIPS, read=nothing).read
    assert read.shape == (0, 128)
    for name, gradient in gradients(model, read.sum()).items():
        assert not gradient.any(), name


def test_one_frame_reads_without_a_roll() -> None:
    model = model_of().eval()
    pixels, ids, mask = inputs(frames=1)
    found = model(pixels, ids, mask, clips=CLIPS, read=POSITIONS).read
    expected = model(pixels[CLIPS], ids, mask).text.flatten(0, 1)[POSITIONS]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_passes_equal_eager_ones(backend: str) -> None:
    model = model_of().train()
    expected = read_words(model, True)
    plain = gradients(model, expected.square().sum())
    model.compile(backend=backend)
    found = read_words(model, True)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert_equal(gradients(model, found.square().sum()), plain)


def test_a_model_saved_with_its_code_loads_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(AllInOneModel, "_auto_class", "AutoModel")
    monkeypatch.setattr(AllInOneConfig, "_auto_class", "AutoConfig")
    model = model_of().backbone.eval()
    model.save_pretrained(tmp_path / "saved")
    copies = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert {"all_in_one.py", "kernels.py", "roll.py", "embeddings.py"} <= copies
    again = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    pixels, ids, mask = inputs()
    with torch.no_grad():
        assert torch.equal(
            again(pixels, ids, mask, clips=CLIPS, read="pooled").pooled,
            model(pixels, ids, mask, clips=CLIPS, read="pooled").pooled,
        )
