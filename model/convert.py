"""Loads the original's weights, and weights of another input size, into this model.

Three tables depend on the input size. They are resized and reported, never re-initialised as in the
original:

- text positions: truncated, or extended by copies of the last row
- temporal embedding: interpolated linearly over frames
- patch positions: interpolated bicubically over the patch grid
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .all_in_one import AllInOneForPreTraining, AllInOnePreTrainedModel
from .config import SIZES, AllInOneConfig
from .load_report import ConversionError, LoadReport, grouped
from .resize import continue_rows, is_square, resize_grid, resize_rows
from .weights_file import read_weights

__all__ = [
    "CONTRASTIVE",
    "DISTILLATION",
    "HEADS",
    "POSITION",
    "TEMPORAL",
    "TEXT_POSITION",
    "ConversionError",
    "LoadReport",
    "assemble",
    "convert_reference",
    "fit",
    "from_reference",
    "grouped",
    "load_resized",
    "reference_name",
    "rename_reference",
    "resize_grid",
    "without_distillation",
]

logger = logging.getLogger(__name__)

_RENAMES = [
    (
        r"text_embeddings\.(word|position|token_type)_embeddings\.weight",
        r"backbone.text_embeddings.\1.weight",
    ),
    (r"text_embeddings\.LayerNorm\.(weight|bias)", r"backbone.text_embeddings.norm.\1"),
    # the modality table, not BERT's token types above
    (r"token_type_embeddings\.weight", r"backbone.modality.weight"),
    (r"transformer\.cls_token", r"backbone.video_embeddings.class_token"),
    (r"transformer\.dist_token", r"backbone.video_embeddings.distillation_token"),
    (r"transformer\.pos_embed", r"backbone.video_embeddings.position"),
    (r"transformer\.temporal_embed", r"backbone.video_embeddings.temporal"),
    (r"transformer\.patch_embed\.proj\.(weight|bias)", r"backbone.video_embeddings.patch.\1"),
    (
        r"transformer\.blocks\.(\d+)\.(norm[12]\.\w+|mlp\.fc[12]\.\w+)",
        r"backbone.encoder.blocks.\1.\2",
    ),
    (r"transformer\.blocks\.(\d+)\.attn\.(\w+\.\w+)", r"backbone.encoder.blocks.\1.attention.\2"),
    (r"transformer\.norm\.(weight|bias)", r"backbone.encoder.norm.\1"),
    (r"pooler\.dense\.(weight|bias)", r"backbone.pooler.dense.\1"),
    (r"mlm_score\.transform\.dense\.(weight|bias)", r"mlm_head.dense.\1"),
    (r"mlm_score\.transform\.LayerNorm\.(weight|bias)", r"mlm_head.norm.\1"),
    (r"mlm_score\.decoder\.weight", r"mlm_head.decoder.weight"),
    (r"mlm_score\.bias", r"mlm_head.decoder.bias"),
    # the co-trained weights name the matching head vtm, the others itm
    (r"(?:itm|vtm)_score\.fc\.(weight|bias)", r"vtm_head.\1"),
    (r"txt_proj\.(weight|bias)", r"text_projection.\1"),
    (r"vid_proj\.(weight|bias)", r"video_projection.\1"),
]
_IGNORED = {"text_embeddings.position_ids"}
"""A buffer, 0 to 39, that old versions of transformers save."""
DISTILLATION = "backbone.video_embeddings.distillation_token"
POSITION = "backbone.video_embeddings.position"
TEMPORAL = "backbone.video_embeddings.temporal"
TEXT_POSITION = "backbone.text_embeddings.position.weight"
WORDS = "backbone.text_embeddings.word.weight"
CONTRASTIVE = ("text_projection.", "video_projection.", "logit_scale.")
"""Prefixes that the released files lack: they were pre-trained without the contrastive loss."""
TASK_HEAD = "task_head."
"""Prefix of the head that fine-tuning adds."""
IMAGE_HEADS = ("image_mlm_head.", "image_vtm_head.")
HEADS = ("mlm_head.", "vtm_head.", *IMAGE_HEADS, *CONTRASTIVE)


def reference_name(key: str) -> str | None:
    """Translate a key of the original's state dict into this model's name; None if unknown."""
    for pattern, ours in _RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    return None


def _resize(
    name: str, tensor: Tensor, shape: torch.Size, report: LoadReport, prefix: int
) -> Tensor:
    """Resize a table that depends on the input size; return other tensors unchanged.

    Args:
        name: Parameter of the model.
        tensor: Its value in the file.
        shape: Its shape in the model.
        report: Gets a line on a resized table.
        prefix: Rows of the patch positions that belong to no patch.
    """
    # another width is another model: it is reported as mis-shaped, not interpolated
    if tensor.shape == shape or tensor.dim() != len(shape) or tensor.shape[-1] != shape[-1]:
        return tensor
    if name == TEXT_POSITION:
        how = "learned rows kept, the last one repeated" if shape[0] > tensor.shape[0] else "cut"
        resized = continue_rows(tensor, shape[0])
    elif name == TEMPORAL:
        how, resized = "linearly interpolated", resize_rows(tensor[0], shape[1])[None]
    elif name == POSITION and is_square(tensor.shape[1] - prefix):
        how = "bicubically interpolated"
        resized = resize_grid(tensor, shape[1] - prefix, prefix)
    else:
        return tensor
    report.resized.append(f"{name} {list(tensor.shape)} → {list(shape)}, {how}")
    return resized


def assemble(
    config: AllInOneConfig,
    weights: Mapping[str, Tensor],
    report: LoadReport,
    *,
    unexpected: Sequence[str] = (),
    may_be_new: tuple[str, ...] = (),
) -> AllInOneForPreTraining:
    """Build the model of `config` and load `weights` into it; the three tables are resized.

    Args:
        config: The model.
        weights: Tensors under this model's names.
        report: Filled in.
        unexpected: Further keys of the file that the model lacks.
        may_be_new: Prefixes of parameters that may be absent and keep their initial values.

    Raises:
        ConversionError: Lists everything that does not fit, `unexpected` included.
    """
    model = AllInOneForPreTraining(config)
    fit(model, weights, report, unexpected=unexpected, may_be_new=may_be_new)
    return model


def fit(
    model: AllInOnePreTrainedModel,
    weights: Mapping[str, Tensor],
    report: LoadReport,
    *,
    unexpected: Sequence[str] = (),
    may_be_new: tuple[str, ...] = (),
) -> None:
    """Load `weights` into `model`; the three tables are resized.

    Args:
        model: AllInOneForPreTraining, or another model with the same backbone.
        weights: Tensors under this model's names.
        report: Filled in.
        unexpected: Further keys of the file that the model lacks.
        may_be_new: Prefixes of parameters that may be absent and keep their initial values.

    Raises:
        ConversionError: Lists everything that does not fit, `unexpected` included.
    """
    fitted = fitted_weights(model, weights, report, unexpected=unexpected, may_be_new=may_be_new)
    # not strict: parameters that may be new keep their initial values; the rest is checked above
    model.load_state_dict(fitted, strict=False)


def fitted_weights(
    model: AllInOnePreTrainedModel,
    weights: Mapping[str, Tensor],
    report: LoadReport,
    *,
    unexpected: Sequence[str] = (),
    may_be_new: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Check `weights` against `model`, whose own values are not read; the three tables are resized.

    Args:
        model: As in `fit`; it may be on the meta device.
        weights: Tensors under this model's names.
        report: Filled in.
        unexpected: Further keys of the file that the model lacks.
        may_be_new: Prefixes of parameters that may be absent and keep their initial values.

    Returns:
        Name → tensor of the model's shape.

    Raises:
        ConversionError: Lists everything that does not fit, `unexpected` included.
    """
    own = model.state_dict()
    absent = [name for name in own if name not in weights]
    missing = [name for name in absent if not name.startswith(may_be_new)]
    report.initialised += [
        f"{name}: not in the file, new" for name in absent if name.startswith(may_be_new)
    ]
    surplus = [*unexpected, *(name for name in weights if name not in own)]
    fitted = {
        name: _resize(name, tensor, own[name].shape, report, model.config.num_prefix_tokens)
        for name, tensor in weights.items()
        if name in own
    }
    misshaped = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in fitted.items()
        if tensor.shape != own[name].shape
    ]
    if missing or surplus or misshaped:
        raise ConversionError(
            sorted(missing),
            sorted(surplus),
            sorted(misshaped),
            _hint(weights, model.config),
            report.source,
        )
    report.loaded = len(fitted)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in fitted.values()} - {"float32"}
    if dtypes:
        report.notes.append(f"{', '.join(sorted(dtypes))} in the file, float32 in the model")
    return fitted


def _hint(weights: Mapping[str, Tensor], config: AllInOneConfig) -> str:
    """The likely cause of a misfit and the option to change; empty if there is none."""
    words = weights.get(WORDS)
    if words is not None and words.shape[0] != config.vocab_size:
        return (
            f"the file has {words.shape[0]:,} words, the vocabulary of this project"
            f" {config.vocab_size:,} (BERT base uncased); weights with another vocabulary cannot be"
            " used"
        )
    width = weights[POSITION].shape[-1] if POSITION in weights else config.hidden_size
    if width != config.hidden_size:
        fitting = [name for name, values in SIZES.items() if values["hidden_size"] == width]
        return f"the file is {width} wide, the model {config.hidden_size}" + (
            f": try --size {fitting[0]}" if fitting else ""
        )
    has_token = DISTILLATION in weights
    if POSITION in weights and has_token != config.distillation_token:
        with_token, without = ("file", "model") if has_token else ("model", "file")
        return (
            f"the {with_token} has a distillation token, the {without} has none: give"
            f" --distillation-token {has_token}"
        )
    return ""


def rename_reference(
    state_dict: Mapping[str, Tensor], report: LoadReport
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the original's keys.

    The temporal embedding of a distilled model is left out: the original creates it, but its
    distilled class never adds it, so it has not been trained.

    Returns:
        (weights under this model's names, unknown keys).
    """
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in state_dict.items():
        name = reference_name(key)
        if key in _IGNORED:
            report.ignored.append(f"{key}: a buffer, not a weight")
        elif name is None:
            unexpected.append(key)
        else:
            renamed[name] = tensor
    if DISTILLATION in renamed and TEMPORAL in renamed:
        del renamed[TEMPORAL]
        report.ignored.append(
            "transformer.temporal_embed: untrained, the original adds it only in models without a"
            " distillation token"
        )
    return renamed, unexpected


def without_distillation(position: Tensor) -> Tensor:
    """Drop the distillation token's row, DeiT's second: [1, 2 + P, C] → [1, 1 + P, C]."""
    return torch.cat([position[:, :1], position[:, 2:]], dim=1)


def convert_reference(
    state_dict: Mapping[str, Tensor],
    config: AllInOneConfig,
    ignore: tuple[str, ...] = (),
    source: str = "",
) -> tuple[AllInOneForPreTraining, LoadReport]:
    """Build the model of `config` with the weights of the original code.

    Args:
        state_dict: Tensors under the original's names.
        config: The model.
        ignore: Prefixes of unknown keys to skip and report.
        source: Shown in the report and in errors.

    Raises:
        ConversionError: Lists everything that does not fit.
    """
    report = LoadReport(source)
    renamed, unexpected = rename_reference(state_dict, report)
    report.ignored += [f"{key}: asked for" for key in unexpected if key.startswith(ignore)]
    unexpected = [key for key in unexpected if not key.startswith(ignore)]
    # some released files predate the temporal embedding
    if config.has_temporal_embedding and TEMPORAL not in renamed and DISTILLATION not in renamed:
        renamed[TEMPORAL] = torch.zeros(1, config.num_frames, config.hidden_size)
        report.initialised.append(
            f"{TEMPORAL}: not in the file, zeros (the model was trained without it)"
        )
    return assemble(config, renamed, report, unexpected=unexpected, may_be_new=CONTRASTIVE), report


def from_reference(
    state_dict: Mapping[str, Tensor], config: AllInOneConfig
) -> AllInOneForPreTraining:
    """Convert as `convert_reference` does, and log the report."""
    model, report = convert_reference(state_dict, config)
    logger.info("%s", report)
    return model


def load_resized(folder: Path, config: AllInOneConfig) -> tuple[AllInOneForPreTraining, LoadReport]:
    """Build the model of `config` with the weights of a model folder or of a file.

    Resolution, frames and text length may differ. Heads that the weights lack keep their initial
    values: all of the bare AllInOneModel, and those that a fine-tuned model has dropped. Files of
    the original code are converted.

    Raises:
        WeightsError: The folder holds no weights.
        ConversionError: They do not fit.
    """
    file = read_weights(folder)
    if any(name.startswith("transformer.") for name in file.tensors):
        return convert_reference(file.tensors, config, source=str(folder))
    report = LoadReport(str(folder), notes=list(file.notes))
    bare = not any(name.startswith("backbone.") for name in file.tensors)
    weights = (
        {f"backbone.{name}": tensor for name, tensor in file.tensors.items()}
        if bare
        else file.tensors
    )
    own = {name for name in weights if name.startswith(TASK_HEAD)}
    report.ignored += [f"{name}: the head of a fine-tuned model" for name in sorted(own)]
    weights = {name: tensor for name, tensor in weights.items() if name not in own}
    model = assemble(
        config,
        _fit_image_heads(weights, config, report),
        report,
        may_be_new=HEADS if bare or file.facts.get("task") else (),
    )
    _compare_configs(file.facts, config, report)
    return model, report


def _fit_image_heads(
    weights: Mapping[str, Tensor], config: AllInOneConfig, report: LoadReport
) -> dict[str, Tensor]:
    """Copy the video heads to image heads that the file lacks, or drop surplus image heads.

    Args:
        weights: Tensors under this model's names.
        config: The model.
        report: Gets a line on each copied or dropped tensor.
    """
    kept = dict(weights)
    own = [name for name in weights if name.startswith(IMAGE_HEADS)]
    if own and not config.image_heads:
        report.ignored += [f"{name}: the model has no heads of its own for images" for name in own]
        kept = {name: tensor for name, tensor in kept.items() if name not in own}
    elif config.image_heads and not own:
        copies = {
            f"image_{name}": tensor
            for name, tensor in weights.items()
            if f"image_{name}".startswith(IMAGE_HEADS)
        }
        report.initialised += [
            f"{name}: not in the file, a copy of {name.removeprefix('image_')}" for name in copies
        ]
        kept |= copies
    return kept


def _compare_configs(saved: Mapping[str, Any], config: AllInOneConfig, report: LoadReport) -> None:
    """Report differences that are not visible in tensor shapes.

    Args:
        saved: config.json of the weights.
        config: The model.
        report: Gets a note on each difference.

    Raises:
        ConversionError: The number of attention heads differs: the same weights would compute
            something else.
    """
    heads = saved.get("num_attention_heads", config.num_attention_heads)
    if heads != config.num_attention_heads:
        hint = (
            f"they have {heads} attention heads, the model {config.num_attention_heads}; choose the"
            " same --size"
        )
        raise ConversionError([], [], [], hint, report.source)
    for name in ("roll", "roll_divisor", "patch_order"):
        if name in saved and saved[name] != getattr(config, name):
            report.notes.append(
                f"{name}: {saved[name]} in the folder, {getattr(config, name)} here"
            )
