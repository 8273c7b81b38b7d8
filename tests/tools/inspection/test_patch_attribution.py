"""Recorded attention, slot origins and patch relevance against independent computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allinone.common.errors import InputError
from allinone.model import AllInOneForPreTraining
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, InputText
from allinone.tools.inspection.patch_attribution import (
    AttentionRecorder,
    fine_patch_features,
    patch_features,
    patch_relevance,
    slot_origins,
)
from tests.tools.conftest import BLOCKS, FRAMES, PATCHES, SIDE, tiny_config, tiny_model

LENGTH = 16


def example(
    model: AllInOneForPreTraining, frames: int = FRAMES
) -> tuple[LoadedModel, InputClip, InputText]:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, frames, 3, SIDE, SIDE, generator=random)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    ids[0, :7] = torch.tensor([101, 2450, 103, 2007, 103, 4309, 102])
    clip = InputClip(
        Path("clip"), pixels, np.zeros((frames, SIDE, SIDE, 3), np.uint8), tuple(range(frames))
    )
    return LoadedModel(model, Path("weights")), clip, InputText("", ids, (ids > 0).long(), (2, 4))


def test_recorded_attention_gives_the_outputs_of_every_block() -> None:
    loaded, clip, words = example(tiny_model())
    outputs: list[Tensor] = []
    layers = [block.attention for block in loaded.model.backbone.encoder.blocks]
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for layer in layers
    ]
    with torch.no_grad(), AttentionRecorder(loaded.model.backbone.encoder) as seen:
        loaded.model(clip.pixels, words.ids, words.mask)
    for handle in handles:
        handle.remove()
    assert len(seen.weights) == len(outputs) == BLOCKS
    for layer, weights, values, output in zip(
        layers, seen.weights, seen.values, outputs, strict=True
    ):
        torch.testing.assert_close(
            weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0
        )
        assert weights[..., 7:LENGTH].max() == 0, "padding gets no attention"
        assert weights.std() > 1e-3, "the example must not be uniform"
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.proj(mixed), output, atol=1e-5, rtol=0)


def test_recording_changes_no_output_and_leaves_no_hook() -> None:
    loaded, clip, words = example(tiny_model())
    with torch.no_grad():
        before = loaded.model(clip.pixels, words.ids, words.mask).text
        with AttentionRecorder(loaded.model.backbone.encoder):
            during = loaded.model(clip.pixels, words.ids, words.mask).text
    assert torch.equal(before, during)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules()
    )


def test_slots_after_up_to_three_rolls_are_as_worked_out_by_hand() -> None:
    # 17 visual tokens // 8 = 2: patch slots 0, 1 receive from the frame before, 14, 15 from the
    # frame after, with wrap-around
    stay = list(range(2, 14))
    by_hand = {
        0: {0: [0, 0, 0], 1: [1, 1, 1], 2: [2, 2, 2]},
        1: {0: [2, 0, 1], 1: [0, 1, 2], 2: [1, 2, 0]},
        2: {0: [1, 0, 2], 1: [2, 1, 0], 2: [0, 2, 1]},
        3: {0: [0, 0, 0], 1: [1, 1, 1], 2: [2, 2, 2]},
    }
    for rolls, frames in by_hand.items():
        frame, patch = slot_origins(tiny_config(), 3, rolls)
        for number, (first, middle, last) in frames.items():
            assert frame[number, [0, 1]].tolist() == [first] * 2
            assert frame[number, stay].tolist() == [middle] * 12
            assert frame[number, [14, 15]].tolist() == [last] * 2
        assert patch.tolist() == [list(range(16))] * 3


def test_a_distillation_token_takes_one_of_the_slots_that_roll() -> None:
    # 18 visual tokens // 8 = 2: the distillation token and patch 0 come from the frame before
    frame, patch = slot_origins(tiny_config(distillation_token=True), 3, 1)
    by_hand = [[2, *[0] * 13, 1, 1], [0, *[1] * 13, 2, 2], [1, *[2] * 13, 0, 0]]
    assert frame.tolist() == by_hand
    assert patch.tolist() == [list(range(16))] * 3


class _Keep(nn.Module):
    """A block that returns its input and records it."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._seen.append(x)
        return x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_order": "shuffled"},
        {"roll": "average"},
        {"num_frames": 5},
        {"distillation_token": True},
        {"distillation_token": True, "patch_order": "shuffled"},
    ],
)
def test_slot_origins_agree_with_the_models_own_forward_pass(
    options: dict[str, object],
) -> None:
    model = tiny_model(**options)
    frames = model.config.num_frames
    _, clip, words = example(model, frames)
    seen: list[Tensor] = []
    model.backbone.encoder.blocks = nn.ModuleList(_Keep(seen) for _ in range(BLOCKS))
    with torch.no_grad():
        model(clip.pixels, words.ids, words.mask)
        home = model.backbone.modality(
            model.backbone.video_embeddings(clip.pixels, rolls=False), 1
        )[:, model.config.num_prefix_tokens :]
    assert len(seen) == BLOCKS
    for block, tokens in enumerate(seen):
        assert torch.equal(
            tokens[:, LENGTH + model.config.num_prefix_tokens :],
            home[slot_origins(model.config, frames, block + 1)],
        )


@pytest.mark.parametrize(
    ("roll", "distilled"), [("roll", False), ("roll", True), ("flatten", True)]
)
def test_relevance_equals_weights_times_their_autograd_gradient(
    roll: str, distilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, clip, words = example(tiny_model(roll=roll, distillation_token=distilled))
    prefix = 2 if distilled else 1
    found = patch_relevance(loaded, clip, words, [2450, 4309])
    assert found.shape == (2, FRAMES, PATCHES)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))

    kept: list[Tensor] = []

    def explicit(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
        weights = (
            (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
            .masked_fill(~attn_mask, -torch.inf)
            .softmax(-1)
        )
        weights.retain_grad()
        kept.append(weights)
        return weights @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", explicit)
    text = loaded.model(clip.pixels, words.ids, words.mask).text
    loaded.model.mlm_head(text[0, 4]).log_softmax(-1)[4309].backward()
    expected = torch.zeros(FRAMES, PATCHES)
    for block, weights in enumerate(kept):
        assert weights.grad is not None
        pull = (
            (weights * weights.grad)
            .clamp(min=0)
            .mean(1)[:, 4, LENGTH:]
            .detach()
            .reshape(FRAMES, prefix + PATCHES)[:, prefix:]
        )
        frame, patch = slot_origins(loaded.model.config, FRAMES, block + 1)
        expected.index_put_((frame, patch), pull, accumulate=True)
    torch.testing.assert_close(found[1], expected / expected.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distilled", [False, True])
def test_patch_features_average_to_the_models_output(distilled: bool) -> None:
    loaded, clip, words = example(tiny_model(distillation_token=distilled))
    features = patch_features(loaded, clip, words)
    with torch.no_grad():
        video = loaded.model(clip.pixels, words.ids, words.mask).video[0, -PATCHES:]
    # in raster order, rolls change the frame of a patch but not its slot
    torch.testing.assert_close(features.mean(0), video, atol=1e-5, rtol=0)


def test_fine_features_of_one_colour_equal_those_of_the_patch() -> None:
    loaded, clip, words = example(tiny_model())
    assert torch.equal(
        fine_patch_features(loaded, clip, words, 1), patch_features(loaded, clip, words)
    )
    # shifting a clip of one colour changes nothing
    plain = InputClip(clip.path, torch.full_like(clip.pixels, 0.3), clip.pictures, clip.numbers)
    fine = fine_patch_features(loaded, plain, words, 2).view(FRAMES, 4, 2, 4, 2, -1)
    coarse = patch_features(loaded, plain, words).view(FRAMES, 4, 1, 4, 1, -1)
    torch.testing.assert_close(fine, coarse.expand_as(fine), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="--fine 3 does not divide the patch size, 8"):
        fine_patch_features(loaded, clip, words, 3)


def test_fine_cells_are_read_at_their_own_position() -> None:
    # one bright cell of 4 x 4 pixels in a patch-wise linear model: the dense cell that holds it
    # answers strongest
    loaded, clip, words = example(tiny_model())
    loaded.model.backbone.encoder.blocks = nn.ModuleList()
    pixels = torch.zeros_like(clip.pixels)
    pixels[:, :, :, 12:16, 20:24] = 5.0  # cell row 3, column 5 of 8
    bright = fine_patch_features(
        loaded, InputClip(clip.path, pixels, clip.pictures, clip.numbers), words, 2
    )
    dark = fine_patch_features(
        loaded, InputClip(clip.path, 0 * pixels, clip.pictures, clip.numbers), words, 2
    )
    changed = (bright - dark).abs().sum(-1).view(FRAMES, 8, 8)[0] > 1e-6
    assert changed[3, 5]
    rows, columns = changed.nonzero().T
    assert set(rows.tolist()) <= {2, 3, 4}
    assert set(columns.tolist()) <= {4, 5, 6}
