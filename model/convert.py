"""Weights of the original All-in-one code → this model. Tables of another length are resized and reported, never silently re-initialised."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.all_in_one import AllInOneForPreTraining
from model.config import AllInOneConfig

logger = logging.getLogger(__name__)

_RENAMES = [
    (r"text_embeddings\.(word|position|token_type)_embeddings\.weight", r"backbone.text_embeddings.\1.weight"),
    (r"text_embeddings\.LayerNorm\.(weight|bias)", r"backbone.text_embeddings.norm.\1"),
    (r"token_type_embeddings\.weight", r"backbone.modality.weight"),
    (r"transformer\.cls_token", r"backbone.video_embeddings.class_token"),
    (r"transformer\.pos_embed", r"backbone.video_embeddings.position"),
    (r"transformer\.temporal_embed", r"backbone.video_embeddings.temporal"),
    (r"transformer\.patch_embed\.proj\.(weight|bias)", r"backbone.video_embeddings.patch.\1"),
    (r"transformer\.blocks\.(\d+)\.(norm[12]\.\w+|mlp\.fc[12]\.\w+)", r"backbone.encoder.blocks.\1.\2"),
    (r"transformer\.blocks\.(\d+)\.attn\.(\w+\.\w+)", r"backbone.encoder.blocks.\1.attention.\2"),
    (r"transformer\.norm\.(weight|bias)", r"backbone.encoder.norm.\1"),
    (r"pooler\.dense\.(weight|bias)", r"backbone.pooler.dense.\1"),
    (r"mlm_score\.transform\.dense\.(weight|bias)", r"mlm_head.dense.\1"),
    (r"mlm_score\.transform\.LayerNorm\.(weight|bias)", r"mlm_head.norm.\1"),
    (r"mlm_score\.decoder\.weight", r"mlm_head.decoder.weight"),
    (r"mlm_score\.bias", r"mlm_head.decoder.bias"),
    (r"(?:itm|vtm)_score\.fc\.(weight|bias)", r"vtm_head.\1"),  # the co-trained weights call matching vtm
    (r"txt_proj\.(weight|bias)", r"text_projection.\1"),
    (r"vid_proj\.(weight|bias)", r"video_projection.\1"),
]
_IGNORED = {"text_embeddings.position_ids"}  # a buffer 0..39 that old transformers saved
_DISTILLATION = "transformer.dist_token"
_POSITION = "backbone.video_embeddings.position"
_TEMPORAL = "backbone.video_embeddings.temporal"
_TEXT_POSITION = "backbone.text_embeddings.position.weight"
_CONTRASTIVE = ("text_projection.", "video_projection.", "logit_scale.")  # not in the released pre-training files


class ConversionError(ValueError):
    """A state dict does not fit: lists missing, unexpected and mis-shaped keys."""

    def __init__(self, missing: list[str], unexpected: list[str], misshaped: list[str]) -> None:
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        parts = [
            f"{len(names)} {title}: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
            if names
        ]
        super().__init__("the weights do not fit the model; " + "; ".join(parts))


@dataclass
class LoadReport:
    """What happened to each tensor that was not taken as it is."""

    loaded: int = 0
    resized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded"]
        for title in ("resized", "ignored", "initialised"):
            lines += [f"{title}: {entry}" for entry in getattr(self, title)]
        return "\n".join(lines)


def reference_name(key: str) -> str | None:
    """The name of a reference key in this model, or None if it has none."""
    for pattern, ours in _RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    return None


def resize_rows(table: Tensor, rows: int) -> Tensor:
    """[R, C] → [rows, C] by linear interpolation over the rows; the ends stay."""
    if table.shape[0] == 1 or rows == 1:
        return table[:1].expand(rows, -1).clone()
    return F.interpolate(table.T[None].float(), size=rows, mode="linear", align_corners=True)[0].T.to(table.dtype)


def resize_grid(position: Tensor, patches: int) -> Tensor:
    """[1, 1 + P, C] → [1, 1 + patches, C]: class row kept, square patch grid interpolated bicubically (as ViT fine-tuning does)."""
    old, new = math.isqrt(position.shape[1] - 1), math.isqrt(patches)
    grid = position[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1], grid.flatten(2).transpose(1, 2).to(position.dtype)], dim=1)


def _resize(name: str, tensor: Tensor, shape: torch.Size, report: LoadReport) -> Tensor:
    """Resize one of the three tables that depend on text length, frame count and resolution; anything else stays as it is."""
    if tensor.shape == shape or tensor.dim() != len(shape) or tensor.shape[-1] != shape[-1]:
        return tensor
    if name == _TEXT_POSITION:
        longer = shape[0] > tensor.shape[0]
        how = "linearly interpolated" if longer else "cut"
        resized = resize_rows(tensor, shape[0]) if longer else tensor[: shape[0]]
    elif name == _TEMPORAL:
        how, resized = "linearly interpolated", resize_rows(tensor[0], shape[1])[None]
    elif name == _POSITION and math.isqrt(tensor.shape[1] - 1) ** 2 == tensor.shape[1] - 1:
        how, resized = "bicubically interpolated", resize_grid(tensor, shape[1] - 1)
    else:
        return tensor
    report.resized.append(f"{name} {list(tensor.shape)} → {list(shape)}, {how}")
    return resized


def convert_reference(state_dict: Mapping[str, Tensor], config: AllInOneConfig) -> tuple[AllInOneForPreTraining, LoadReport]:
    """Build the model of `config` with the reference's weights; raises ConversionError listing all that does not fit."""
    model = AllInOneForPreTraining(config)
    own, report = model.state_dict(), LoadReport()
    converted: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in state_dict.items():
        name = reference_name(key)
        if key in _IGNORED:
            report.ignored.append(f"{key}: a buffer, not a weight")
        elif key == _DISTILLATION:
            report.ignored.append(f"{key}: DeiT's distillation token; its position row goes with it")
        elif name is None:
            unexpected.append(key)
        else:
            converted[name] = tensor
    if _DISTILLATION in state_dict and _POSITION in converted:
        converted[_POSITION] = torch.cat([converted[_POSITION][:, :1], converted[_POSITION][:, 2:]], dim=1)
    if _TEMPORAL not in converted:
        converted[_TEMPORAL] = torch.zeros_like(own[_TEMPORAL])  # some released files predate the temporal embedding
        report.initialised.append(f"{_TEMPORAL}: not in the file, zeros (the model was trained without it)")
    missing = []
    for name in own.keys() - converted.keys():
        if name.startswith(_CONTRASTIVE):
            report.initialised.append(f"{name}: not in the file, new")
        else:
            missing.append(name)
    converted = {name: _resize(name, tensor, own[name].shape, report) for name, tensor in converted.items()}
    misshaped = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in converted.items()
        if tensor.shape != own[name].shape
    ]
    if missing or unexpected or misshaped:
        raise ConversionError(sorted(missing), sorted(unexpected), sorted(misshaped))
    model.load_state_dict(converted, strict=False)
    report.loaded = len(converted)
    return model, report


def from_reference(state_dict: Mapping[str, Tensor], config: AllInOneConfig) -> AllInOneForPreTraining:
    """convert_reference with its report logged."""
    model, report = convert_reference(state_dict, config)
    logger.info("%s", report)
    return model
