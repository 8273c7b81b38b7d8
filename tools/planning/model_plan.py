"""`tools/plan.py model`: parameters and operations of every model size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from allinone.common.errors import InputError
from allinone.common.tables import markdown_table, plain_table
from allinone.model import SIZES, AllInOneConfig, AllInOneForPreTraining, parameters_by_part
from allinone.model.flops import forward_flops, part_of
from allinone.pretrain.objectives.registry import OBJECTIVES
from allinone.tools.planning.options import ModelPlan

PAPER_TEXT_TOKENS = 32
"""Text length that reproduces the paper's 58.7 G MACs. Its code reads 40 tokens, which do not give
that number under any convention."""
PAPER_PARAMETERS = {"tiny": "12M", "small": "33M", "base": "110M"}
PAPER_MACS = {"base": "58.7G"}
HEADS = tuple(
    dict.fromkeys(part_of(f"{head}.") or head for each in OBJECTIVES for head in each.heads)
)
"""Parts that the objectives train and that the paper's parameter count leaves out."""
CONVENTION = (
    "Parameters: the paper counts the model without heads. MACs: multiply-adds of linear layers and"
    " patch convolution in one joint forward of one clip, without the two attention products (as"
    " counted by `thop`). This is the convention of the paper's 58.7G, which holds for 3 frames of"
    " 224 x 224 and 32 text tokens. FLOPs: the same pass, with 2 per multiply-add and with"
    " attention products, as in the log of a run. Norms, softmax and GELU are not counted."
)


@dataclass(frozen=True)
class SizeCost:
    """Parameters of a model size, and the cost of one clip."""

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
    """FLOPs of a joint forward (2 per multiply-add), with attention products."""
    paper_parameters: str | None
    paper_macs: str | None
    """Only if `frames`, `image_size` and `text_tokens` are the paper's."""


def cost_of(
    size: str, frames: int = 3, image_size: int | None = None, text_tokens: int | None = None
) -> SizeCost:
    """Count parameters and operations of a model size.

    Args:
        size: A name in SIZES.
        frames: Frames per clip.
        image_size: Height and width in pixels; None uses the size's own.
        text_tokens: Text length; None uses 32, at most the size's own text length.

    Raises:
        ValueError: The model cannot have this shape.
    """
    own = AllInOneConfig.from_size(size)
    tokens = text_tokens or min(PAPER_TEXT_TOKENS, own.max_text_len)
    config = AllInOneConfig.from_size(
        size,
        num_frames=frames,
        image_size=image_size or own.image_size,
        max_text_len=max(own.max_text_len, tokens),
    )
    with torch.device("meta"):  # shapes only: the weights of huge would take 3 GB
        parts = parameters_by_part(AllInOneForPreTraining(config))
    as_paper = (frames, config.image_size, tokens) == (3, 224, PAPER_TEXT_TOKENS)
    without_products = forward_flops(
        config, frames=frames, text_tokens=tokens, attention_products=False
    )
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
        macs=without_products // 2,
        flops=forward_flops(config, frames=frames, text_tokens=tokens),
        paper_parameters=PAPER_PARAMETERS.get(size),
        paper_macs=PAPER_MACS.get(size) if as_paper else None,
    )


def _short(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 100_000 else f"{number / 1e3:.1f}k"


def _giga(number: int) -> str:
    return f"{number / 1e9:.2f}G"


def size_table(costs: Sequence[SizeCost]) -> list[list[str]]:
    """Parameters, with a row per part and a column per size; the first row holds the titles."""
    shapes = [f"{cost.width} x {cost.blocks} x {cost.heads}" for cost in costs]
    body = [part for part in costs[0].parts if part not in HEADS]
    rows = [["parameters", *(cost.size for cost in costs)], ["width x blocks x heads", *shapes]]
    rows += [[part, *(_short(cost.parts[part]) for cost in costs)] for part in body]
    rows.append(["without heads", *(_short(cost.parameters_without_heads) for cost in costs)])
    rows.append(["  the paper's", *(cost.paper_parameters or "-" for cost in costs)])
    rows += [[part, *(_short(cost.parts[part]) for cost in costs)] for part in HEADS]
    rows.append(["all", *(_short(cost.parameters) for cost in costs)])
    return rows


def cost_table(costs: Sequence[SizeCost]) -> list[list[str]]:
    """Operations of a joint forward of one clip, with a column per size; the first row holds the
    titles."""
    return [
        ["one clip, joint forward", *(cost.size for cost in costs)],
        ["frames x pixels", *(f"{cost.frames} x {cost.image_size}²" for cost in costs)],
        ["text tokens", *(str(cost.text_tokens) for cost in costs)],
        ["MACs", *(_giga(cost.macs) for cost in costs)],
        ["  the paper's", *(cost.paper_macs or "-" for cost in costs)],
        ["FLOPs", *(_giga(cost.flops) for cost in costs)],
    ]


def plan_model(options: ModelPlan) -> int:
    """Print the tables of all sizes; returns the exit code."""
    try:
        costs = [
            cost_of(size, options.frames, options.image_size, options.text_tokens) for size in SIZES
        ]
    except ValueError as error:
        raise InputError(f"{error}; see --frames, --image-size") from error
    if options.json:
        print(json.dumps({"convention": CONVENTION, "sizes": [asdict(cost) for cost in costs]}))
        return 0
    table = markdown_table if options.markdown else plain_table
    print(f"{table(size_table(costs))}\n\n{table(cost_table(costs))}\n\n{CONVENTION}")
    return 0
