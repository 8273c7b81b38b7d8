"""State dicts like those that the original code writes after fine-tuning, at nano's size.

Keys and shapes come from tests/parity: `state_dict_tiny.tsv` for the model, and
`state_dict_base_heads.tsv` for the heads, with their widths scaled to nano's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.tools.lightning import PARITY

WIDTH, BLOCKS, TOKENS, SIDE = 128, 4, 16, 64
"""Of nano."""
_MODEL_SIZES = {192: WIDTH, 576: 3 * WIDTH, 768: 4 * WIDTH, 197: 17, 40: TOKENS}
_HEAD_SIZES = {768: WIDTH, 384: WIDTH // 2, 1536: 2 * WIDTH}
"""Sizes in the files → nano's; others do not depend on the width."""


def _rows(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (PARITY / name).read_text().splitlines() if line]


def _shape(text: str, sizes: Mapping[int, int]) -> list[int]:
    return [sizes.get(int(number), int(number)) for number in text.split(",")]


def objectives() -> dict[str, dict[str, list[int]]]:
    """Objective → key → shape of every optional head, at nano's width."""
    found: dict[str, dict[str, list[int]]] = {}
    for objective, key, shape in _rows("state_dict_base_heads.tsv"):
        found.setdefault(objective, {})[key] = _shape(shape, _HEAD_SIZES)
    return found


def random_tensors(shapes: Mapping[str, list[int]], seed: int, scale: float) -> dict[str, Tensor]:
    """Normal values, around 1 for the weights of normalisations, so that nothing is trivial."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        tensor = scale * torch.randn(shape, generator=random)
        is_norm = len(shape) == 1 and key.endswith("weight")
        tensors[key] = tensor + 1 if is_norm else tensor
    return tensors


def reference_model(seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a pre-trained model."""
    shapes = {}
    for key, shape in _rows("state_dict_tiny.tsv"):
        block = key.split(".")[2] if key.startswith("transformer.blocks.") else "0"
        if int(block) < BLOCKS and key != "text_embeddings.position_ids":
            shapes[key] = _shape(shape, _MODEL_SIZES)
    return random_tensors(shapes, seed, 0.05)
