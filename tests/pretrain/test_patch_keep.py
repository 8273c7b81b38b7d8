"""Training on a share of the patches: which are kept, what is computed, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.data import CoTrainStream
from allinone.data.loading.batch import CoBatch
from allinone.model import AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from allinone.model.embeddings import TEXT, VIDEO
from allinone.model.kernels import patch_rows
from allinone.model.roll import fold_size, roll_tokens
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import activations, training_cost
from allinone.pretrain.objectives import Draws, ObjectiveConfig, PretrainObjective
from allinone.pretrain.objectives.context import ObjectiveContext
from allinone.pretrain.objectives.vtc import VideoTextContrast
from allinone.pretrain.objectives.vtm import VideoTextMatching
from allinone.pretrain.recipes import RECIPES
from allinone.pretrain.run import all_patches_from
from tests.pretrain.test_passes import (
    CLIPS,
    LABELS,
    assert_same_step,
    batch_of,
    losses_and_gradients,
    model_of,
)

TEXT_TOKENS, PATCHES, FRAMES = 8, 16, 3


def kept_order(kept: int, rows: int = 4 * FRAMES) -> Tensor:
    """Some patches of each frame, in any order."""
    return torch.rand(rows, PATCHES, generator=torch.Generator().manual_seed(3)).argsort(1)[
        :, :kept
    ]


def encoder_tokens(model: AllInOneForPreTraining, run: Callable[[], object]) -> list[int]:
    """Tokens of a sequence in each pass through the encoder."""
    found: list[int] = []
    handle = model.backbone.encoder.register_forward_pre_hook(
        lambda module, inputs: found.append(inputs[0].shape[1])
    )
    run()
    handle.remove()
    return found


@pytest.mark.parametrize(
    ("share", "kept"), [(0.5, 8), (0.3, 5), (0.99, 16), (1 / 16, 1)], ids=lambda value: f"{value:g}"
)
@pytest.mark.parametrize("distilled", [False, True])
def test_the_rounded_share_and_the_prefix_tokens_remain(
    share: float, kept: int, distilled: bool
) -> None:
    model, visual = model_of(distillation_token=distilled).train(), 1 + distilled + kept
    objective = PretrainObjective(ObjectiveConfig(vtc=1, wpa=0.1, patch_keep=share))
    seen = encoder_tokens(model, lambda: objective(model, batch_of()))
    assert seen == [TEXT_TOKENS + visual, TEXT_TOKENS, visual]


def test_a_share_of_no_patch_and_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps none of the 16 patches.* at least 0\.062"):
        ObjectiveConfig(patch_keep=0.01).kept_patches(PATCHES)
    for options in ({"patch_keep": 0.0}, {"patch_keep": 1.5}, {"patch_keep_until": -0.1}):
        with pytest.raises(ValueError, match="--patch-keep"):
            ObjectiveConfig(**options)


@pytest.mark.parametrize("order", ["raster", "shuffled"])
def test_frames_of_a_clip_keep_the_same_patches(order: str) -> None:
    embeddings = model_of(patch_order=order).train().backbone.video_embeddings
    torch.manual_seed(0)
    drawn = embeddings.draw_order(5 * FRAMES, FRAMES, torch.device("cpu"), 8)
    assert drawn.shape == (5 * FRAMES, 8)
    clips = drawn.view(5, FRAMES, 8)
    places = clips.sort(2).values
    assert (places == places[:, :1]).all()
    assert (places.diff() > 0).all(), "no patch twice"
    assert len({tuple(clip[0].tolist()) for clip in places}) == 5, "clips differ"
    assert torch.equal(clips, places) == (order == "raster")
    torch.manual_seed(0)
    again = embeddings.draw_order(5 * FRAMES, FRAMES, torch.device("cpu"), 8)
    assert torch.equal(again, drawn)


def test_every_patch_is_kept_equally_often() -> None:
    embeddings = model_of().train().backbone.video_embeddings
    torch.manual_seed(1)
    drawn = embeddings.draw_order(4000, 1, torch.device("cpu"), 4)
    shares = drawn.flatten().bincount(minlength=PATCHES) / 4000
    # five standard deviations of 4,000 draws with probability 1/4
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_rolled_patch_meets_its_own_place_as_with_all_patches() -> None:
    """The reason for the same patches in all frames: with a choice per frame, half as often."""
    embeddings = model_of(image_size=224, patch_order="shuffled").train().backbone.video_embeddings
    clips = 64
    for kept in (None, 98):
        torch.manual_seed(2)
        places = embeddings.draw_order(clips * FRAMES, FRAMES, torch.device("cpu"), kept)
        slots = F.pad(places, (1, 0), value=-1)[:, :, None]  # a class token in front
        fold = fold_size(slots.shape[1], 8)
        rolled = roll_tokens(slots, FRAMES, 0, fold)[:, 1:, 0]
        arrived = torch.cat([rolled[:, :fold], rolled[:, -fold:]], 1)
        stayed = rolled[:, fold:-fold]
        met = (arrived[:, :, None] == stayed[:, None]).any(2).float().mean()
        expected = stayed.shape[1] / places.shape[1]  # 0.75
        assert abs(met - expected) < 0.03, kept


@pytest.mark.parametrize(
    "options", [{}, {"roll": "flatten"}, {"roll": "channel"}, {"distillation_token": True}], ids=str
)
def test_the_pass_is_that_of_gathered_embeddings(options: dict[str, object]) -> None:
    """Embeddings of all patches, of which some rows are taken by hand, through the blocks."""
    model, batch = model_of(**options).eval().backbone, batch_of()
    order, prefix = kept_order(11), model.config.num_prefix_tokens
    complete = model.video_embeddings(batch.pixels)
    pairs = zip(complete, order, strict=True)
    kept = torch.stack([torch.cat([x[:prefix], x[prefix:][own]]) for x, own in pairs])
    torch.testing.assert_close(model.video_embeddings(batch.pixels, order), kept, rtol=0, atol=1e-6)
    video = model.modality(kept, VIDEO)
    text = model.modality(model.text_embeddings(batch.text_ids), TEXT)
    sequences, frames = 4 * FRAMES, FRAMES
    if options.get("roll") == "flatten":
        video, sequences, frames = video.unflatten(0, (4, FRAMES)).flatten(1, 2), 4, 1
    else:
        text = text.repeat_interleave(FRAMES, 0)
    mask = batch.text_mask.repeat_interleave(sequences // 4, 0).bool()
    mask = F.pad(mask, (0, video.shape[1]), value=True)[:, None, None]
    x = model.encoder(torch.cat([text, video], 1), mask, frames, TEXT_TOKENS)
    x = x.unflatten(0, (4, -1)).mean(1)
    output = model(batch.pixels, batch.text_ids, batch.text_mask, order)
    torch.testing.assert_close(output.text, x[:, :TEXT_TOKENS], rtol=0, atol=2e-6)
    assert output.video.shape[1] == prefix + 11
    alone = model.encoder(model.modality(kept, VIDEO))[:, 0].unflatten(0, (4, FRAMES)).mean(1)
    torch.testing.assert_close(model.encode_video(batch.pixels, order), alone, rtol=0, atol=2e-6)


def test_gradients_reach_only_kept_patches() -> None:
    model, batch = model_of().train(), batch_of()
    pixels = batch.pixels.clone().requires_grad_()
    order = torch.tensor([1, 4, 6, 7, 9, 15]).expand(4 * FRAMES, -1)
    draws = Draws(order, order, (LABELS, CLIPS), order)
    losses_and_gradients(
        model,
        replace(batch, pixels=pixels),
        ObjectiveConfig(vtc=1, wpa=0.1, patch_keep=0.4),
        draws,
    )
    assert pixels.grad is not None
    rows = patch_rows(pixels.grad.flatten(0, 1), 16).abs().sum(2) > 0
    expected = torch.zeros(PATCHES, dtype=torch.bool).index_fill(0, order[0], True)
    assert (rows == expected).all()
    position = model.backbone.video_embeddings.position.grad
    assert position is not None
    assert torch.equal(position[0, 1:].abs().sum(1) > 0, expected)


@pytest.mark.parametrize("wpa", [0.0, 0.1])
def test_one_pass_equals_two_on_kept_patches(wpa: float) -> None:
    order = kept_order(8)
    draws = Draws(order, order.flip(1), (LABELS, CLIPS))
    assert_same_step(model_of().train(), batch_of(), lambda: draws, wpa=wpa, patch_keep=0.5)


def test_wpa_is_the_distance_to_the_kept_patches() -> None:
    model, batch = model_of().train(), batch_of()
    context = ObjectiveContext(model, batch, kept_patches=5)
    assert context.matching.video is not None
    assert context.matching.video.shape[1] == 1 + 5


def test_the_same_seed_keeps_the_same_patches() -> None:
    model, config = model_of(patch_order="shuffled").train(), ObjectiveConfig(patch_keep=0.5, vtc=1)

    def step(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return PretrainObjective(config)(model, batch_of()).total

    assert torch.equal(step(5), step(5))
    assert not torch.equal(step(5), step(6))


def test_all_patches_are_used_from_a_position_on() -> None:
    model, images = model_of().train(), replace(batch_of(frames=1), first_position=40)
    objective = PretrainObjective(ObjectiveConfig(patch_keep=0.5), all_patches_from=(100, 40))
    shares = []
    for position in (96, 100):
        video = replace(batch_of(), first_position=position)
        metrics = objective(model, CoBatch(video, images)).metrics
        assert (metrics["image_patch_keep"] == torch.tensor([4.0, 4.0])).all()
        shares.append(metrics["patch_keep"].tolist())
        if position == 100:
            # the same draws as of a run that always uses all patches
            torch.manual_seed(9)
            last = objective(model, video).total
            torch.manual_seed(9)
            assert torch.equal(last, PretrainObjective(ObjectiveConfig())(model, video).total)
    assert shares == [[2.0, 4.0], [4.0, 4.0]]


def test_images_are_trained_on_kept_patches() -> None:
    model, batch = model_of(image_heads=True).train(), batch_of(frames=1)
    objective = PretrainObjective(ObjectiveConfig(patch_keep=0.25))
    seen = encoder_tokens(model, lambda: objective(model, CoBatch(None, batch)).total.backward())
    assert seen == [TEXT_TOKENS + 1 + 4]


def test_evaluation_uses_all_patches() -> None:
    model, batch = model_of().eval(), batch_of()
    seen = encoder_tokens(model, lambda: VideoTextMatching().count_correct(model, batch))
    seen += encoder_tokens(model, lambda: VideoTextContrast().embed(model, batch))
    assert seen == [TEXT_TOKENS + 1 + PATCHES, TEXT_TOKENS, 1 + PATCHES]


def test_contrast_is_that_of_the_given_patches() -> None:
    model, batch, order = model_of().train(), batch_of(), kept_order(8)
    losses = PretrainObjective(
        ObjectiveConfig(mlm=0, vtm=0, vtc=1), draws=lambda batch: Draws(vtc_patches=order)
    )(model, batch)
    text = embed_text(model, batch.text_ids, batch.text_mask)
    similarity = model.logit_scale() * text @ embed_video(model, batch.pixels, order).T
    target = torch.arange(4)
    expected = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=1e-6)


def fast_run(**changes: Any) -> PretrainConfig:
    recipe = RECIPES["webvid-howto-fast"][1]
    return replace(recipe, **changes)


class NoStream:
    """Stands for a stream whose batches are not read."""


@pytest.mark.parametrize("mode", ["joint", "alternate"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_both_streams_of_co_training_change_at_the_same_step(mode: Any, share: float) -> None:
    run = fast_run(objective=ObjectiveConfig(patch_keep=0.5, patch_keep_until=0.6))
    run = replace(run, train=replace(run.train, steps=50, global_batch=8))
    assert run.kept_steps == 30
    stream = CoTrainStream(
        NoStream(),  # type: ignore[arg-type]
        NoStream(),  # type: ignore[arg-type]
        global_batch=8,
        image_batch=6,
        mode=mode,
        image_share=share,
    )
    video_from, images_from = all_patches_from(run, stream)
    for step in range(50):
        video, images = stream.positions(step)
        after_video, after_images = stream.positions(step + 1)
        if after_video > video:  # the step holds video
            assert (video >= video_from) == (step >= 30)
        if after_images > images:
            assert (images >= images_from) == (step >= 30)


def test_the_plan_averages_both_phases_and_fits_the_last() -> None:
    run, paper = fast_run(), RECIPES["webvid-howto-base"][1]
    assert run.kept_steps == 380_000
    cost, full = training_cost(run, 128), training_cost(paper, 128)
    assert cost.kept is not None
    assert (cost.video, cost.all_patches) == (full.video, full.total)
    assert cost.total == pytest.approx(0.95 * cost.at(True) + 0.05 * cost.at(False))
    assert activations(run, 2) == activations(paper, 2)
    kept = replace(run, objective=replace(run.objective, patch_keep_until=1.0))
    assert activations(kept, 2).total < 0.7 * activations(run, 2).total


def test_the_fast_recipe_differs_from_the_papers_in_this_alone(tmp_path: Path) -> None:
    run, paper = fast_run(out=tmp_path), RECIPES["webvid-howto-base"][1]
    assert run.objective.patch_keep == 0.5
    same = replace(run.objective, patch_keep=1.0)
    assert replace(run, out=paper.out, objective=same) == paper
