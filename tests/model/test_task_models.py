"""Models with heads follow transformers' conventions; hostile configs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from allinone.engine.distributed.contrastive import contrast
from allinone.model import (
    AllInOneConfig,
    AllInOneForMaskedLM,
    AllInOneForMultipleChoice,
    AllInOneForPreTraining,
    AllInOneForQuestionAnswering,
    AllInOneForRetrieval,
    AllInOneForVideoClassification,
    AllInOneModel,
)
from allinone.model.task_models import AllInOneForTask

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "max_text_len": 6,
    "projection_dim": 8,
    "vocab_size": 50,
}
NAMES = ["a cat", "a dog", "rain"]


def made(cls: type[AllInOneForTask], **task: Any) -> Any:
    torch.manual_seed(0)
    model = cls(AllInOneConfig(**SHAPE, task={"labels": NAMES, **task})).eval()
    with torch.no_grad():  # initial biases are zero, and initial weights small
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(texts: int = 2, clips: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, 50, (texts, 6))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return torch.randn(clips, 3, 3, 16, 16), ids, mask


def entropy(logits: Tensor, row: int, column: int) -> float:
    row_logits = logits[row].detach()
    return float(row_logits.logsumexp(0) - row_logits[column])


def test_labels_of_a_classifier_give_the_mean_cross_entropy() -> None:
    for cls in (AllInOneForVideoClassification, AllInOneForQuestionAnswering):
        model = made(cls)
        assert model.config.id2label == dict(enumerate(NAMES))
        assert model.config.label2id == {"a cat": 0, "a dog": 1, "rain": 2}
        output = model(*inputs(), labels=torch.tensor([2, -100]))
        assert output.logits.shape == (2, 3)
        assert float(output.loss.detach()) == pytest.approx(entropy(output.logits, 0, 2), rel=1e-5)
        loss, logits = model(*inputs(), labels=torch.tensor([2, -100]), return_dict=False)
        assert torch.equal(loss, output.loss)
        assert torch.equal(logits, output.logits)
        assert model(*inputs()).loss is None


def test_soft_answers_sum_the_binary_cross_entropy() -> None:
    model = made(AllInOneForQuestionAnswering, kind="answers_bce")
    target = torch.tensor([[0.3, 1.0, 0.0], [0.0, 0.0, 0.6]])
    output = model(*inputs(), labels=target)
    chance = output.logits.sigmoid()
    expected = -(target * chance.log() + (1 - target) * (1 - chance).log()).sum() / 2
    torch.testing.assert_close(output.loss, expected)


def test_choices_of_texts_and_of_clips_are_scored_one_by_one() -> None:
    model = made(AllInOneForMultipleChoice)
    pixels, ids, mask = inputs(texts=6)
    texts, masks = ids.view(2, 3, 6), mask.view(2, 3, 6)
    output = model(pixels, texts, masks, labels=torch.tensor([1, 2]))
    for item in range(2):
        for option in range(3):
            one = model(
                pixels[item : item + 1],
                texts[item, option][None, None],
                masks[item, option][None, None],
            )
            torch.testing.assert_close(output.logits[item, option], one.logits[0, 0])
    expected = (entropy(output.logits, 0, 1) + entropy(output.logits, 1, 2)) / 2
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    clips = model(pixels[None], texts[0, :1], masks[0, :1]).logits
    torch.testing.assert_close(clips[0, 0], output.logits[0, 0])
    with pytest.raises(ValueError, match=r"give \[B, T, 3, S, S\] with \[B, K, L\]"):
        model(pixels, ids, mask)


def test_retrieval_loss_is_that_of_training() -> None:
    model = made(AllInOneForRetrieval)
    output = model(*inputs(), labels=torch.arange(2))
    losses = contrast(output.text_embeds, output.video_embeds, model.logit_scale()).losses
    torch.testing.assert_close(output.loss, losses.mean())
    torch.testing.assert_close(output.text_embeds.norm(dim=1), torch.ones(2))
    assert torch.equal(output.logits_per_video, output.logits.T)
    # three texts of two clips: both texts of clip 0 are correct for it
    pixels, ids, mask = inputs(texts=3)
    uneven = model(pixels, ids, mask, labels=torch.tensor([0, 0, 1]))
    by_clip = uneven.logits.T.softmax(1)
    own = torch.stack([by_clip[0, :2].sum(), by_clip[1, 2]])
    by_text = torch.stack([uneven.logits.log_softmax(1)[n, k] for n, k in ((0, 0), (1, 0), (2, 1))])
    torch.testing.assert_close(uneven.loss, -(by_text.mean() + own.log().mean()) / 2)


def test_retrieval_without_towers_or_rank_head_says_so() -> None:
    with pytest.raises(ValueError, match="no rank head"):
        made(AllInOneForRetrieval).get_pair_logits(*inputs())
    ranks = made(AllInOneForRetrieval, kind="rank", contrastive=False)
    assert ranks.get_pair_logits(*inputs()).shape == (2,)
    with pytest.raises(ValueError, match="no contrastive projections"):
        ranks(*inputs())


def test_masked_words_are_scored_at_every_position() -> None:
    model = made(AllInOneForMaskedLM)
    labels = torch.full((2, 6), -100)
    labels[1, 3] = 7
    output = model(*inputs(), labels=labels)
    assert output.logits.shape == (2, 6, 50)
    assert float(output.loss.detach()) == pytest.approx(entropy(output.logits[1], 3, 7), rel=1e-5)


def test_hidden_states_end_in_what_the_head_reads() -> None:
    model = made(AllInOneForVideoClassification)
    output = model(*inputs(), output_hidden_states=True)
    first, *_, last = output.hidden_states
    assert len(output.hidden_states) == 1 + 2
    assert first.shape == last.shape == (2 * 3, 6 + 5, 32)  # a sequence per frame
    token = model.backbone.encoder.norm(last).unflatten(0, (2, 3)).mean(1)[:, 0]
    logits = model.task_head(model.backbone.pooler(token))
    torch.testing.assert_close(logits, output.logits)
    torch.testing.assert_close(model(*inputs()).logits, output.logits)
    assert not model.backbone.encoder.blocks[0]._forward_hooks, "hooks are removed"
    with pytest.raises(ValueError, match="output_attentions"):
        model(*inputs(), output_attentions=True)


@pytest.mark.parametrize("name", ["eager", "flash_attention_2", "somebody/kernel"])
def test_attention_other_than_sdpa_is_refused(name: str, tmp_path: Path) -> None:
    model = made(AllInOneForVideoClassification)
    with pytest.raises(ValueError, match="attn_implementation="):
        model.set_attn_implementation(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attn_implementation="):
        type(model).from_pretrained(tmp_path, attn_implementation=name)
    assert type(model).from_pretrained(tmp_path, attn_implementation="sdpa")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "attn_implementation": name}))
    with pytest.raises(ValueError, match="attn_implementation"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("auto", "cls", "kind"),
    [
        ("AutoModelForVideoClassification", AllInOneForVideoClassification, "classes_linear"),
        ("AutoModelForVisualQuestionAnswering", AllInOneForQuestionAnswering, "answers_ce"),
        ("AutoModelForQuestionAnswering", AllInOneForQuestionAnswering, "answers_bce"),
        ("AutoModelForMultipleChoice", AllInOneForMultipleChoice, "option"),
        ("AutoModelForZeroShotImageClassification", AllInOneForRetrieval, "rank"),
    ],
)
def test_auto_classes_load_what_was_saved(
    auto: str, cls: type[AllInOneForTask], kind: str, tmp_path: Path
) -> None:
    model = made(cls, kind=kind)
    model.save_pretrained(tmp_path)
    loaded, facts = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is cls
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items()
    )
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is AllInOneModel


def test_pretrained_weights_give_masked_words_without_a_report(tmp_path: Path) -> None:
    model = AllInOneForPreTraining(AllInOneConfig(**SHAPE)).eval()
    model.save_pretrained(tmp_path)
    auto = transformers.AutoModelForMaskedLM
    loaded, facts = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    with torch.no_grad():
        expected = model.mlm_head(model(*inputs()).text)
        torch.testing.assert_close(loaded.eval()(*inputs()).logits, expected)
        features = model.get_video_features(inputs()[0]).pooler_output
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "128"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 10**9}, "at most 1,024"),
        ({"vocab_size": 10**12}, "vocab_size must be at most"),
        ({"hidden_dropout": "x"}, "is a probability"),
        ({"task": [1]}, "task must be an object"),
        ({"task": {"labels": [1, 2]}}, "task.labels must be a list of texts"),
        ({"id2label": [1]}, "id2label must map"),
        ({"id2label": {"0": "a", "7": "b"}}, "id2label must map"),
    ],
)
def test_hostile_values_of_a_config_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllInOneConfig(**{**SHAPE, **values})


def test_a_head_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="which AllInOneForRetrieval does not have"):
        made(AllInOneForRetrieval, kind="os.system")
