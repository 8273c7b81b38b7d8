"""Captioning by the same transformer and MLM head: all frames are seen, words from left to right.

The attention mask is UniLM's for sequence-to-sequence (Dong et al., NeurIPS 2019, section 2.3):
visual tokens attend to visual tokens, a word to all visual tokens, itself and the words before it.
The temporal roll moves visual tokens alone, which never see a word, so keys and values of a clip
are computed once. As everywhere in the model, each frame has a copy of the words, and the copies'
features are averaged.

A word is predicted at a [MASK] in its place that attends to the words before it. This is what the
MLM head was pre-trained for, and it is exactly what decoding does. In training every word of a
caption has such a [MASK], which no other token attends to, so that one pass trains all words
("pseudo-masked fine-tuning", Bao et al. 2021, s2s-ft, arXiv 2110.13640, section 3.3; UniLM itself
masks some of the words, and later words then see a [MASK] that decoding does not have).

Letters: B clips, T frames, F sequences of a clip (T, or 1 with roll="flatten"), R rows (captions in
progress, R / B per clip), l words of a pass, p words before them, n visual tokens of a sequence, C
width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from .all_in_one import AllInOneModel, ReadTokens
from .embeddings import TEXT, VIDEO

PAD, UNKNOWN, FIRST, LAST, MASK = 0, 100, 101, 102, 103
"""[PAD], [UNK], [CLS], [SEP] and [MASK] of BERT's vocabulary."""

KeysValues = tuple[Tensor, Tensor]
"""Both [rows, tokens, H, C/H]."""


def text_attention(words: int, device: torch.device) -> Tensor:
    """Who attends to whom among l words and the l [MASK] of the words that follow them.

    Args:
        words: Words, l.
        device: Where the mask is needed.

    Returns:
        bool [2l, 2l], row attends to column: a word to itself and the words before it; [MASK] i,
        in the place after word i, to itself and words 0 to i.
    """
    before = torch.ones(words, words, dtype=torch.bool, device=device).tril()
    own = torch.eye(words, dtype=torch.bool, device=device)
    return torch.cat([torch.cat([before, before]), torch.cat([own.logical_and(~own), own])], 1)


def _text(backbone: AllInOneModel, text_ids: Tensor, start: int = 0) -> Tensor:
    """Embed words and the [MASK] that follow them.

    Args:
        backbone: The model.
        text_ids: int64 [R, l].
        start: Place of the first word.

    Returns:
        [R, 2l, C].
    """
    masks = torch.full_like(text_ids, MASK)
    embed = backbone.text_embeddings
    both = torch.cat([embed(text_ids, start), embed(masks, start + 1)], 1)
    return backbone.modality(both, TEXT)


def caption_features(
    backbone: AllInOneModel,
    pixels: Tensor,
    text_ids: Tensor,
    read: Tensor | None = None,
) -> Tensor:
    """Features that predict the word after each given word, in one pass of clips and captions.

    Padding may come after a caption: nothing before it attends to it.

    Args:
        backbone: The model.
        pixels: Normalised frames, [B, T, 3, S, S].
        text_ids: int64 [B, l], beginning with [CLS]; l is less than max_text_len.
        read: int64 [M], the places that are read: after word j of caption i is i * l + j. None:
            all, in this order.

    Returns:
        [M, C].

    Raises:
        ValueError: A shape does not fit the config.
    """
    frames, (rows, words) = pixels.shape[1], text_ids.shape
    device = text_ids.device
    text = _text(backbone, text_ids)
    video = backbone.modality(backbone.video_embeddings(pixels), VIDEO)
    copies = frames
    if backbone.config.roll == "flatten":
        video, copies = video.unflatten(0, (rows, frames)).flatten(1, 2), 1
    places = torch.arange(rows * words, device=device) if read is None else read
    # [MASK] j of caption i is token l + j of its 2l text tokens
    places = places + words * (places // words + 1)
    mask = F.pad(text_attention(words, device), (0, video.shape[1]), value=True)
    below = torch.zeros(video.shape[1], mask.shape[1], dtype=torch.bool, device=device)
    below[:, 2 * words :] = True
    x = backbone.encoder(
        torch.cat([text.repeat_interleave(copies, 0), video], 1),
        torch.cat([mask, below])[None, None],
        copies,
        2 * words,
        ReadTokens.of_text(places, 2 * words, copies),
    )
    return x.unflatten(0, (x.shape[0] // copies, copies)).mean(1)


@dataclass
class ClipMemory:
    """Keys and values of clips, and of the captions in progress."""

    visual: list[KeysValues]
    """Of each block, [B * F, n, H, C/H]."""
    clips: int
    """B"""
    words: list[KeysValues] = field(default_factory=list)
    """Of each block, [R * F, p, H, C/H]; empty: no word yet."""
    text_ids: Tensor | None = None
    """The words that `words` belongs to, int64 [R, p]."""

    @property
    def copies(self) -> int:
        """Sequences of a clip, F."""
        return self.visual[0][0].shape[0] // self.clips

    def unknown(self, text_ids: Tensor) -> Tensor:
        """Arrange the captions in progress for these; returns the words that are new.

        Keys and values of a word depend on its clip and on the words up to it, so those of a
        caption are found by its words: beam search continues other rows than before.

        Args:
            text_ids: int64 [R, p + l]; each caption begins with one that is known for its clip.
        """
        if self.text_ids is None:
            return text_ids
        known = self.text_ids.unflatten(0, (self.clips, -1))
        places = known.shape[2]
        asked = text_ids[:, :places].unflatten(0, (self.clips, -1))
        same = (asked[:, :, None] == known[:, None]).all(-1)
        first = known.shape[1] * torch.arange(self.clips, device=text_ids.device)
        row = (same.int().argmax(-1) + first[:, None]).flatten()
        self.text_ids = text_ids[:, :places]
        rows = _sequences(row, self.copies)
        self.words = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.words]
        return text_ids[:, places:]


def _sequences(rows: Tensor, copies: int) -> Tensor:
    """The sequences of rows, int64 [R * F]: F adjacent ones of each."""
    return (rows[:, None] * copies + torch.arange(copies, device=rows.device)).flatten()


def clip_memory(backbone: AllInOneModel, pixels: Tensor) -> ClipMemory:
    """Keys and values of all visual tokens, in evaluation mode.

    Args:
        backbone: The model.
        pixels: Normalised frames, [B, T, 3, S, S]; or [B, V, T, 3, S, S], V views of a clip, over
            which features are averaged as over frames.

    Raises:
        ValueError: A shape does not fit the config.
    """
    clips = pixels.shape[0]
    if pixels.dim() == 6:
        pixels = pixels.flatten(0, 1)
    frames = pixels.shape[1]
    x = backbone.modality(backbone.video_embeddings(pixels), VIDEO)
    if backbone.config.roll == "flatten":
        x, frames = x.unflatten(0, (len(pixels), -1)).flatten(1, 2), 1
    encoder: Any = backbone.encoder
    exchange = encoder.exchange(x, frames, 0, None)
    visual = []
    for block in encoder.blocks:
        x, own = _attend(block, exchange(x), [], None)
        visual.append(own)
    return ClipMemory(visual, clips)


def _attend(
    block: Any, x: Tensor, others: list[KeysValues], mask: Tensor | None
) -> tuple[Tensor, KeysValues]:
    """A block in evaluation mode whose tokens also attend to other keys and values.

    Args:
        block: A Block.
        x: [rows, N, C].
        others: They come before the keys of x.
        mask: bool [N, all keys]; None: all attend to all.

    Returns:
        (tokens after the block, keys and values of x).
    """
    attention = block.attention
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, -1, attention.head_dim)).unbind(2)
    keys = torch.cat([*(other[0] for other in others), k], 1)
    values = torch.cat([*(other[1] for other in others), v], 1)
    q, keys, values = (part.transpose(1, 2) for part in (q, keys, values))
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
    # copied, so that the queries are not kept with them
    return x + block.mlp(block.norm2(x)), (k.contiguous(), v.contiguous())


def next_features(
    backbone: AllInOneModel, memory: ClipMemory, text_ids: Tensor, *, keep: bool = True
) -> Tensor:
    """Features that predict the word after each new word of the captions in progress.

    Equal to caption_features, of which it computes the new words alone.

    Args:
        backbone: The model, in evaluation mode.
        memory: The clips; row r belongs to clip r // (R / B).
        text_ids: int64 [R, p + l], complete captions so far.
        keep: Keep keys and values of the new words in the memory.

    Returns:
        [R, l, C].

    Raises:
        ValueError: The caption has no place left for a word.
    """
    new = memory.unknown(text_ids)
    rows, words = new.shape
    copies, start = memory.copies, text_ids.shape[1] - words
    x = _text(backbone, new, start).repeat_interleave(copies, 0)
    mask = text_attention(words, new.device)
    earlier = memory.visual[0][0].shape[1] + start
    mask = F.pad(mask, (earlier, 0), value=True)
    # row r * F + f of the text has sequence f of clip r // (R / B)
    clip = torch.arange(rows, device=new.device) // (rows // memory.clips)
    places = _sequences(clip, copies)
    kept: list[KeysValues] = []
    for number, block in enumerate(backbone.encoder.blocks):
        visual = memory.visual[number]
        if rows > memory.clips:
            visual = visual[0].index_select(0, places), visual[1].index_select(0, places)
        before = [memory.words[number]] if memory.words else []
        x, (k, v) = _attend(block, x, [visual, *before], mask)
        if keep:
            # the keys of [MASK] are not those of the word that takes its place
            own = k[:, :words], v[:, :words]
            parts = [*before, own]
            kept.append((torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)))
    if keep:
        memory.words, memory.text_ids = kept, text_ids
    x = backbone.encoder.norm(x[:, words:])
    return x.unflatten(0, (rows, copies)).mean(1)


class CaptionGeneration:
    """What transformers' GenerationMixin, which comes after it, needs to know of this model."""

    backbone: AllInOneModel
    main_input_name = "input_ids"

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """ClipMemory is the cache; it also holds the clips."""
        return False

    def default_generation(self) -> GenerationConfig:
        """Greedy captions from [CLS] to [SEP].

        [PAD], [UNK], [CLS] and [MASK] are never words of a caption.
        """
        return GenerationConfig(
            bos_token_id=FIRST,
            eos_token_id=LAST,
            pad_token_id=PAD,
            suppress_tokens=[PAD, UNKNOWN, FIRST, MASK],
        )

    @torch.no_grad()
    def generate(self, pixels: Tensor, text_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Write captions.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S]; or [B, V, T, 3, S, S], V views of a clip.
            text_ids: int64 [B, l], how the captions begin: [CLS] and words, without [SEP] and
                padding; None: [CLS].
            **kwargs: As in transformers: max_new_tokens, num_beams, length_penalty,
                no_repeat_ngram_size, do_sample, top_p, top_k, temperature, num_return_sequences,
                return_dict_in_generate, output_scores, use_cache, ... Without a limit, captions
                end at the model's text length, max_text_len.

        Returns:
            int64 [B * num_return_sequences, l + words], with [CLS] and [SEP], then padding
            ([PAD], or [SEP] from beam search); or transformers' output with `sequences`.

        Raises:
            ValueError: The model is in training mode, or a shape or an argument does not fit.
        """
        model: Any = self
        if model.training:
            raise ValueError(
                "the model is in training mode, whose dropout changes captions: call model.eval()"
                " first"
            )
        if model.generation_config.eos_token_id is None:
            # from_pretrained makes an empty one where the folder has no generation_config.json
            model.generation_config = self.default_generation()
        if kwargs.keys().isdisjoint({"max_length", "max_new_tokens", "generation_config"}):
            kwargs["max_length"] = model.config.max_text_len
        memory = clip_memory(self.backbone, pixels)
        if text_ids is None:
            first = kwargs.get("bos_token_id", model.generation_config.bos_token_id)
            text_ids = torch.full((len(pixels), 1), first, device=pixels.device)
        inherited: Any = super()
        return inherited.generate(text_ids, memory=memory, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, memory: ClipMemory, use_cache: bool | None = True, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next word.

        Args:
            input_ids: int64 [R, p + l].
            memory: The clips.
            use_cache: Keep keys and values of the words; otherwise all are computed in each step.
            **kwargs: Ignored.
        """
        return {"text_ids": input_ids, "memory": memory, "use_cache": use_cache is not False}
