"""Every output of the original's distilled class, which the paper's small size is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from allinone.model import AllInOneForPreTraining
from allinone.model.convert import convert_reference
from allinone.pretrain.objectives.optimal_transport import word_patch_distance
from tests.model.test_golden import PARITY, TOLERANCE
from tests.parity.configs import config_of

FACTS = json.loads((PARITY / "golden_distilled_dev.json").read_text())
GOLDEN = load_file(PARITY / "golden_distilled_dev.safetensors")
CONFIG = config_of(FACTS["config"], distillation_token=True)
PIXELS = GOLDEN["input/pixels"].float()
IDS, MASK = GOLDEN["input/text_ids"].long(), GOLDEN["input/text_masks"].long()
ORDER = GOLDEN["input/patch_perm"].long()


def weights() -> dict[str, Tensor]:
    return {
        key.removeprefix("state_dict/"): value
        for key, value in GOLDEN.items()
        if key.startswith("state_dict/")
    }


@pytest.fixture
def model() -> AllInOneForPreTraining:
    return convert_reference(weights(), CONFIG)[0].eval()


@torch.no_grad()
def outputs(model: AllInOneForPreTraining) -> dict[str, Tensor]:
    """Everything that the golden file holds, by its names."""
    found: dict[str, Tensor] = {}
    for prefix, order in (("", None), ("perm_", ORDER)):
        joint = model(PIXELS, IDS, MASK, patch_order=order)
        found |= {
            f"{prefix}text_feats": joint.text,
            f"{prefix}image_feats": joint.video,
            f"{prefix}cls_feats": joint.pooled,
            f"{prefix}itm_logits": model.vtm_head(joint.pooled),
            f"{prefix}mlm_logits": model.mlm_head(joint.text),
        }
    return found | {
        "uni_text_cls": model.encode_text(IDS, MASK),
        "uni_video_cls": model.encode_video(PIXELS),
        "wpa_distance": word_patch_distance(
            found["text_feats"], found["image_feats"], MASK, CONFIG.num_prefix_tokens
        ),
    }


def test_every_output_equals_the_original(model: AllInOneForPreTraining) -> None:
    found = outputs(model)
    assert {f"output/{key}" for key in found} == {
        key for key in GOLDEN if key.startswith("output/")
    }
    for key, value in found.items():
        expected = GOLDEN[f"output/{key}"]
        torch.testing.assert_close(value, expected, atol=TOLERANCE, rtol=0, msg=key)


def test_only_the_untrained_temporal_embedding_is_left_out() -> None:
    model, report = convert_reference(weights(), CONFIG)
    assert [line.split(":")[0] for line in report.ignored] == ["transformer.temporal_embed"]
    assert GOLDEN["state_dict/transformer.temporal_embed"].abs().max() > 0.1
    assert model.backbone.video_embeddings.temporal is None
    new = {line.split(":")[0] for line in report.initialised}
    assert new == {
        *(f"{side}_projection.{part}" for side in ("text", "video") for part in ("weight", "bias")),
        "logit_scale.log_scale",
    }


def test_a_loss_reaches_every_parameter_of_the_backbone(model: AllInOneForPreTraining) -> None:
    joint = model(PIXELS, IDS, MASK)
    (joint.text.square().sum() + joint.pooled.square().sum()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
