#!/usr/bin/env python3
"""Weights in and out, and a look at them.

  from-reference   a checkpoint of the original All-in-one code → a model folder
  from-vit         ImageNet weights of a ViT or DeiT (and a BERT's embeddings) → a new model folder
  from-bert        a BERT's embeddings → a model folder, new or with the other weights of --model
  to-safetensors   a training checkpoint of this program → a model folder
  inspect          parameters, shapes, dtypes, training state of any of these
  diff             two of any of these, largest differences first; exit code 1 where they differ

A model folder is what save_pretrained writes: from_pretrained, the Auto classes and
`pretrain/train.py --init-from` read it. Nothing in a file is executed, an output folder is written
whole or not at all, and a folder that holds anything is never overwritten.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.engine.distributed import launch

launch.prepare_environment()  # before torch's import

import torch
from safetensors.torch import save_file

from allinone.common.atomic_io import publish_dir
from allinone.common.errors import DataError
from allinone.data.config import ClipConfig
from allinone.data.processor import AllInOneProcessor
from allinone.engine.checkpoint.manager import CheckpointError
from allinone.engine.checkpoint.zero_reader import weights_from_shards
from allinone.model import SIZES, AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import (
    HEADS,
    TEMPORAL,
    ConversionError,
    LoadReport,
    assemble,
    convert_reference,
    load_resized,
)
from allinone.model.pretrained import TEXT_PART, VIDEO_PARTS, bert_weights, vit_weights
from allinone.model.weights_file import locate, read_weights
from allinone.tools.inspection.model_inspection import (
    compare,
    describe,
    difference_table,
    differs,
    find_checkpoint,
    load_any,
    table,
)

_SHAPE_OPTIONS = {
    "num_frames": ("--frames", "frames per clip"),
    "image_size": ("--image-size", "height and width of a frame, pixels"),
    "max_text_len": ("--max-text-len", "word pieces per caption, [CLS] and [SEP] included"),
    "patch_size": ("--patch-size", "height and width of a patch, pixels"),
}
_JOINT = ("backbone.modality.", "backbone.pooler.", *HEADS)  # what no image or language model has


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the model that were given."""
    names = (*_SHAPE_OPTIONS, "patch_order")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _check_out(out: Path) -> None:
    """Before any work: refuse a place that would overwrite something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"--out {out} exists and is not an empty folder; give a new one, or remove it"
        )


def _publish(model: AllInOneForPreTraining, report: LoadReport, out: Path) -> int:
    """Write the model folder and say what happened."""
    config = model.config
    processor = AllInOneProcessor(
        ClipConfig(config.num_frames, config.image_size, config.max_text_len)
    )

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    publish_dir(out, fill)
    print(report)
    print(f"{out}: written, {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def _from_reference(args: argparse.Namespace) -> int:
    _check_out(args.out)
    file = read_weights(args.source)
    config = AllInOneConfig.from_size(args.size, **{"patch_order": "shuffled", **_overrides(args)})
    torch.manual_seed(args.seed)
    try:
        model, report = convert_reference(
            file.tensors, config, tuple(args.ignore), str(args.source)
        )
    except ConversionError as error:
        hint = "; --ignore PREFIX … leaves unexpected keys out" if error.unexpected else ""
        raise ValueError(f"{error}{hint}") from error
    report.notes += file.notes
    report.notes.append(f"patch_order: {config.patch_order} (the original trains with shuffled)")
    return _publish(model, report, args.out)


def _from_vit(args: argparse.Namespace) -> int:
    _check_out(args.out)
    config = AllInOneConfig.from_size(args.size, **_overrides(args))
    report = LoadReport(args.source if args.bert is None else f"{args.source} and {args.bert}")
    weights, unexpected = vit_weights(read_weights(locate(args.source)).tensors, report)
    new: tuple[str, ...] = (TEMPORAL, TEXT_PART, *_JOINT)
    if args.bert is not None:
        text, surplus = bert_weights(read_weights(locate(args.bert)).tensors, report)
        weights, unexpected = {**weights, **text}, [*unexpected, *surplus]
        new = (TEMPORAL, *_JOINT)
    torch.manual_seed(args.seed)
    return _publish(
        assemble(config, weights, report, unexpected=unexpected, may_be_new=new), report, args.out
    )


def _from_bert(args: argparse.Namespace) -> int:
    _check_out(args.out)
    report = LoadReport(args.source)
    torch.manual_seed(args.seed)
    kept: dict[str, torch.Tensor] = {}
    new: tuple[str, ...] = (*VIDEO_PARTS, *_JOINT)
    if args.model is not None:
        read_weights(args.model)  # before its config: a folder without weights is named as such
        config = AllInOneConfig.from_pretrained(args.model, **_overrides(args))
        model, report = load_resized(args.model, config)
        report.source = f"{args.source} and {args.model}"
        kept, new = dict(model.state_dict()), ()
    else:
        config = AllInOneConfig.from_size(args.size, **_overrides(args))
    text, unexpected = bert_weights(read_weights(locate(args.source)).tensors, report)
    return _publish(
        assemble(config, {**kept, **text}, report, unexpected=unexpected, may_be_new=new),
        report,
        args.out,
    )


def _to_safetensors(args: argparse.Namespace) -> int:
    _check_out(args.out)
    folder = find_checkpoint(
        args.checkpoint, without="weights/model.safetensors" if args.from_shards else ""
    )
    if folder is None:
        raise CheckpointError(
            f"{args.checkpoint} is no checkpoint of this program: it has no manifest.json; give"
            " runs/NAME/checkpoints/step-… or runs/NAME"
        )
    processor = AllInOneProcessor.from_pretrained(folder / "weights")
    shards = weights_from_shards(folder) if args.from_shards else None

    def fill(target: Path) -> None:
        if shards is None:
            shutil.copytree(folder / "weights", target, dirs_exist_ok=True)
        else:
            shutil.copy2(folder / "weights" / "config.json", target)
            save_file(shards, target / "model.safetensors", metadata={"format": "pt"})
        processor.save_pretrained(target)

    publish_dir(args.out, fill)
    origin = "ZeRO partitions" if args.from_shards else "gathered weights"
    print(f"{args.out}: written from the {origin} of {folder}, manifest verified")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    facts = describe(load_any(args.path))
    print(json.dumps(facts) if args.json else table(facts))
    return 0


def _diff(args: argparse.Namespace) -> int:
    result = compare(load_any(args.a).tensors, load_any(args.b).tensors)
    print(json.dumps(result) if args.json else difference_table(result, args.limit))
    return int(differs(result))


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that build a model."""
    for name, (flag, text) in _SHAPE_OPTIONS.items():
        parser.add_argument(
            flag,
            dest=name,
            type=int,
            default=None,
            metavar="N",
            help=f"{text} (default: the size's)",
        )
    parser.add_argument(
        "--patch-order", choices=("raster", "shuffled"), default=None, help="which patches roll"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="for what starts anew (default: %(default)s)"
    )
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="model folder to write; new or empty"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/convert.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sizes, hub = tuple(SIZES), "file, folder of save_pretrained, or hub id"
    sub = command(
        "from-reference",
        _from_reference,
        "Lightning checkpoint of the original code (also co-trained) → model folder",
    )
    sub.add_argument("source", type=Path, metavar="FILE")
    sub.add_argument("--size", choices=("tiny", "small", "base"), required=True)
    sub.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="leave out keys that begin so, such as vqa_classifier.",
    )
    _add_output(sub)
    sub = command(
        "from-vit",
        _from_vit,
        "ImageNet weights of a ViT or DeiT, timm's or transformers' → model folder",
    )
    sub.add_argument("source", metavar="SOURCE", help=hub)
    sub.add_argument("--size", choices=sizes, required=True)
    sub.add_argument(
        "--bert",
        default=None,
        metavar="SOURCE",
        help=f"take the text embeddings from this BERT: {hub}",
    )
    _add_output(sub)
    sub = command(
        "from-bert", _from_bert, "word, position and type embeddings of a BERT → model folder"
    )
    sub.add_argument("source", metavar="SOURCE", help=hub)
    base = sub.add_mutually_exclusive_group(required=True)
    base.add_argument("--size", choices=sizes, help="start a new model")
    base.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="keep the other weights of this model folder (it is not changed)",
    )
    _add_output(sub)
    sub = command(
        "to-safetensors",
        _to_safetensors,
        "training checkpoint, any ZeRO stage and world size → model folder",
    )
    sub.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="runs/NAME/checkpoints/step-…, or runs/NAME for its newest whole one",
    )
    sub.add_argument(
        "--from-shards",
        action="store_true",
        help="join ZeRO's partitions instead of copying weights/, which may then be lost",
    )
    _add_out(sub)
    forms = "run, checkpoint, model folder, .safetensors or torch.save file"
    sub = command("inspect", _inspect, "parameters, shapes, dtypes and training state")
    sub.add_argument("path", type=Path, metavar="PATH", help=forms)
    sub.add_argument("--json", action="store_true", help="print one JSON line")
    sub = command("diff", _diff, "compare two; exit code 0 equal, 1 different, 2 trouble")
    sub.add_argument("a", type=Path, metavar="A", help=forms)
    sub.add_argument("b", type=Path, metavar="B", help=forms)
    sub.add_argument(
        "--limit",
        type=int,
        default=20,
        help="rows of differing values, 0 for all (default: %(default)s)",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 1 `diff` found differences, 2 an error
    that you can mend."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, DataError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
