"""The objectives against their definitions: brute force over full logits, pair statistics, and one
process against two ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from allinone.common.errors import DataError
from allinone.data.loading.batch import Batch
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from allinone.pretrain.objectives import (
    Draws,
    ObjectiveConfig,
    PretrainObjective,
    draw_matching_pairs,
)
from allinone.pretrain.objectives.vtm import VideoTextMatching
from allinone.pretrain.recipes import RECIPES
from allinone.pretrain.run import build_run
from tests.model.perturbed import perturb


def small_model() -> AllInOneForPreTraining:
    torch.manual_seed(0)
    config = AllInOneConfig.from_size(
        "nano",
        vocab_size=60,
        image_size=32,
        max_text_len=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
    )
    return perturb(AllInOneForPreTraining(config))


def made_up_batch(size: int = 4, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (size, 8), generator=generator)
    mask = torch.ones(size, 8, dtype=torch.long)
    mask[0, 5:] = 0
    ids = ids * mask
    labels = torch.full((size, 8), -100)
    labels[:, 2] = ids[:, 2]
    labels[1, 3] = ids[1, 3]
    return Batch(
        pixels=torch.randn(size, 3, 3, 32, 32, generator=generator),
        text_ids=ids,
        text_mask=mask,
        mlm_ids=torch.where(labels >= 0, torch.tensor(4), ids),
        mlm_labels=labels,
        mlm_positions=(labels.flatten() >= 0).nonzero().flatten(),
        dataset_ids=torch.tensor([0, 1] * (size // 2)),
        dataset_names=("a", "b"),
        clips=tuple(f"clip{i}" for i in range(size)),
        captions=("",) * size,
        first_position=0,
    )


def test_mlm_at_masked_positions_equals_full_cross_entropy() -> None:
    model, batch = small_model(), made_up_batch()
    losses = PretrainObjective(ObjectiveConfig(mlm=1, vtm=0))(model, batch)
    logits = model.mlm_head(model(batch.pixels, batch.mlm_ids, batch.text_mask).text)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.mlm_labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(losses.total, expected)
    total, count = losses.metrics["mlm_loss"].tolist()
    assert count == 5
    assert abs(total / count - float(expected.detach())) < 1e-5


def test_mlm_losses_per_data_set_add_up_to_the_whole() -> None:
    metrics = PretrainObjective(ObjectiveConfig(mlm=1, vtm=1))(
        small_model(), made_up_batch()
    ).metrics
    for name in ("mlm_loss", "vtm_loss"):
        torch.testing.assert_close(metrics[f"{name}/a"] + metrics[f"{name}/b"], metrics[name])


def test_mlm_without_any_masked_token_is_zero_and_not_nan() -> None:
    batch = made_up_batch()
    object.__setattr__(batch, "mlm_positions", torch.empty(0, dtype=torch.long))
    total = PretrainObjective(ObjectiveConfig(mlm=1, vtm=0))(small_model(), batch).total
    total.backward()
    assert float(total.detach()) == 0


def test_half_the_pairs_match_and_false_pairs_differ_in_caption() -> None:
    ids = torch.tensor([[1, 2], [1, 2], [3, 4], [5, 6], [7, 8], [9, 1], [2, 2], [3, 3]])
    met = torch.zeros(8, 8)
    for seed in range(600):
        torch.manual_seed(seed)
        labels, video = draw_matching_pairs(ids)
        assert int(labels.sum()) == 4
        own = torch.arange(8)
        assert torch.equal(video[labels == 1], own[labels == 1])
        assert not (ids[video[labels == 0]] == ids[labels == 0]).all(1).any()
        met[own[labels == 0], video[labels == 0]] += 1
    # caption 2 has 7 candidates, each met about 600 / 2 / 7 = 43 times
    assert met[2, 2] == 0
    assert met[0, 1] == 0
    assert met[2, [0, 1, 3, 4, 5, 6, 7]].min() > 20
    assert met[2].max() < 75


def test_identical_captions_everywhere_stay_positive() -> None:
    labels, video = draw_matching_pairs(torch.ones(4, 3, dtype=torch.long))
    assert labels.tolist() == [1, 1, 1, 1]
    assert video.tolist() == [0, 1, 2, 3]


def test_false_pairs_come_from_the_captions_own_data_set() -> None:
    ids = torch.arange(18).view(9, 2)
    ids[1] = ids[0]  # a data set with one caption only, a single clip, and a large one
    datasets = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2, 2])
    met = torch.zeros(9, 9)
    for seed in range(600):
        torch.manual_seed(seed)
        labels, video = draw_matching_pairs(ids, datasets)
        assert int(labels.sum()) == 5
        negative = (labels == 0).nonzero().flatten()
        met[negative, video[negative]] += 1
    assert met[3:, :3].sum() == 0
    assert met[3:, 3:].diagonal().sum() == 0
    # each of 5 candidates is met about 600 x 4 / 9 / 5 = 53 times
    assert met[3, 4:].min() > 25
    assert met[3, 4:].max() < 85
    # without another caption in its data set, a caption gets any clip with another caption
    assert met[0, :2].sum() == 0
    assert met[0, 2:].min() > 20
    assert met[2, [0, 1, *range(3, 9)]].min() > 15


def test_hard_negatives_are_drawn_from_the_softmax_of_similarities() -> None:
    ids = torch.arange(12).view(6, 2)
    ids[5] = ids[4]
    datasets = torch.tensor([0, 0, 0, 0, 1, 1])  # the last two have one caption: they fall back
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    similarity.fill_diagonal_(50.0)  # the own pair is excluded, however similar
    met, seeds = torch.zeros(6, 6), 1200
    for seed in range(seeds):
        torch.manual_seed(seed)
        labels, clips = draw_matching_pairs(ids, datasets, similarity)
        assert int(labels.sum()) == 3
        negative = (labels == 0).nonzero().flatten()
        met[negative, clips[negative]] += 1
    may = torch.zeros(6, 6, dtype=torch.bool)
    may[:4, :4] = ~torch.eye(4, dtype=torch.bool)
    may[4:, :4] = True
    expected = similarity.masked_fill(~may, float("-inf")).softmax(1)
    found = met / met.sum(1, keepdim=True)
    assert (found[~may] == 0).all()
    # about 600 draws a row: the standard error is at most 0.021
    assert (found - expected).abs().max() < 0.08


def test_hard_negatives_use_the_embeddings_of_vtc_once() -> None:
    model, batch = small_model(), made_up_batch(8)
    similarity = model.logit_scale() * (
        embed_text(model, batch.text_ids, batch.text_mask) @ embed_video(model, batch.pixels).T
    )
    torch.manual_seed(3)
    labels, clips = draw_matching_pairs(batch.text_ids, batch.dataset_ids, similarity)
    passes = []
    model.backbone.encoder.register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(3)
    config = ObjectiveConfig(mlm=0, vtc=1, vtm_negatives="hard")
    losses = PretrainObjective(config)(model, batch)
    assert len(passes) == 3, "text, video, and the pairs"
    pooled = model(batch.pixels[clips], batch.text_ids, batch.text_mask).pooled
    matching = F.cross_entropy(model.vtm_head(pooled), labels)
    torch.testing.assert_close(losses.total, matching + _contrast_by_definition(model, batch))
    drawn = (similarity / model.logit_scale())[torch.arange(8), clips][labels == 0]
    torch.testing.assert_close(
        losses.metrics["vtm_negative_cosine"], torch.stack([drawn.sum(), torch.tensor(4.0)])
    )
    assert losses.metrics["vtm_cross_dataset_negatives"].tolist() == [0, 4]


@pytest.mark.parametrize("options", [{}, {"vtm": 0, "vtc": 1}])
def test_hard_negatives_without_vtc_or_vtm_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"--vtm-negatives hard .* give --vtm and --vtc"):
        ObjectiveConfig(vtm_negatives="hard", **options)


@pytest.mark.parametrize("seed", range(5))
def test_one_data_set_draws_the_same_pairs_as_without_sets(seed: int) -> None:
    ids = torch.randint(0, 3, (7, 1), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    expected = draw_matching_pairs(ids)
    torch.manual_seed(seed)
    for ours, theirs in zip(draw_matching_pairs(ids, torch.ones(7)), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_share_of_negatives_from_another_data_set_is_logged() -> None:
    model, batch = small_model(), made_up_batch(8)
    lonely = replace(batch, dataset_ids=torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]))

    def share(batch: Batch, negatives: str) -> float:
        crossing, all_negatives = 0.0, 0.0
        for seed in range(12):
            torch.manual_seed(seed)
            config = ObjectiveConfig(mlm=0, vtm_negatives=negatives)  # type: ignore[arg-type]
            metric = PretrainObjective(config)(model, batch).metrics["vtm_cross_dataset_negatives"]
            crossing, all_negatives = crossing + float(metric[0]), all_negatives + float(metric[1])
        assert all_negatives == 12 * 4
        return crossing / all_negatives

    with torch.no_grad():
        assert share(batch, "dataset") == 0
        assert share(batch, "any") > 0.3  # 4 of the 7 other clips: 0.57
        assert 0 < share(lonely, "dataset") <= 0.25  # clip 0 alone, in the steps that choose it
        single = replace(batch, dataset_ids=torch.zeros(8, dtype=torch.long), dataset_names=("a",))
        metrics = PretrainObjective(ObjectiveConfig(mlm=0))(model, single).metrics
    assert "vtm_cross_dataset_negatives" not in metrics


def test_evaluation_draws_negatives_within_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "allinone.pretrain.objectives.matching_pairs.draw_matching_pairs",
        lambda *args: seen.append(args) or draw_matching_pairs(*args),
    )
    batch = made_up_batch()
    with torch.no_grad():
        VideoTextMatching().count_correct(small_model(), batch)
    assert torch.equal(seen[0][1], batch.dataset_ids)


def test_given_draws_replace_the_random_ones() -> None:
    model, batch = small_model(), made_up_batch()
    generator = torch.Generator().manual_seed(3)
    mlm, vtm = (torch.rand(12, 4, generator=generator).argsort(1) for _ in range(2))
    labels, clips = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 3, 0, 3])
    draws = Draws(mlm, vtm, (labels, clips))
    total = PretrainObjective(ObjectiveConfig(), draws=lambda batch: draws)(model, batch).total
    text = model(batch.pixels, batch.mlm_ids, batch.text_mask, mlm).text
    words = F.cross_entropy(
        model.mlm_head(text).flatten(0, 1), batch.mlm_labels.flatten(), ignore_index=-100
    )
    pooled = model(batch.pixels[clips], batch.text_ids, batch.text_mask, vtm).pooled
    torch.testing.assert_close(total, words + F.cross_entropy(model.vtm_head(pooled), labels))


def test_vtm_is_the_binary_cross_entropy_of_the_drawn_pairs() -> None:
    model, batch = small_model(), made_up_batch()
    torch.manual_seed(5)
    losses = PretrainObjective(ObjectiveConfig(mlm=0, vtm=1))(model, batch)
    torch.manual_seed(5)
    labels, video = draw_matching_pairs(batch.text_ids, batch.dataset_ids)
    logits = torch.cat(
        [
            model.vtm_head(
                model(
                    batch.pixels[video[i : i + 1]],
                    batch.text_ids[i : i + 1],
                    batch.text_mask[i : i + 1],
                ).pooled
            )
            for i in range(4)
        ]
    )
    torch.testing.assert_close(losses.total, F.cross_entropy(logits, labels), atol=1e-5, rtol=1e-5)


def test_a_micro_batch_without_false_pairs_is_refused(tmp_path: Path) -> None:
    recipe = RECIPES["plus-cc3m-webvid"][1]  # 2,048 of each, 16 per micro-batch
    images = replace(recipe, out=tmp_path, cotrain=replace(recipe.cotrain, image_batch=128))
    with pytest.raises(
        ValueError,
        match=(
            r"128 x --micro-batch 16 / --global-batch 2048 = 1 of them.*: --image-batch 256 or more"
        ),
    ):
        build_run(images)
    with pytest.raises(ValueError, match="--micro-batch must be at least 2"):
        build_run(replace(recipe, out=tmp_path, train=replace(recipe.train, micro_batch=1)))
    with pytest.raises(
        DataError, match=r"tools/prepare\.py"
    ):  # without VTM only the data is missing
        build_run(
            replace(
                images,
                model=replace(images.model, size="nano", init_from="none"),
                objective=replace(images.objective, vtm=0, wpa=0),
            )
        )


def test_switched_off_and_contradicting_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="all objectives are off"):
        ObjectiveConfig(mlm=0, vtm=0, vtc=0)
    with pytest.raises(ValueError, match="wpa"):
        ObjectiveConfig(vtm=0, wpa=0.1)
    with pytest.raises(ValueError, match="mlm"):
        ObjectiveConfig(mlm=-1)


def _contrast_by_definition(model: AllInOneForPreTraining, batch: Batch) -> torch.Tensor:
    similarity = (
        model.logit_scale()
        * embed_text(model, batch.text_ids, batch.text_mask)
        @ embed_video(model, batch.pixels).T
    )
    target = torch.arange(len(batch))
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def _contrast_on_rank(rank: int, world: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    model, whole = small_model(), made_up_batch(8)
    rows = slice(rank * 4, rank * 4 + 4)
    part = {
        name: value[rows]
        for name, value in vars(whole).items()
        if isinstance(value, torch.Tensor) and name != "mlm_positions"
    }
    batch = Batch(
        **{**vars(whole), **part, "clips": whole.clips[rows], "captions": whole.captions[rows]}
    )
    total = PretrainObjective(ObjectiveConfig(mlm=0, vtm=0, vtc=1))(model, batch).total
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= world  # what data parallelism does
    dist.all_reduce(loss := total.detach().clone())
    if rank == 0:
        torch.save({"loss": loss / world, "gradients": gradients}, f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_rank_contrast_equals_one_process_with_all_clips(tmp_path: Path) -> None:
    mp.spawn(_contrast_on_rank, args=(2, str(tmp_path)), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    model, batch = small_model(), made_up_batch(8)
    loss = _contrast_by_definition(model, batch)
    loss.backward()
    torch.testing.assert_close(result["loss"], loss.detach(), atol=1e-6, rtol=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == result["gradients"].keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            result["gradients"][name], gradient, atol=1e-6, rtol=1e-4, msg=name
        )
