"""How the texts of a micro-batch are padded. Letters: L tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from allinone.data.config import TextPadding

BUCKET = 8
"""Texts are padded to a multiple of this: a compiled model is compiled once per length, and matrix
products on a GPU want multiples of 8."""


def pad_texts(
    tensors: Mapping[str, Tensor], fields: tuple[str, ...], padding: TextPadding
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Pad the texts of a micro-batch as the option says.

    Args:
        tensors: Fields of the batch, on the CPU; `text_mask` is among them.
        fields: Those with one element per token, int64 [.., L].
        padding: full leaves them, longest cuts them to the longest text, rounded up to `BUCKET`.

    Returns:
        The fields, and with `packed` the tokens of each text, int64 [..], which make the model
        leave padding out.
    """
    mask = tensors["text_mask"]
    lengths = mask.sum(-1)
    if padding != "longest" or not lengths.numel():
        return dict(tensors), lengths if padding == "packed" else None
    width = min(_rounded_up(int(lengths.max())), mask.shape[-1])
    cut = {name: tensors[name][..., :width].contiguous() for name in fields}
    return {**tensors, **cut}, None


def computed_tokens(
    lengths: NDArray[np.int64], padding: TextPadding, texts: int, limit: int
) -> float:
    """Tokens that the model computes per text, on average.

    Args:
        lengths: Tokens of a sample of texts in random order, [CLS] and [SEP] included, not cut.
        padding: The option.
        texts: Texts of a micro-batch.
        limit: The model's max_text_len.
    """
    if padding == "full" or not lengths.size:
        return limit
    lengths = np.minimum(lengths, limit)
    if padding == "packed":
        return float(lengths.mean())
    # every run of `texts` neighbours is a micro-batch
    runs = [lengths.take(range(i, i + texts), mode="wrap").max() for i in range(len(lengths))]
    return float(np.mean([min(_rounded_up(int(longest)), limit) for longest in runs]))


def _rounded_up(tokens: int) -> int:
    return -(-tokens // BUCKET) * BUCKET
