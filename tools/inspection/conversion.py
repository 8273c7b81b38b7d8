"""Builds model folders from other weights, for `tools/convert.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from allinone.common.atomic_io import publish_dir
from allinone.common.errors import InputError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.processor import AllInOneProcessor, released_data_config, saved_options
from allinone.engine.checkpoint.layout import RUN, CheckpointError, WeightsKind
from allinone.engine.checkpoint.weights import resolve_weights
from allinone.engine.checkpoint.zero_reader import weights_from_shards
from allinone.finetune.task_model.source import SourceCheckpoint, read_source_checkpoint
from allinone.finetune.tasks.export import checked_tensors, exported_config
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import (
    DISTILLATION,
    HEADS,
    TEMPORAL,
    ConversionError,
    LoadReport,
    assemble,
    convert_reference,
    load_resized,
    reference_name,
)
from allinone.model.pretrained import TEXT_PART, VIDEO_PARTS, bert_weights, vit_weights
from allinone.model.weights_file import locate, read_weights
from allinone.tools.inspection.model_card import model_card
from allinone.tools.inspection.model_inspection import find_checkpoint
from allinone.tools.inspection.remote_code import AUTO_MAP, PROCESSOR_MAP, code_files

log = logging.getLogger(__name__)

_JOINT = ("backbone.modality.", "backbone.pooler.", *HEADS)
"""Parts that no image model and no language model has."""


def check_out(out: Path) -> None:
    """Refuse, before any work, an output folder that would be overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"--out {out} exists and is not an empty folder; give a new one, or remove it"
        )


def _publish(
    model: AllInOneForPreTraining, report: LoadReport, out: Path, data: DataConfig | None = None
) -> None:
    """Write the model folder and report where each tensor came from.

    Args:
        model: The model.
        report: Origin of each tensor.
        out: The model folder to write.
        data: How inputs are made; None for ImageNet's normalisation and crops.
    """
    config = model.config
    config.architectures = [type(model).__name__]
    source = SourceCheckpoint(
        out, model.state_dict(), config, "", report, {}, {}, data=data or DataConfig()
    )
    source.what = report.source
    _write_folder(config, source, out)
    log.info("%s", report)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s: written, %s parameters", out, f"{parameters:,}")


def _write_folder(
    config: AllInOneConfig,
    source: SourceCheckpoint,
    out: Path,
    run: Path | None = None,
    name: str = "",
) -> None:
    """Write weights, config, processor, tokenizer, code and model card; completely or not at all.

    Args:
        config: The exported config, with its class under `architectures`.
        source: The tensors, and what the card says about them.
        out: The folder.
        run: The run's folder, with its results; None if there is none.
        name: Under which the card loads it; empty for the folder's.
    """
    clip = ClipConfig(config.num_frames, config.image_size, config.max_text_len)
    processor = AllInOneProcessor.of(clip, source.data)
    config.auto_map, processor.auto_map = dict(AUTO_MAP), dict(PROCESSOR_MAP)

    def fill(folder: Path) -> None:
        """Write all files."""
        config.save_pretrained(folder)
        # the same entry as transformers writes; some of its versions refuse a file without it
        tensors = {name: tensor.contiguous() for name, tensor in source.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        processor.save_pretrained(folder)
        for file, content in code_files().items():
            (folder / file).write_text(content, encoding="utf-8")
        card = model_card(name or out.name, config, source, run)
        (folder / "README.md").write_text(card, encoding="utf-8")

    publish_dir(out, fill)


def from_reference(
    source: Path, out: Path, *, size: str, ignore: tuple[str, ...], shape: dict[str, Any], seed: int
) -> None:
    """Convert a Lightning checkpoint of the original code.

    Args:
        source: The file.
        out: The model folder to write.
        size: Name of the model's size.
        ignore: Prefixes of keys to skip.
        shape: Changes of the configuration, for example {"num_frames": 8}.
        seed: Seed of newly initialised parameters.

    Raises:
        InputError: The weights do not fit the model.
    """
    check_out(out)
    file = read_weights(source)
    # the original code always trains with shuffled patches
    shape = {"patch_order": "shuffled", "distillation_token": _is_distilled(file.tensors), **shape}
    config = AllInOneConfig.from_size(size, **shape)
    # for the parameters that the file lacks, which are initialised at random
    torch.manual_seed(seed)
    try:
        model, report = convert_reference(file.tensors, config, ignore, str(source))
    except ConversionError as error:
        hint = "; --ignore PREFIX … skips unexpected keys" if error.unexpected else ""
        raise InputError(f"{error}{hint}") from error
    report.notes += file.notes
    report.notes.append(f"patch_order: {config.patch_order} (the original trains with shuffled)")
    usual = AllInOneConfig.from_size(size).distillation_token
    if config.distillation_token != usual:
        report.notes.append(
            f"distillation_token: {config.distillation_token} as in the file, {usual} is usual for"
            f" {size}; pre-training from this folder needs --distillation-token"
            f" {config.distillation_token}"
        )
    data = released_data_config(file.tensors)
    report.notes.append(
        f"geometry: {data.geometry}, mean {data.mean[0]:g}, std {data.std[0]:g} in"
        " processor_config.json (how the original makes the inputs of this checkpoint)"
    )
    _publish(model, report, out, data)


def _is_distilled(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file of the original code has a distillation token."""
    return any(reference_name(key) == DISTILLATION for key in tensors)


def from_vit(
    source: str, out: Path, *, size: str, bert: str | None, shape: dict[str, Any], seed: int
) -> None:
    """Initialise a model from a ViT or DeiT, and optionally the text embeddings of a BERT.

    Args:
        source: File, folder of save_pretrained, or hub id.
        out: The model folder to write.
        size: Name of the model's size.
        bert: Source of the text embeddings; they are initialised at random without it.
        shape: Changes of the configuration.
        seed: Seed of newly initialised parameters.
    """
    check_out(out)
    config = AllInOneConfig.from_size(size, **shape)
    report = LoadReport(source if bert is None else f"{source} and {bert}")
    weights, unexpected = vit_weights(
        read_weights(locate(source)).tensors, report, config.distillation_token
    )
    new: tuple[str, ...] = (TEMPORAL, DISTILLATION, TEXT_PART, *_JOINT)
    if bert is not None:
        text, surplus = bert_weights(read_weights(locate(bert)).tensors, report)
        weights = {**weights, **text}
        unexpected = [*unexpected, *surplus]
        new = (TEMPORAL, DISTILLATION, *_JOINT)
    torch.manual_seed(seed)
    model = assemble(config, weights, report, unexpected=unexpected, may_be_new=new)
    _publish(model, report, out)


def from_bert(
    source: str,
    out: Path,
    *,
    size: str | None,
    model: Path | None,
    shape: dict[str, Any],
    seed: int,
) -> None:
    """Take the text embeddings of a BERT.

    Args:
        source: File, folder of save_pretrained, or hub id.
        out: The model folder to write.
        size: Name of the size of a new model; None with `model`.
        model: Model folder whose other weights are kept.
        shape: Changes of the configuration.
        seed: Seed of newly initialised parameters.
    """
    check_out(out)
    report = LoadReport(source)
    torch.manual_seed(seed)
    kept: dict[str, torch.Tensor] = {}
    new: tuple[str, ...] = (*VIDEO_PARTS, *_JOINT)
    data: DataConfig | None = None
    if model is not None:
        model = resolve_weights(model).path
        config = AllInOneConfig.from_pretrained(model, **shape)
        loaded, report = load_resized(model, config)
        report.source = f"{source} and {model}"
        kept = dict(loaded.state_dict())
        data = saved_options(model)[1]
        new = ()
    else:
        config = AllInOneConfig.from_size(str(size), **shape)
    text, unexpected = bert_weights(read_weights(locate(source)).tensors, report)
    weights = {**kept, **text}
    joined = assemble(config, weights, report, unexpected=unexpected, may_be_new=new)
    _publish(joined, report, out, data)


def to_safetensors(
    checkpoint: Path,
    out: Path,
    *,
    from_shards: bool,
    push_to_hub: str | None = None,
    kind: WeightsKind = "raw",
) -> None:
    """Export trained weights as a folder for transformers, the head of a fine-tuned model included.

    Args:
        checkpoint: What `resolve_weights` takes; a run gives its best weights.
        out: The model folder to write.
        from_shards: Join the ZeRO partitions of a checkpoint, or of a run's newest one, instead of
            copying the gathered weights, which may then be missing or damaged.
        push_to_hub: Also upload the folder to this repository, which is created private.
        kind: Which weights of the run or checkpoint.

    Raises:
        CheckpointError: There are no weights, or they are damaged.
        InputError: The hub did not take the folder.
    """
    check_out(out)
    if from_shards and kind == "ema":
        raise InputError(
            "--from-shards joins the trained weights only, not their moving average; leave out one"
            " of --from-shards and --weights ema"
        )
    if from_shards:
        folder = find_checkpoint(checkpoint, without="weights/model.safetensors")
        if folder is None:
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint of this program: it has no manifest.json; give"
                " runs/NAME/checkpoints/step-… or runs/NAME"
            )
        # joining takes minutes and may find damage
        source = read_source_checkpoint(folder, weights_from_shards(folder))
        source.what = f"ZeRO partitions of {folder}"
    else:
        source = read_source_checkpoint(checkpoint, kind=kind)
    cls, config = exported_config(source)
    checked_tensors(cls, config, source.tensors)
    # OUT/checkpoints/step-…/weights and OUT/best/step-…/weights
    run = source.path.parents[2] if len(source.path.parents) > 2 else None
    run = run if run and (run / RUN).is_file() else None
    _write_folder(config, source, out, run, push_to_hub or "")
    log.info("%s: %s, written from %s", out, cls.__name__, source.what)
    if push_to_hub:
        log.info("%s", _upload(out, push_to_hub))


def _upload(folder: Path, repository: str) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    # OSErrors, ValueErrors and those of the HTTP library
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"--push-to-hub {repository}: the hub did not take {folder} ({type(error).__name__}:"
            f" {reason[0][:160] if reason else ''}); the folder is complete, push it again with `hf"
            f" upload {repository} {folder}`"
        ) from error
