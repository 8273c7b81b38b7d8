"""Every output and gradient norm of the original code, from its own weights through
from_reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import from_reference, reference_name
from tests.parity.configs import config_of

PARITY = Path(__file__).parents[1] / "parity"
FACTS = json.loads((PARITY / "golden_dev.json").read_text())
GOLDEN = load_file(PARITY / "golden_dev.safetensors")
TOLERANCE = 2e-5


def weights() -> dict[str, Tensor]:
    return {
        key.removeprefix("state_dict/"): value
        for key, value in GOLDEN.items()
        if key.startswith("state_dict/")
    }


def golden_config() -> AllInOneConfig:
    return config_of(FACTS["config"])


@pytest.fixture
def model() -> AllInOneForPreTraining:
    return from_reference(weights(), golden_config()).eval()


PIXELS = GOLDEN["input/pixels"].float()
IDS, MASK = GOLDEN["input/text_ids"].long(), GOLDEN["input/text_masks"].long()
ORDER = GOLDEN["input/patch_perm"].long()


def close(actual: Tensor, key: str) -> None:
    torch.testing.assert_close(
        actual, GOLDEN[f"output/{key}"], atol=TOLERANCE, rtol=0, msg=lambda text: f"{key}: {text}"
    )


@pytest.mark.parametrize(("prefix", "order"), [("", None), ("perm_", ORDER)])
def test_joint_pass_equals_the_original(
    model: AllInOneForPreTraining, prefix: str, order: Tensor | None
) -> None:
    with torch.no_grad():
        output = model(PIXELS, IDS, MASK, patch_order=order)
        close(output.text, f"{prefix}text_feats")
        close(output.video, f"{prefix}image_feats")
        close(output.pooled, f"{prefix}cls_feats")
        close(model.vtm_head(output.pooled), f"{prefix}itm_logits")
        if not prefix:
            close(output.text[:, 0], "raw_cls_feats")
            close(model.mlm_head(output.text), "mlm_logits")


def test_first_block_input_and_last_norm_output_equal_original(
    model: AllInOneForPreTraining,
) -> None:
    seen: dict[str, Tensor] = {}
    model.backbone.encoder.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.update(first_block_input=args[0])
    )
    model.backbone.encoder.norm.register_forward_hook(
        lambda _, __, output: seen.update(per_frame_feats=output)
    )
    with torch.no_grad():
        model(PIXELS, IDS, MASK)
    for key, value in seen.items():
        close(value, key)
    assert len(seen) == 2


def test_uni_modal_passes_equal_the_original(model: AllInOneForPreTraining) -> None:
    with torch.no_grad():
        text, video = model.encode_text(IDS, MASK), model.encode_video(PIXELS)
        close(text, "uni_text_cls")
        close(video, "uni_video_cls")
        text, video = model.text_projection(text), model.video_projection(video)
        close(text, "uni_text_proj")
        close(video, "uni_video_proj")
        text, video = F.normalize(text, dim=-1, eps=1e-8), F.normalize(video, dim=-1, eps=1e-8)
        close(text, "uni_text_norm")
        close(video, "uni_video_norm")
        close(text @ video.T, "sim")


def check_gradients(model: AllInOneForPreTraining, norms: dict[str, float | None]) -> None:
    parameters = dict(model.named_parameters())
    checked = 0
    for key, expected in norms.items():
        name = reference_name(key)
        assert name is not None, key
        gradient = parameters[name].grad
        if expected is None:
            assert gradient is None or not gradient.any(), key
        else:
            assert gradient is not None, key
            assert float(gradient.norm()) == pytest.approx(expected, rel=1e-4), key
            checked += 1
    assert checked > 30


def test_mlm_and_matching_losses_and_gradients_equal_original(
    model: AllInOneForPreTraining,
) -> None:
    output = model(PIXELS, IDS, MASK)
    mlm = F.cross_entropy(
        model.mlm_head(output.text).flatten(0, 1),
        GOLDEN["input/mlm_labels"].long().flatten(),
        ignore_index=-100,
    )
    itm = F.cross_entropy(model.vtm_head(output.pooled), GOLDEN["input/itm_labels"].long())
    assert float(mlm.detach()) == pytest.approx(FACTS["losses"]["mlm"], abs=TOLERANCE)
    assert float(itm.detach()) == pytest.approx(FACTS["losses"]["itm"], abs=TOLERANCE)
    (mlm + itm).backward()
    check_gradients(model, FACTS["grad_norms_of_total"])
    parameters = dict(model.named_parameters())
    for key in FACTS["full_gradients_of_total"]:
        name = reference_name(key.removeprefix("grad/"))
        torch.testing.assert_close(
            parameters[str(name)].grad, GOLDEN[key], atol=TOLERANCE, rtol=1e-4, msg=key
        )


def test_loss_and_gradients_of_contrast_equal_the_original(model: AllInOneForPreTraining) -> None:
    text = F.normalize(model.text_projection(model.encode_text(IDS, MASK)), dim=-1, eps=1e-8)
    video = F.normalize(model.video_projection(model.encode_video(PIXELS)), dim=-1, eps=1e-8)
    logits, target = text @ video.T / 0.05, torch.arange(3)
    loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    assert float(loss.detach()) == pytest.approx(FACTS["losses"]["ind_itc"], abs=TOLERANCE)
    loss.backward()
    check_gradients(model, FACTS["grad_norms_of_ind_itc"])
