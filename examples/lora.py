#!/usr/bin/env python3
"""LoRA by peft on an exported model: learn labels of your own clips with few trained parameters.

    pip install 'allinone-pretrain[peft]'
    allinone convert to-safetensors runs/mine --out my-model
    python examples/lora.py --model my-model --table clips.csv --out my-lora

clips.csv has the columns path and label; paths are relative to its folder. Writes my-lora/adapter
(the trained parameters alone) and my-lora/merged (a complete model folder, which `allinone predict
classify` and from_pretrained read). On one device, without augmentation, and not resumable: for all
else fine-tune with `allinone finetune own`. See docs/guides/fine-tuning-methods.md.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, POSITIVE, require

TARGETS = r".*\.encoder\.blocks\.\d+\.(attention\.(qkv|proj)|mlp\.(fc1|fc2))"
"""Layers that get an adapter: every matrix of every block."""


@dataclass(frozen=True)
class LoraOptions:
    """Options of the example."""

    model: Path = tyro.MISSING
    """Model folder, as `allinone convert to-safetensors` writes it."""
    table: Path = tyro.MISSING
    """CSV file with the columns path and label."""
    out: Path = tyro.MISSING
    """New folder for adapter/ and merged/."""
    rank: int = 8
    """Rank of the adapters; each matrix of n x m gets rank x (n + m) parameters."""
    epochs: int = 10
    """Passes over the table."""
    batch: int = 8
    """Clips per step."""
    lr: float = 1e-3
    """Learning rate; about ten times that of fine-tuning, as usual for LoRA."""
    seed: int = 0
    """Seed of new weights and of the order of the clips."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("rank", "epochs", "batch"))
        require(self, POSITIVE, ("lr",))


def adapt(model: Any, rank: int) -> Any:
    """Wrap a model of transformers: its blocks get adapters, its heads are trained in full.

    Args:
        model: An AllInOneFor… model.
        rank: Of the adapters.

    Returns:
        peft's model; everything else is frozen.
    """
    from peft import LoraConfig, get_peft_model
    from torch import nn

    # peft's wrapper of a module needs an input, which the logit scale does not have
    heads = [
        name
        for name, part in model.named_children()
        if name != "backbone" and any(isinstance(module, nn.Linear) for module in part.modules())
    ]
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=TARGETS, modules_to_save=heads
    )
    return get_peft_model(model, settings)


def read_table(table: Path) -> tuple[list[Path], list[str]]:
    """Paths and labels of a table; InputError if a column is missing."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise InputError(f"--table {table} needs rows with the columns path and label")
    return [table.parent / row["path"] for row in rows], [row["label"] for row in rows]


def run(options: LoraOptions) -> None:
    """Train and write the adapter and the merged model."""
    if options.out.exists() and any(options.out.iterdir()):
        raise InputError(f"--out {options.out} is not empty; give a new folder")
    paths, labels = read_table(options.table)
    import torch

    from allinone import AllInOneForVideoClassification, AllInOneProcessor
    from allinone.finetune.tasks.options import ActionOptions

    torch.manual_seed(options.seed)
    names = sorted(set(labels))
    model: Any = AllInOneForVideoClassification.from_pretrained(
        options.model,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    prompt = model.config.task.get("prompt", ActionOptions().prompt)
    # what `allinone predict` reads
    head = {"protocol": "action_recognition", "kind": model.kind}
    model.config.task = {**head, "labels": names, "prompt": prompt}
    processor = AllInOneProcessor.from_pretrained(options.model)
    targets = torch.tensor([names.index(label) for label in labels])
    adapted = adapt(model, options.rank)
    adapted.print_trainable_parameters()
    # decoded once: every pass reads the same frames
    pixels = torch.cat([processor(str(path), prompt)["pixels"] for path in paths])
    text = processor(text=[prompt])
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    adapted.train()
    for epoch in range(options.epochs):
        total = 0.0
        for rows in torch.randperm(len(paths)).split(options.batch):
            texts = {name: text[name].expand(len(rows), -1) for name in ("text_ids", "text_mask")}
            loss = adapted(pixels=pixels[rows], labels=targets[rows], **texts).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{options.epochs}  loss {total / len(paths):.3f}")
    adapted.eval()
    adapted.save_pretrained(options.out / "adapter")
    adapted.merge_and_unload().save_pretrained(options.out / "merged")
    processor.save_pretrained(options.out / "merged")
    print(f"wrote {options.out / 'adapter'} and {options.out / 'merged'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    prog = "examples/lora.py"
    return run_command(
        lambda: run(parse(LoraOptions, arguments, prog=prog, description=__doc__ or ""))
    )


if __name__ == "__main__":
    sys.exit(main())
