"""Resizes the tables that depend on the input size: text, frame and patch positions.

Letters: R rows, P patches, p prefix tokens (class token, distillation token where there is one), C
width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_rows(table: Tensor, rows: int) -> Tensor:
    """Resize [R, C] → [rows, C] by linear interpolation; the first and last rows are kept."""
    if table.shape[0] == 1 or rows == 1:
        return table[:1].expand(rows, -1).clone()
    # align_corners maps the first and last frame of a clip onto each other
    columns = table.T[None].float()
    resized = F.interpolate(columns, size=rows, mode="linear", align_corners=True)
    return resized[0].T.to(table.dtype)


def continue_rows(table: Tensor, rows: int) -> Tensor:
    """Resize [R, C] → [rows, C]: keep the learned rows and append copies of the last one.

    Token k keeps position row k, so texts within the old limit give the same result; interpolation
    would change every row. The new rows are learned in fine-tuning.
    """
    return torch.cat([table[:rows], table[-1:].expand(max(0, rows - table.shape[0]), -1)])


def is_square(patches: int) -> bool:
    """Whether that many patches form a square grid."""
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def resize_grid(position: Tensor, patches: int, prefix: int = 1) -> Tensor:
    """Resize patch positions by bicubic interpolation of the square grid, as ViT does.

    Args:
        position: [1, p + P, C]; P is a square number.
        patches: Patches afterwards, a square number.
        prefix: Rows in front of the patches, p; they are kept.

    Returns:
        [1, p + patches, C].
    """
    old, new = math.isqrt(position.shape[1] - prefix), math.isqrt(patches)
    grid = position[:, prefix:].unflatten(1, (old, old)).permute(0, 3, 1, 2).float()
    # pixel areas, not pixel centres, are aligned: a patch covers the same part of the picture
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    resized = grid.flatten(2).transpose(1, 2).to(position.dtype)
    return torch.cat([position[:, :prefix], resized], dim=1)
