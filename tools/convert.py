#!/usr/bin/env python3
"""Convert, inspect and compare weights.

A model folder is what save_pretrained writes; from_pretrained, the Auto classes and
`pretrain/train.py --init-from` read it. Nothing in a file is executed, an output folder is written
completely or not at all, and a non-empty folder is never overwritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tyro.conf import Positional, arg

from allinone.common.command_line import Choice, choose, run_command
from allinone.common.errors import AllInOneError, InputError
from allinone.engine.checkpoint.layout import WeightsKind
from allinone.tools.inspection.options import PatchOrder, Size, require_one


@dataclass(frozen=True, kw_only=True)
class ModelFolderOptions:
    """Options of the commands that build a model."""

    out: Path
    """Model folder to write; new or empty."""
    frames: int | None = None
    """Frames per clip; the size's by default."""
    image_size: int | None = None
    """Height and width of a frame in pixels; the size's by default."""
    max_text_len: int | None = None
    """Word pieces per caption, [CLS] and [SEP] included; the size's by default."""
    patch_size: int | None = None
    """Height and width of a patch in pixels; the size's by default."""
    patch_order: PatchOrder | None = None
    """Which patches roll."""
    distillation_token: bool | None = None
    """DeiT's distillation token as a second visual token, without a temporal embedding; by default
    the size's, and that of the file in from-reference."""
    seed: int = 0
    """Seed of newly initialised parameters."""

    def shape(self) -> dict[str, Any]:
        """The model's configuration entries that were given."""
        entries = {
            "num_frames": self.frames,
            "image_size": self.image_size,
            "max_text_len": self.max_text_len,
            "patch_size": self.patch_size,
            "patch_order": self.patch_order,
            "distillation_token": self.distillation_token,
        }
        return {name: value for name, value in entries.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class FromReferenceOptions(ModelFolderOptions):
    """Options of from-reference."""

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """Lightning checkpoint."""
    size: Literal["tiny", "small", "base"]
    """Size of the model."""
    ignore: tuple[str, ...] = ()
    """Skip keys with these prefixes, such as vqa_classifier."""

    def run(self) -> None:
        """Run the command."""
        from allinone.tools.inspection.conversion import from_reference

        from_reference(
            self.source,
            self.out,
            size=self.size,
            ignore=self.ignore,
            shape=self.shape(),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class FromVitOptions(ModelFolderOptions):
    """Options of from-vit."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """File, folder of save_pretrained, or hub id."""
    size: Size
    """Size of the model."""
    bert: str | None = None
    """Take the text embeddings from this BERT: file, folder of save_pretrained, or hub id."""

    def run(self) -> None:
        """Run the command."""
        from allinone.tools.inspection.conversion import from_vit

        from_vit(
            self.source,
            self.out,
            size=self.size,
            bert=self.bert,
            shape=self.shape(),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class FromBertOptions(ModelFolderOptions):
    """Options of from-bert. Give either --size or --model."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """File, folder of save_pretrained, or hub id."""
    size: Size | None = None
    """Start a new model of this size."""
    model: Path | None = None
    """Keep the other weights of this model folder, which is not changed."""

    def run(self) -> None:
        """Run the command."""
        require_one(("--size", self.size), ("--model", self.model))
        from allinone.tools.inspection.conversion import from_bert

        from_bert(
            self.source,
            self.out,
            size=self.size,
            model=self.model,
            shape=self.shape(),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class ToSafetensorsOptions:
    """Options of to-safetensors."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """Run (its best weights, else its newest checkpoint), checkpoint, model folder, file of
    weights, or hub id (owner/name)."""
    out: Path
    """Model folder to write; new or empty."""
    from_shards: bool = False
    """Join the ZeRO partitions of a checkpoint, or of a run's newest one, instead of copying
    weights/, which may then be lost."""
    weights: WeightsKind = "raw"
    """raw, or ema: the moving average of the weights, of a run that was trained with --ema."""
    push_to_hub: str | None = None
    """Also upload the folder to this repository of the model hub, owner/name, which is created
    private."""

    def run(self) -> None:
        """Run the command."""
        from allinone.tools.inspection.conversion import to_safetensors

        to_safetensors(
            self.checkpoint,
            self.out,
            from_shards=self.from_shards,
            kind=self.weights,
            push_to_hub=self.push_to_hub,
        )


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of inspect."""

    path: Positional[Path]
    """Run, checkpoint, model folder, .safetensors or torch.save file."""
    json: bool = False
    """Print one line of JSON."""

    def run(self) -> None:
        """Run the command."""
        from allinone.tools.inspection.model_inspection import describe, load_any, table

        facts = describe(load_any(self.path))
        print(json.dumps(facts) if self.json else table(facts))


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Options of diff."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """Run, checkpoint, model folder, .safetensors or torch.save file."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """The other one."""
    limit: int = 20
    """Rows of differing values; 0 shows all."""
    json: bool = False
    """Print one line of JSON."""

    def run(self) -> int:
        """Run the command."""
        from allinone.tools.inspection import model_inspection as inspection

        tensors = [inspection.load_any(path).tensors for path in (self.a, self.b)]
        result = inspection.compare(*tensors)
        if self.json:
            print(json.dumps(result))
        else:
            print(inspection.difference_table(result, self.limit))
        return int(inspection.differs(result))


COMMANDS = {
    "from-reference": Choice(
        "Lightning checkpoint of the original code (also co-trained) → model folder",
        FromReferenceOptions,
    ),
    "from-vit": Choice(
        "ImageNet weights of a ViT or DeiT (timm or transformers), and a BERT's embeddings"
        " → new model folder",
        FromVitOptions,
    ),
    "from-bert": Choice(
        "word, position and type embeddings of a BERT → model folder, new or with the other weights"
        " of --model",
        FromBertOptions,
    ),
    "to-safetensors": Choice(
        "trained weights, any ZeRO stage and world size → model folder for transformers, with head,"
        " processor, code and model card",
        ToSafetensorsOptions,
    ),
    "inspect": Choice("parameters, shapes, dtypes and training state", InspectOptions),
    "diff": Choice(
        "compare two sets of weights, largest differences first; exit code 1 if they differ",
        DiffOptions,
    ),
}


def _run(argv: Sequence[str]) -> int | None:
    _, options = choose(
        COMMANDS, argv, prog="tools/convert.py", kind="command", description=__doc__ or ""
    )
    from allinone.engine.distributed import launch

    launch.prepare_environment()  # before torch is imported
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return options.run()
    except AllInOneError:
        raise
    except (ValueError, OSError) as error:  # unreadable weights, and what transformers raises
        raise InputError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code, 1 if `diff` found differences."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
