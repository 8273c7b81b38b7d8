"""Captions: the mask is causal, cached and uncached passes agree, and searches are exact."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allinone.model import AllInOneConfig, AllInOneForCaptioning, AllInOneForPreTraining
from allinone.model.captioning import FIRST, LAST, MASK, clip_memory, next_features
from allinone.model.convert import fit
from allinone.model.load_report import LoadReport

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "max_text_len": 8,
    "vocab_size": 112,
}
WORDS = (104, 105, 106)
"""The vocabulary of the searches, with [SEP]."""


def captioner(**options: Any) -> AllInOneForCaptioning:
    torch.manual_seed(0)
    model = AllInOneForCaptioning(AllInOneConfig(**{**SHAPE, **options})).eval()
    with torch.no_grad():  # initial biases are zero, and initial weights small
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def clips(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def captions(number: int = 2, words: int = 6) -> Tensor:
    ids = torch.randint(104, 112, (number, words), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = FIRST
    return ids


@pytest.mark.parametrize("roll", ["roll", "channel", "flatten", "average"])
def test_a_word_changes_no_score_before_it(roll: str) -> None:
    model, ids, pixels = captioner(roll=roll), captions(), clips()
    before = model(pixels, ids).logits
    for place in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, place] = 107 if int(changed[0, place]) != 107 else 108
        after = model(pixels, changed).logits
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[0, place:] != before[0, place:]).any(-1).all()


def test_words_change_no_visual_token_of_any_block() -> None:
    model, pixels = captioner(), clips()
    seen: list[list[Tensor]] = []
    for ids in (captions(), captions().flip(0)):
        found: list[Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, given, to=found: to.append(given[0]))
            for block in model.backbone.encoder.blocks
        ]
        model(pixels, ids)
        for hook in hooks:
            hook.remove()
        # 6 words and 6 [MASK]
        seen.append([x[:, 12:] for x in found])
    assert not torch.equal(captions()[0], captions()[1])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("roll", ["roll", "channel", "flatten", "average"])
@pytest.mark.parametrize("order", ["raster", "shuffled"])
def test_cached_steps_equal_the_pass_without_cache(roll: str, order: str) -> None:
    model, ids, pixels = captioner(roll=roll, patch_order=order), captions(), clips()
    joint = model(pixels, ids).logits
    memory = clip_memory(model.backbone, pixels)
    steps = [model(text_ids=ids[:, :length], memory=memory).logits for length in range(1, 7)]
    assert all(step.shape[1] == 1 for step in steps)
    torch.testing.assert_close(torch.cat(steps, 1), joint, atol=1e-5, rtol=0)
    uncached = model(text_ids=ids, memory=clip_memory(model.backbone, pixels), use_cache=False)
    torch.testing.assert_close(uncached.logits, joint, atol=1e-5, rtol=0)


def test_a_distilled_model_has_the_same_cache() -> None:
    model, ids, pixels = captioner(distillation_token=True), captions(), clips()
    memory = clip_memory(model.backbone, pixels)
    features = next_features(model.backbone, memory, ids)
    torch.testing.assert_close(
        model.mlm_head(features), model(pixels, ids).logits, atol=1e-5, rtol=0
    )


def test_the_first_word_is_that_of_the_masked_language_model() -> None:
    """[CLS] [MASK] has the same attention in both but for [CLS], which here cannot see [MASK]."""
    config = {**SHAPE, "num_hidden_layers": 1}
    torch.manual_seed(0)
    source = AllInOneForPreTraining(AllInOneConfig(**config)).eval()
    model = AllInOneForCaptioning(AllInOneConfig(**config)).eval()
    model.load_state_dict(source.state_dict(), strict=False)
    ids = torch.tensor([[FIRST, MASK]])
    joint = source(clips(1), ids, torch.ones_like(ids)).text[:, 1]
    # with one block, [MASK] reads the embeddings of all tokens: no other token's mask matters
    torch.testing.assert_close(
        model(clips(1), ids[:, :1]).logits[:, 0], source.mlm_head(joint), atol=1e-5, rtol=0
    )


def test_padding_and_labels_follow_transformers() -> None:
    model, pixels, ids = captioner(), clips(), captions(words=8)
    labels = ids.clone()
    labels[0, 5:] = -100
    output = model(pixels, ids, labels=labels)
    assert output.logits.shape == (2, 7, 112)
    chances = output.logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    expected = -(chances[0, :4].sum() + chances[1].sum()) / 11
    torch.testing.assert_close(output.loss, expected)
    padded = ids.clone()
    padded[0, 5:] = 0
    assert torch.equal(model(pixels, padded).logits[0, :4], output.logits[0, :4])


def only_words() -> dict[str, Any]:
    return {"suppress_tokens": [n for n in range(112) if n not in (*WORDS, LAST)]}


@torch.no_grad()
def scores_of_all(model: AllInOneForCaptioning, pixels: Tensor, most: int) -> dict[Any, float]:
    """Log-probability of every caption over WORDS of at most `most` tokens after [CLS]."""
    allowed = [*WORDS, LAST]
    found = {}
    for length in range(most):
        for words in itertools.product(WORDS, repeat=length):
            ids = torch.tensor([[FIRST, *words]])
            logits = model(pixels, ids).logits[0][:, allowed].log_softmax(-1)
            chosen = [allowed.index(word) for word in words]
            sums = sum(float(logits[n, word]) for n, word in enumerate(chosen))
            found[(*words, LAST)] = sums + float(logits[length, allowed.index(LAST)])
            if length == most - 1:
                for last in WORDS:
                    found[(*words, last)] = sums + float(logits[length, allowed.index(last)])
    return found


def words_of(row: Tensor) -> tuple[int, ...]:
    tokens = row[1:].tolist()
    # transformers fills the rows of a beam search with [SEP], because the number of [PAD] is 0
    return tuple(tokens[: tokens.index(LAST) + 1] if LAST in tokens else tokens)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(penalty: float) -> None:
    model, pixels = captioner(), clips(1)
    found = scores_of_all(model, pixels, most=4)
    total = sum(math.exp(score) for score in found.values())
    assert total == pytest.approx(1, abs=1e-5)
    # with as many beams as there are prefixes, beam search is exhaustive
    output = model.generate(
        pixels,
        max_new_tokens=4,
        num_beams=81,
        num_return_sequences=3,
        length_penalty=penalty,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
        **renormalised(),
    )
    best = sorted(found, key=lambda words: -found[words] / len(words) ** penalty)[:3]
    assert [words_of(row) for row in output.sequences] == best
    expected = [found[words] / len(words) ** penalty for words in best]
    assert output.sequences_scores.tolist() == pytest.approx(expected, abs=1e-4)


def renormalised() -> dict[str, Any]:
    return {**only_words(), "renormalize_logits": True}


def test_beams_of_two_clips_are_those_of_each_alone() -> None:
    model, pixels = captioner(), clips(2)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, **renormalised()}
    both = model.generate(pixels, **options)
    without = model.generate(pixels, use_cache=False, **options)
    assert torch.equal(both, without)
    for number in range(2):
        alone = model.generate(pixels[number : number + 1], **options)
        assert words_of(alone[0]) == words_of(both[number])


def test_greedy_takes_the_best_word_of_each_step() -> None:
    model, pixels = captioner(), clips(2)
    ids = torch.full((2, 1), FIRST)
    for _ in range(7):
        scores = model(pixels, ids).logits[:, -1]
        scores[:, [0, 100, FIRST, MASK]] = -math.inf  # never words of a caption
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    ends = [row.index(LAST) + 1 if LAST in row else 8 for row in ids.tolist()]
    found = model.generate(pixels)
    for row, expected, end in zip(found.tolist(), ids.tolist(), ends, strict=True):
        assert row[:end] == expected[:end]
        assert not any(row[end:])


@torch.no_grad()
def test_nucleus_samples_have_the_renormalised_shares() -> None:
    model, pixels = captioner(), clips(1)
    # one word follows [CLS]: all but the least probable of four are within 0.85
    chances = model(pixels, torch.tensor([[FIRST]])).logits[0, 0][[*WORDS, LAST]].softmax(-1)
    order = chances.argsort(descending=True)
    sums = chances[order].cumsum(0)
    top_p = float(sums[1] + (sums[2] - sums[1]) / 2)  # the third is still needed to reach it
    kept = order[:3]
    torch.manual_seed(3)
    drawn = 4000
    found = model.generate(
        pixels,
        do_sample=True,
        top_p=top_p,
        top_k=0,
        max_new_tokens=1,
        num_return_sequences=drawn,
        **only_words(),
    )[:, 1]
    names = torch.tensor([*WORDS, LAST])
    assert not (found == names[order[3]]).any()
    for number in kept:
        share = float(chances[number] / chances[kept].sum())
        seen = float((found == names[number]).float().mean())
        assert seen == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / drawn))


def test_a_caption_continues_a_given_beginning() -> None:
    model, pixels = captioner(), clips(2)
    begun = torch.tensor([[FIRST, 104, 105]] * 2)
    found = model.generate(pixels, begun, num_beams=2)
    assert torch.equal(found[:, :3], begun)
    with pytest.raises(ValueError, match="max_text_len is 8"):
        model.generate(pixels, begun, max_new_tokens=9, **{"min_new_tokens": 9})


def test_several_views_are_averaged_like_frames() -> None:
    model = captioner(roll="average")
    pixels, ids = clips(1), captions(1)
    # without an exchange between frames, and the same frame number, a view is a frame
    frame = pixels[:, :1]
    views = clip_memory(model.backbone, torch.stack([frame, frame.flip(-1)], 1))
    one, other = (
        next_features(model.backbone, clip_memory(model.backbone, x), ids)
        for x in (frame, frame.flip(-1))
    )
    mean = next_features(model.backbone, views, ids)
    torch.testing.assert_close(mean, (one + other) / 2, atol=1e-6, rtol=1e-5)


def test_saved_models_write_the_same_captions(tmp_path: Path) -> None:
    model, pixels = captioner(), clips()
    expected = model.generate(pixels, num_beams=2)
    model.save_pretrained(tmp_path)
    for file in ("generation_config.json", ""):  # with the file, then without it
        loaded = AllInOneForCaptioning.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded.generate(pixels, num_beams=2), expected)
        if file:
            (tmp_path / file).unlink()


def test_generate_refuses_a_model_in_training_mode() -> None:
    with pytest.raises(ValueError, match="training mode"):
        captioner().train().generate(clips())


def test_gradients_reach_every_part_that_captions_use() -> None:
    model = captioner(hidden_dropout=0.0).train()
    model(clips(), captions(), labels=captions()).loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # the pooler is not read
    assert all(name.startswith("backbone.pooler.") for name in unused)


def test_weights_of_any_pretrained_model_fit() -> None:
    torch.manual_seed(0)
    source = AllInOneForPreTraining(AllInOneConfig(**SHAPE, image_heads=True))
    model = captioner()
    report = LoadReport("test")
    own = model.state_dict()
    kept = {name: x for name, x in source.state_dict().items() if name in own}
    fit(model, kept, report, unexpected=[], may_be_new=())
    assert torch.equal(model.mlm_head.decoder.weight, source.mlm_head.decoder.weight)
