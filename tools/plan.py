#!/usr/bin/env python3
"""What a thing will cost, computed before it is started.

model parameters and operations of every size, beside the paper's numbers data can this prepared
data feed that training, and what would mend it train what a recipe needs on GPUs: memory, traffic,
time, energy, and which configuration to take

    python tools/plan.py model
    python tools/plan.py model --frames 8 --image-size 384 --markdown
    python tools/plan.py data prepared/webvid --gpus 128 --samples-per-s 2000
    python tools/plan.py train webvid-howto --gpus 128 --device a100-80g
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from allinone.common.command import at_least_one
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.common.tables import markdown, plain
from allinone.model import SIZES, AllInOneConfig, AllInOneForPreTraining, parameters_by_part
from allinone.model.flops import forward_flops
from allinone.tools.planning.data_plan import add_data_parser
from allinone.tools.planning.train_plan import add_train_parser

PAPER_TEXT_TOKENS = 32
"""The text length that reproduces the paper's 58.7 G; its code reads 40 tokens, with which no
convention gives that number."""
PAPER_PARAMETERS = {"tiny": "12M", "small": "33M", "base": "110M"}
PAPER_MACS = {"base": "58.7G"}
HEADS = ("MLM head", "VTM head", "contrastive projections")
CONVENTION = (
    "Parameters: the paper counts the model without heads. MACs: multiply-adds of linear layers and"
    " patch convolution in one joint forward of one clip, without the two attention products (what"
    " `thop` sees): the convention of the paper's 58.7G, which is met at 3 frames of 224 x 224 and"
    " 32 text tokens. FLOPs: the same pass with a multiply-add as 2 and the attention products"
    " included, as in the log of a run. Norms, softmax and GELU are left out of both."
)


@dataclass(frozen=True)
class SizeCost:
    """One model size: what it holds and what one clip costs."""

    size: str
    width: int
    blocks: int
    heads: int
    frames: int
    image_size: int
    """Pixels per side."""
    text_tokens: int
    parts: dict[str, int]
    """Part → parameters; sums to `parameters`."""
    parameters_without_heads: int
    parameters: int
    macs: int
    """Multiply-adds of a joint forward, without attention products."""
    flops: int
    """FLOPs of a joint forward (a multiply-add is 2), with attention products."""
    paper_parameters: str | None
    paper_macs: str | None
    """Only where `frames`, `image_size` and `text_tokens` are the paper's."""


def cost_of(
    size: str, frames: int = 3, image_size: int | None = None, text_tokens: int | None = None
) -> SizeCost:
    """The cost of a size; None takes the size's own image size and the paper's 32 tokens (at most
    the size's own text length).

    Raises ValueError for shapes that the model cannot have.
    """
    own = AllInOneConfig.from_size(size)
    tokens = text_tokens or min(PAPER_TEXT_TOKENS, own.max_text_len)
    config = AllInOneConfig.from_size(
        size,
        num_frames=frames,
        image_size=image_size or own.image_size,
        max_text_len=max(own.max_text_len, tokens),
    )
    with torch.device("meta"):  # shapes only: huge would take 3 GB
        parts = parameters_by_part(AllInOneForPreTraining(config))
    as_paper = (frames, config.image_size, tokens) == (3, 224, PAPER_TEXT_TOKENS)
    return SizeCost(
        size=size,
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        frames=frames,
        image_size=config.image_size,
        text_tokens=tokens,
        parts=parts,
        parameters_without_heads=sum(number for part, number in parts.items() if part not in HEADS),
        parameters=sum(parts.values()),
        macs=forward_flops(config, frames=frames, text_tokens=tokens, attention_products=False)
        // 2,
        flops=forward_flops(config, frames=frames, text_tokens=tokens),
        paper_parameters=PAPER_PARAMETERS.get(size),
        paper_macs=PAPER_MACS.get(size) if as_paper else None,
    )


def _short(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 100_000 else f"{number / 1e3:.1f}k"


def _giga(number: int) -> str:
    return f"{number / 1e9:.2f}G"


def size_table(costs: Sequence[SizeCost]) -> list[list[str]]:
    """Parameters per part, a row per part and a column per size; the first row holds the titles."""
    shape = [
        "width x blocks x heads",
        *(f"{cost.width} x {cost.blocks} x {cost.heads}" for cost in costs),
    ]
    body = [part for part in costs[0].parts if part not in HEADS]
    rows = [["parameters", *(cost.size for cost in costs)], shape]
    rows += [[part, *(_short(cost.parts[part]) for cost in costs)] for part in body]
    rows.append(["without heads", *(_short(cost.parameters_without_heads) for cost in costs)])
    rows.append(["  the paper's", *(cost.paper_parameters or "-" for cost in costs)])
    rows += [[part, *(_short(cost.parts[part]) for cost in costs)] for part in HEADS]
    rows.append(["all", *(_short(cost.parameters) for cost in costs)])
    return rows


def cost_table(costs: Sequence[SizeCost]) -> list[list[str]]:
    """One clip's joint forward, a row per number and a column per size; the first row holds the
    titles."""
    return [
        ["one clip, joint forward", *(cost.size for cost in costs)],
        ["frames x pixels", *(f"{cost.frames} x {cost.image_size}²" for cost in costs)],
        ["text tokens", *(str(cost.text_tokens) for cost in costs)],
        ["MACs", *(_giga(cost.macs) for cost in costs)],
        ["  the paper's", *(cost.paper_macs or "-" for cost in costs)],
        ["FLOPs", *(_giga(cost.flops) for cost in costs)],
    ]


def plan_model(args: argparse.Namespace) -> None:
    """Print the tables of every size."""
    try:
        costs = [cost_of(size, args.frames, args.image_size, args.text_tokens) for size in SIZES]
    except ValueError as error:
        raise InputError(f"{error}; see --frames, --image-size") from error
    if args.json:
        print(json.dumps({"convention": CONVENTION, "sizes": [asdict(cost) for cost in costs]}))
        return
    table = markdown if args.markdown else plain
    print(f"{table(size_table(costs))}\n\n{table(cost_table(costs))}\n\n{CONVENTION}")


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per thing that is planned; each sets `plan` to its function."""
    parser = argparse.ArgumentParser(
        prog="tools/plan.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    things = parser.add_subparsers(required=True, metavar="THING")
    model = things.add_parser("model", help="parameters and operations of every size")
    model.set_defaults(plan=plan_model)
    model.add_argument(
        "--frames",
        type=at_least_one,
        default=3,
        metavar="T",
        help="frames per clip (default: %(default)s)",
    )
    model.add_argument(
        "--image-size",
        type=at_least_one,
        metavar="PX",
        help="side of a frame, pixels (default: the size's own)",
    )
    model.add_argument(
        "--text-tokens",
        type=at_least_one,
        metavar="L",
        help=f"tokens of the text (default: {PAPER_TEXT_TOKENS}, the paper's; nano's own 16)",
    )
    form = model.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON line")
    form.add_argument("--markdown", action="store_true", help="print Markdown tables")
    add_data_parser(things)
    add_train_parser(things)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 1 the plan does not hold, 2 an error that
    you can mend."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    args.recipe_options = unknown
    if unknown and not getattr(args, "takes_recipe_options", False):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    plan: Callable[[argparse.Namespace], int | None] = args.plan
    return run_command(lambda: plan(args))


if __name__ == "__main__":
    sys.exit(main())
