"""Translates the weights of pre-trained image and language models into parts of this model.

ViT and DeiT, under timm's or transformers' names, initialise the visual embeddings and the blocks;
BERT initialises the text embeddings.

Letters: P patches, C width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .convert import DISTILLATION, POSITION, without_distillation
from .load_report import ConversionError, LoadReport

VIDEO_PARTS = ("backbone.video_embeddings.", "backbone.encoder.")
TEXT_PART = "backbone.text_embeddings."

_BLOCK = r"backbone.encoder.blocks.\1"
_VIT_RENAMES = [
    (r"cls_token|embeddings\.cls_token", r"backbone.video_embeddings.class_token"),
    (r"dist_token|embeddings\.distillation_token", DISTILLATION),
    (r"pos_embed|embeddings\.position_embeddings", POSITION),
    (
        r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.(weight|bias)",
        r"backbone.video_embeddings.patch.\1",
    ),
    (r"(?:norm|layernorm)\.(weight|bias)", r"backbone.encoder.norm.\1"),
    # timm
    (r"blocks\.(\d+)\.(norm[12]\.\w+|mlp\.fc[12]\.\w+)", _BLOCK + r".\2"),
    (r"blocks\.(\d+)\.attn\.((?:qkv|proj)\.\w+)", _BLOCK + r".attention.\2"),
    # transformers: `layers` is version 5 in memory; files keep version 4's `encoder.layer`
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.(\w+)", _BLOCK + r".norm1.\2"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.(\w+)", _BLOCK + r".norm2.\2"),
    (
        r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)",
        _BLOCK + r".attention.\2.\3",
    ),
    (r"layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)", _BLOCK + r".attention.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", _BLOCK + r".attention.proj.\2"),
    (r"layers\.(\d+)\.attention\.o_proj\.(\w+)", _BLOCK + r".attention.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", _BLOCK + r".mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", _BLOCK + r".mlp.fc2.\2"),
    (r"layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", _BLOCK + r".mlp.\2.\3"),
]
_VIT_IGNORED = re.compile(
    r"(head|head_dist|classifier|cls_classifier|distillation_classifier|pooler|pre_logits)\..*"
    r"|embeddings\.mask_token"
)
_BERT_RENAMES = [
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", TEXT_PART + r"\1.weight"),
    # gamma and beta: files from before 2019
    (r"embeddings\.LayerNorm\.(?:weight|gamma)", TEXT_PART + "norm.weight"),
    (r"embeddings\.LayerNorm\.(?:bias|beta)", TEXT_PART + "norm.bias"),
]
_BERT_IGNORED = re.compile(r"(encoder|pooler|cls)\..*|embeddings\.position_ids")


def _rename(key: str, renames: list[tuple[str, str]]) -> str | None:
    for pattern, ours in renames:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    return None


def vit_weights(
    state_dict: Mapping[str, Tensor], report: LoadReport, distillation_token: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate a ViT or DeiT.

    The classifier is skipped and reported; separate query, key and value are joined.

    Args:
        state_dict: Tensors under timm's or transformers' names.
        report: Gets a line on everything that is skipped or new.
        distillation_token: The model has a distillation token. That of a DeiT is kept then, and
            dropped otherwise, with its position row. A ViT without one gets a position row of
            zeros; its token is missing in the result and keeps the model's initial value.

    Returns:
        (weights under this model's names, unknown keys).

    Raises:
        ConversionError: A block lacks query, key or value.
    """
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for full_key, tensor in state_dict.items():
        key = re.sub(r"^(vit|deit)\.", "", full_key)
        name = _rename(key, _VIT_RENAMES)
        if name == DISTILLATION and not distillation_token:
            report.ignored.append(
                f"{full_key}: the distillation token; its position row is dropped, too"
            )
        if name is not None:
            renamed[name] = tensor
        elif _VIT_IGNORED.fullmatch(key):
            report.ignored.append(f"{full_key}: the image model's own head")
        else:
            unexpected.append(full_key)
    _fit_distillation(renamed, report, distillation_token)
    return _with_fused_qkv(renamed), unexpected


def _fit_distillation(weights: dict[str, Tensor], report: LoadReport, wanted: bool) -> None:
    """Make the position rows match the model's prefix tokens.

    Args:
        weights: Changed in place: token and row are dropped, or a row of zeros is added.
        report: Gets a line on a new row.
        wanted: The model has a distillation token.
    """
    if DISTILLATION in weights and not wanted:
        del weights[DISTILLATION]
        if POSITION in weights:
            weights[POSITION] = without_distillation(weights[POSITION])
    elif wanted and DISTILLATION not in weights and POSITION in weights:
        position = weights[POSITION]
        # only the sum of token and row matters, and the token has a random initial value
        row = torch.zeros_like(position[:, :1])
        weights[POSITION] = torch.cat([position[:, :1], row, position[:, 1:]], dim=1)
        report.initialised.append(
            f"{POSITION}: the row of the distillation token is not in the file, zeros (a distilled"
            " DeiT has it; --distillation-token False makes a model without the token)"
        )


def _with_fused_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join each block's query, key and value into `attention.qkv`."""
    fused: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"(.*\.attention)\.(q|k|v|query|key|value)\.(\w+)", name):
            parts.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2][0]] = tensor
        else:
            fused[name] = tensor
    for name, found in parts.items():
        lacking = [f"{name} ({part})" for part in "qkv" if part not in found]
        if lacking:
            raise ConversionError(lacking, [], [])
        # rows in the order that Attention splits them; timm's fused qkv has the same order
        fused[name] = torch.cat([found[part] for part in "qkv"])
    return fused


def bert_weights(
    state_dict: Mapping[str, Tensor], report: LoadReport
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the embeddings of a BERT; its encoder and heads are skipped and reported.

    Returns:
        (weights under this model's names, unknown keys).
    """
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    left_out: dict[str, int] = {}
    for full_key, tensor in state_dict.items():
        key = full_key.removeprefix("bert.")
        name = _rename(key, _BERT_RENAMES)
        if name is not None:
            renamed[name] = tensor
        elif _BERT_IGNORED.fullmatch(key):
            part = key.split(".", 1)[0]
            left_out[part] = left_out.get(part, 0) + 1
        else:
            unexpected.append(full_key)
    report.ignored += [
        f"BERT's {part}: {number} tensors; only its embeddings are taken"
        for part, number in left_out.items()
    ]
    return renamed, unexpected
