"""Sequences of their real length, one after the other: no padding in the blocks.

Letters: S texts, T sequences per text, R = S*T sequences, L places of a text, n visual tokens of a
sequence, N = L + n places of a padded sequence, W real tokens of all sequences, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where each real token of a padded batch [R, N, C] is in a packed one [1, W, C].

    The leading 1 keeps the dimensions of a padded batch, which the layers expect.
    """

    text_mask: Tensor
    """[S, L], 1 at the tokens of each text, which come first."""
    words: int
    """Tokens of all texts."""
    frames: int
    """Sequences per text, T."""
    visual: int
    """Tokens after the text of each sequence, n."""
    starts: Tensor
    """int32 [R + 1], first token of each sequence, and W."""
    owner: Tensor
    """int64 [W], the sequence of each token."""
    places: Tensor
    """int64 [W], place r * N + j of each token in the padded batch."""
    flash: Callable[..., Any] | None = None
    """torch's varlen_attn, where it runs on these tokens."""
    queries: Packing | None = None
    """The tokens that attend; None: all."""
    query_numbers: Tensor | None = None
    """int64, the number of each of them among all."""

    @classmethod
    def of(cls, text_mask: Tensor, words: int, frames: int, visual: int) -> Packing:
        """Pack sequences that begin with a text. Nothing waits for the device.

        Args:
            text_mask: [S, L], 1 at the tokens of each text, which come first.
            words: Their number in all texts, known on the host.
            frames: Sequences per text, T, which are adjacent.
            visual: Tokens after each text, n.
        """
        device, padded = text_mask.device, text_mask.shape[1]
        lengths = text_mask.sum(1, dtype=torch.int64).repeat_interleave(frames)
        rows = lengths.shape[0]
        total = frames * words + rows * visual
        starts = F.pad((lengths + visual).cumsum(0), (1, 0))
        # output_size: the number of tokens need not be read from the device
        owner = torch.arange(rows, device=device).repeat_interleave(
            lengths + visual, output_size=total
        )
        place = torch.arange(total, device=device) - starts.index_select(0, owner)
        length = lengths.index_select(0, owner)
        # in the padded batch the visual tokens come after the padding
        place = torch.where(place < length, place, place + padded - length)
        places = owner * (padded + visual) + place
        return cls(text_mask, words, frames, visual, starts.int(), owner, places)

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and places of the padded batch, (R, N)."""
        return self.starts.shape[0] - 1, self.text_mask.shape[1] + self.visual

    def pack(self, x: Tensor) -> Tensor:
        """[R, N, C] → [1, W, C]."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, W, ...] → [R, N, ...], zeros at padding."""
        rows, places = self.shape
        padded = x.new_zeros(rows * places, *x.shape[2:]).index_copy(0, self.places, x[0])
        return padded.unflatten(0, self.shape)

    def first(self, places: int) -> tuple[Packing, Tensor]:
        """The first `places` tokens of each text: 1, or all of them, L.

        Returns:
            Their packing, and the number that each has here, int64.
        """
        assert places in (1, self.text_mask.shape[1])
        words = self.words if places > 1 else self.text_mask.shape[0]
        tokens = Packing.of(self.text_mask[:, :places], words, self.frames, 0)
        return tokens, self.numbers(tokens.owner, tokens.places - places * tokens.owner)

    def reading(self, places: int) -> Packing:
        """The same tokens, of which the first `places` of each text attend: 1 or L."""
        queries, numbers = self.first(places)
        return replace(self, queries=queries, query_numbers=numbers)

    def numbers(self, sequences: Tensor, places: Tensor) -> Tensor:
        """Packed numbers of text tokens, int64 [K].

        Args:
            sequences: int64 [K], the sequence of each.
            places: int64 [K], its place in that sequence.
        """
        return self.starts.index_select(0, sequences) + places
