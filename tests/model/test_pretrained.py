"""ViT, DeiT and BERT weights against the models that they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
)

from allinone.finetune.task_model.source import config_fields
from allinone.model import AllInOneConfig
from allinone.model.convert import (
    DISTILLATION,
    HEADS,
    POSITION,
    TEMPORAL,
    ConversionError,
    LoadReport,
    assemble,
    rename_reference,
)
from allinone.model.pretrained import TEXT_PART, bert_weights, vit_weights
from tests.tools.lightning import state_dict

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = AllInOneConfig(**SHAPE, image_size=48, vocab_size=50, max_text_len=9, projection_dim=8)
NEW = (TEMPORAL, "backbone.modality.", "backbone.pooler.", *HEADS)
IMAGE = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        **SHAPE, intermediate_size=128, image_size=48, layer_norm_eps=1e-6, num_labels=3
    )
    model = ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # so that no bias or norm is trivial
    return model


def video_only(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Class token of an image in the model with these weights; the modality table, which ViTs do
    not have, is zero."""
    model = assemble(CONFIG, weights, LoadReport(), may_be_new=(*NEW, TEXT_PART)).eval()
    model.backbone.modality.weight.data.zero_()
    with torch.no_grad():
        return model.encode_video(pixels[:, None])


@pytest.mark.parametrize("names", ["memory", "file"])
def test_an_image_gives_what_the_vit_gives(tmp_path: Path, names: str) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    given = (
        dict(model.state_dict()) if names == "memory" else load_file(tmp_path / "model.safetensors")
    )
    report = LoadReport()
    weights, unexpected = vit_weights(given, report)
    assert not unexpected
    assert {line.split(":")[0] for line in report.ignored} == {
        "classifier.weight",
        "classifier.bias",
    }
    with torch.no_grad():
        expected = model.vit(IMAGE).last_hidden_state[:, 0]
    torch.testing.assert_close(video_only(weights, IMAGE), expected, atol=1e-5, rtol=0)


def test_distillation_token_and_its_position_are_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deit = DeiTModel(DeiTConfig(**SHAPE, intermediate_size=128, image_size=48))
    deit.embeddings.position_embeddings.data.normal_()
    deit.save_pretrained(tmp_path)
    report = LoadReport()
    weights, unexpected = vit_weights(load_file(tmp_path / "model.safetensors"), report)
    assert not unexpected
    assert any("distillation_token" in line for line in report.ignored)
    position = deit.embeddings.position_embeddings
    assert torch.equal(weights[POSITION][0], torch.cat([position[0, :1], position[0, 2:]]))


@torch.no_grad()
def test_a_distilled_deits_tokens_equal_those_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deit = DeiTModel(
        DeiTConfig(**SHAPE, intermediate_size=128, image_size=48, layer_norm_eps=1e-6)
    ).eval()
    for parameter in deit.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    deit.save_pretrained(tmp_path)
    report = LoadReport()
    weights, unexpected = vit_weights(load_file(tmp_path / "model.safetensors"), report, True)
    assert not unexpected
    assert not report.initialised
    config = AllInOneConfig(**{**config_fields(CONFIG), "distillation_token": True})
    model = assemble(config, weights, report, may_be_new=(*NEW, TEXT_PART)).eval()
    model.backbone.modality.weight.zero_()
    backbone = model.backbone
    tokens = backbone.encoder(backbone.modality(backbone.video_embeddings(IMAGE[:, None]), 1))
    expected = deit(IMAGE).last_hidden_state  # class, distillation, patches
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_vit_without_the_token_says_what_is_missing() -> None:
    report = LoadReport()
    weights, _ = vit_weights(dict(vit().state_dict()), report, True)
    assert any("row of the distillation token is not in the file" in x for x in report.initialised)
    config = AllInOneConfig(**{**config_fields(CONFIG), "distillation_token": True})
    with pytest.raises(ConversionError, match=r"1 missing: .*distillation_token"):
        assemble(config, weights, LoadReport(), may_be_new=(*NEW, TEXT_PART))
    model = assemble(config, weights, report, may_be_new=(*NEW, TEXT_PART, DISTILLATION))
    assert f"{DISTILLATION}: not in the file, new" in report.initialised
    position, plain = model.backbone.video_embeddings.position, vit().vit.embeddings
    assert torch.equal(position[:, [0, *range(2, 11)]], plain.position_embeddings)
    assert not position[:, 1].any()


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_timm_names_map_like_the_original_checkpoint(
    size: str,
) -> None:
    original = state_dict(size)
    timm = {
        key.removeprefix("transformer."): value
        for key, value in original.items()
        if key.startswith("transformer.")
    }
    del timm["temporal_embed"]
    timm |= {"head.weight": torch.zeros(1000, 4), "head_dist.bias": torch.zeros(1000)}
    distilled = size == "small"
    weights, unexpected = vit_weights(timm, LoadReport(), distilled)
    expected, _ = rename_reference(original, LoadReport())
    assert not unexpected
    assert len(weights) == 12 * 12 + 6 + distilled
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_a_missing_part_of_qkv_and_foreign_keys_are_named() -> None:
    given = dict(vit().state_dict())
    del given["vit.layers.1.attention.k_proj.bias"]
    with pytest.raises(ConversionError, match=r"blocks\.\*\.attention\.qkv\.bias \(k\)"):
        vit_weights(given, LoadReport())
    _, unexpected = vit_weights({"reg_token": torch.zeros(1)}, LoadReport())
    assert unexpected == ["reg_token"]


@pytest.mark.parametrize("old_names", [False, True])
def test_words_are_embedded_as_by_bert(old_names: bool) -> None:
    torch.manual_seed(0)
    sizes = {"intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 20}
    bert = BertModel(BertConfig(**SHAPE, **sizes)).eval()
    for parameter in bert.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    given = {f"bert.{key}": value for key, value in bert.state_dict().items()}
    if old_names:  # bert-base-uncased is stored so
        given = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): v
            for key, v in given.items()
        }
    report = LoadReport()
    weights, unexpected = bert_weights(given, report)
    assert not unexpected
    images, _ = vit_weights(dict(vit().state_dict()), LoadReport())
    model = assemble(CONFIG, {**images, **weights}, report, may_be_new=NEW).eval()
    assert any("[20, 32] → [9, 32], cut" in line for line in report.resized)
    assert not any(TEXT_PART in line for line in report.initialised)
    ids = torch.randint(0, 50, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            model.backbone.text_embeddings(ids), bert.embeddings(ids), atol=1e-6, rtol=0
        )
