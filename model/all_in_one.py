"""All-in-one: one transformer over raw frames and words (Wang et al., CVPR 2023).

The numerics follow the released code.

Letters: B clips, T frames, L text tokens, P patches, n visual tokens of a frame (class token,
distillation token where there is one, patches), N = L + n tokens of a sequence, C width, H heads.
Every parameter is used inside the forward of the module that owns it, because ZeRO-3 gathers
parameters by forward hooks.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .config import AllInOneConfig
from .contrast import ContrastiveFeatures
from .embeddings import TEXT, VIDEO, ModalityEmbedding, TextEmbeddings, VideoEmbeddings
from .heads import LogitScale, MLMHead
from .kernels import (
    add_kept,
    add_scaled,
    flash_attention,
    packed_attention,
    permute_tokens,
    rolled_rows,
)
from .linear import LinearFactory, SplitDropout, torch_linear
from .norm import LayerNorm
from .packing import Packing
from .roll import fold_size, roll_channels, roll_tokens

GRAPHS = 64
"""Graphs of a block that a process may compile: two per kind of pass (the last block has one of its
own), and again where sizes become variables. At torch's limit of 8, `fullgraph` raises."""


@dataclass
class AllInOneOutput(ModelOutput):
    """Features of the joint pass after the final norm, averaged over frames.

    Only what the caller reads is there, see `read` of AllInOneModel.forward.
    """

    text: Tensor | None = None
    """[B, L, C]"""
    video: Tensor | None = None
    """[B, n, C]: class token, distillation token where there is one, patches in use. The
    first patch is number config.num_prefix_tokens."""
    pooled: Tensor | None = None
    """[B, C], tanh(dense(text class token))"""
    read: Tensor | None = None
    """[M, C], the text tokens that the caller named."""


@dataclass(frozen=True)
class ReadTokens:
    """Tokens whose final features are read, R of them. The last block computes no others."""

    queries: int
    """Tokens at the start of each sequence that include all of these: the text, or the first."""
    sequences: Tensor
    """int64 [R], sequence of each."""
    places: Tensor
    """int64 [R], place of each in its sequence."""

    @classmethod
    def first(cls, sequences: int, device: torch.device) -> ReadTokens:
        """The first token of each sequence, the class token."""
        rows = torch.arange(sequences, device=device)
        return cls(1, rows, torch.zeros_like(rows))

    @classmethod
    def of_text(cls, words: Tensor, text_tokens: int, frames: int) -> ReadTokens:
        """Text tokens of every frame's sequence.

        Args:
            words: int64 [M], word j of text i is i * L + j.
            text_tokens: Tokens per text, L.
            frames: Sequences per text, T; those of a word are adjacent in the result.
        """
        sequences = (words // text_tokens)[:, None] * frames + torch.arange(
            frames, device=words.device
        )
        return cls(
            text_tokens,
            sequences.flatten(),
            (words % text_tokens)[:, None].expand(-1, frames).flatten(),
        )

    def of(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[sequences, tokens, C], or [1, W, C] with a packing, → [R, C]."""
        if packing is None:
            rows = self.sequences * x.shape[1] + self.places
        else:
            rows = packing.numbers(self.sequences, self.places)
        return x.flatten(0, 1).index_select(0, rows)


class Attention(nn.Module):
    """Multi-head self-attention; qkv is one layer with outputs [q heads | k heads | v heads]."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        # blocks=3: q, k and v are divided by heads separately under tensor parallelism
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size, split="column", blocks=3)
        self.proj = linear(config.hidden_size, config.hidden_size, split="row")
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, x: Tensor, mask: Tensor | Packing | None, read: ReadTokens | None = None
    ) -> Tensor:
        # unbind before transpose: the gradient is then stacked in the order of qkv's outputs, and
        # is not copied again. q, k and v have the shape [B*T, N, H, C/H]
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        dropout = self.attention_dropout if self.training else 0.0
        packing = None
        if isinstance(mask, Packing):
            packing = mask
            if mask.queries is not None and mask.query_numbers is not None:
                packing, q = mask.queries, q.index_select(1, mask.query_numbers)
            mixed = packed_attention(q, k, v, packing, mask, dropout)
        else:
            if read is not None:
                q = q[:, : read.queries]
                if mask is not None and mask.shape[2] > 1:
                    mask = mask[:, :, : read.queries]
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            # boolean masks mean True = attend; the scale is the default, head_dim ** -0.5
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            mixed = mixed.transpose(1, 2)
        mixed = mixed.flatten(2)
        return self.dropout(self.proj(mixed if read is None else read.of(mixed, packing)))


class MLP(nn.Module):
    """Two layers with exact GELU; dropout after both."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.fc1 = linear(config.hidden_size, config.mlp_ratio * config.hidden_size, split="column")
        self.fc2 = linear(config.mlp_ratio * config.hidden_size, config.hidden_size, split="row")
        self.inner_dropout = SplitDropout(config.hidden_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.inner_dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Adds a residual branch with stochastic depth per sequence (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self,
        x: Tensor,
        branch: Tensor,
        sequences: int,
        owner: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> Tensor:
        """Add the branch of the sequences that keep it.

        Args:
            x: Residual stream, [B*T, N, C], or [R, C] at the tokens that are read, or [1, W, C]
                without padding.
            branch: Of the same shape.
            sequences: B*T.
            owner: int64 [R] or [W], the sequence of each token.
            rate: float32 scalar, this module's rate in training; None: use the number. A compiled
                graph would contain the number, so each block would need a graph of its own.
        """
        if not self.training or (rate is None and self.rate == 0):
            return x + branch
        # one draw per sequence; dividing by the kept share preserves the expectation
        drawn = torch.rand(sequences, 1, 1, device=x.device)
        keep = (drawn >= (self.rate if rate is None else rate)).to(x.dtype)
        if owner is not None:
            keep = keep[:, 0].index_select(0, owner)
        if rate is not None:
            return add_scaled(x, branch, keep, rate)
        return add_kept(x, branch, keep, self.rate)


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        config: The model.
        drop_path: Stochastic depth of this block.
        linear: Makes the linear layers.
    """

    def __init__(self, config: AllInOneConfig, drop_path: float, linear: LinearFactory) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=1e-6)
        self.attention = Attention(config, linear)
        self.norm2 = LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = MLP(config, linear)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Packing | None,
        read: ReadTokens | None = None,
        rate: Tensor | None = None,
    ) -> Tensor:
        """[B*T, N, C] → [B*T, N, C], or → [R, C] at the tokens that are read.

        Args:
            x: Tokens.
            mask: As in Encoder.forward.
            read: As in Encoder.forward.
            rate: As in DropPath.forward.
        """
        packing, sequences, owner = None, x.shape[0], None
        if isinstance(mask, Packing):
            packing, sequences, owner = mask, mask.shape[0], mask.owner
        branch = self.attention(self.norm1(x), mask, read)
        if read is not None:
            x, owner = read.of(x, packing), read.sequences
        x = self.drop_path(x, branch, sequences, owner, rate)
        return self.drop_path(x, self.mlp(self.norm2(x)), sequences, owner, rate)


def rolled_block(
    block: nn.Module,
    exchange: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor | Packing | None,
    read: ReadTokens | None,
    rate: Tensor | None,
) -> Tensor:
    """A block with the roll before it: what is compiled as one graph.

    Args:
        block: A Block.
        exchange: The roll.
        x: As in Block.forward.
        mask: As in Block.forward.
        read: As in Block.forward.
        rate: As in Block.forward.
    """
    return block(exchange(x), mask, read, rate)


class Encoder(nn.Module):
    """The blocks, with the temporal roll before each of them, and the final norm."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        # max(): a model of one block has rate 0
        rates = [config.drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate, linear) for rate in rates)
        self.norm = LayerNorm(config.hidden_size, eps=1e-6)
        self.config = config
        self.gradient_checkpointing = False
        self.compiled_block: Callable[..., Tensor] | None = None
        """Compiled form of rolled_block, see AllInOnePreTrainedModel.compile_blocks."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Packing | None = None,
        frames: int = 1,
        text_tokens: int = 0,
        read: ReadTokens | None = None,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: Tokens, [B*T, N, C].
            mask: Boolean, True = attend: of keys, [B*T, 1, 1, N]; of queries and keys, the same in
                all sequences, [1, 1, N, N]. None attends to all. With a packing, padding is left
                out of the blocks.
            frames: Frames per clip, T; more than 1 rolls.
            text_tokens: Text tokens at the start of each sequence, L.
            read: Tokens that are read; None: all.

        Returns:
            Tokens after the final norm, [B*T, N, C], or [R, C] those that are read.
        """
        run, rates = self.compiled_block or rolled_block, self._rates(x.device)
        compiled = self.compiled_block is not None
        packing = mask if isinstance(mask, Packing) else None
        if packing is not None:
            # chosen here, not in the blocks: a compiler cannot look into the choice
            mask = packing = replace(packing, flash=flash_attention(x.device, x.dtype))
            x = packing.pack(x)
        exchange = self.exchange(x, frames, text_tokens, packing)
        own = mask if packing is None or read is None else packing.reading(read.queries)
        if compiled:
            _mark_varying(read, own)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            if compiled and packing is not None:
                # the roll is outside of the graph: its permutation differs in every micro-batch
                x = exchange(x)
                torch._dynamo.maybe_mark_dynamic(x, 1)
            elif compiled and self.training:
                # a size that an evaluation had before would become a variable of the graph, and a
                # resumed run, which may begin with an evaluation, would not be bit-equal
                torch._dynamo.mark_static(x)
            roll = _unchanged if compiled and packing is not None else exchange
            # the blocks before the last need all tokens, as keys of the next. The roll is also
            # before the first block, as in the original
            reads = (own, read) if number == last else (mask, None)
            inputs = (block, roll, x, *reads, rates[number])
            if self.gradient_checkpointing and self.training:
                # the re-entrant variant gives no gradients where the input needs none
                x = torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)
            else:
                x = run(*inputs)
        x = self.norm(x)
        return x if packing is None or read is not None else packing.unpack(x)

    def _rates(self, device: torch.device) -> Sequence[Tensor | None]:
        """Rate of stochastic depth of each block as float32 scalars; None where numbers do."""
        depth, highest = len(self.blocks), self.config.drop_path
        if self.compiled_block is None or not self.training or not highest:
            return [None] * depth
        # computed on the device: a copy from the host would wait for it
        numbers = torch.arange(depth, device=device, dtype=torch.float32)
        return (numbers * (highest / max(depth - 1, 1))).unbind()

    def exchange(
        self, x: Tensor, frames: int, text_tokens: int, packing: Packing | None
    ) -> Callable[[Tensor], Tensor]:
        """What rolls tokens or channels between frames before each block.

        Average and flatten need no exchange here.

        Args:
            x: Tokens of the first block.
            frames: Frames per clip, T.
            text_tokens: Text tokens at the start of each padded sequence, L.
            packing: Where x has no padding.
        """
        config = self.config
        rows, tokens = x.shape[:2] if packing is None else packing.shape
        if config.roll == "roll":
            fold = fold_size(tokens - text_tokens, config.roll_divisor)
            if frames == 1 or fold == 0:
                return _unchanged
            # a compiler fuses the plain roll with its neighbours
            compiled = torch.compiler.is_compiling() or self.compiled_block is not None
            if compiled and packing is None:
                return partial(roll_tokens, frames=frames, text_tokens=text_tokens, fold=fold)
            source, target = rolled_rows(rows, tokens, frames, text_tokens, fold, x.device, packing)
            return lambda x: permute_tokens(x, source, target)
        if config.roll == "channel":
            fold = fold_size(config.hidden_size, config.roll_divisor)
            roll = partial(roll_channels, frames=frames, text_tokens=text_tokens, fold=fold)
            return roll if packing is None else lambda x: packing.pack(roll(packing.unpack(x)))
        return _unchanged


def _unchanged(x: Tensor) -> Tensor:
    return x


def _mark_varying(read: ReadTokens | None, packing: Tensor | Packing | None) -> None:
    """Tell torch.compile which sizes differ in every micro-batch, before the first graph.

    Args:
        read: The number of masked words differs.
        packing: The number of tokens differs.
    """
    varying = [] if read is None else [read.sequences, read.places]
    if isinstance(packing, Packing):
        varying += [packing.owner, packing.places]
        if packing.queries is not None and packing.query_numbers is not None:
            varying += [packing.query_numbers, packing.queries.owner, packing.queries.places]
    for indices in varying:
        torch._dynamo.maybe_mark_dynamic(indices, 0)


class Pooler(nn.Module):
    """tanh(dense(class token))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class AllInOnePreTrainedModel(PreTrainedModel):
    """Initialisation and saving, shared by the bare model and the one with heads."""

    config_class = AllInOneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixels"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_set_attn_implementation_cached_value = True  # set_attn_implementation checks, too

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, but refuse a folder with two sets of weights.

        transformers would take the single file, which is stale if the weights were later saved in
        shards.

        Raises:
            ValueError: The folder's weights are ambiguous, or a shard is missing.
        """
        from .weight_folder import weight_files

        if source is not None and Path(source).is_dir() and "subfolder" not in kwargs:
            weight_files(Path(source))
        return super().from_pretrained(source, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers does; weights get the permissions that the umask gives to new files."""
        super().save_pretrained(save_directory, *args, **kwargs)
        # safetensors writes 0600 since version 0.6. config.json is new and written by open(). This
        # is open_to_umask of common/atomic_io.py, which a folder copied by transformers lacks
        config = Path(save_directory) / "config.json"
        if config.is_file():
            mode = stat.S_IMODE(config.stat().st_mode)
            for path in config.parent.glob("*.safetensors*"):
                path.chmod(mode)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        """Refuse everything but sdpa, whether the caller or config.json asks for it.

        transformers would ignore "eager" without a word, and would take the name of a repository
        for a kernel whose code is fetched and run.
        """
        if attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation={attn_implementation!r} is not supported: this model computes"
                " attention by torch's scaled_dot_product_attention; leave it out, or give 'sdpa'"
            )
        return "sdpa"

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module as the original does.

        N(0, 0.02) for weights and tables, 0 for biases and the temporal embedding; the patch
        convolution keeps PyTorch's default. The original draws the transformer's weights from a
        normal truncated at +-2, a hundred deviations out: the same distribution.
        """
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Embedding, ModalityEmbedding)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, VideoEmbeddings):
            nn.init.normal_(module.class_token, std=0.02)
            if module.distillation_token is not None:
                nn.init.normal_(module.distillation_token, std=0.02)
            nn.init.normal_(module.position, std=0.02)
            if module.temporal is not None:
                # weights without a temporal embedding then compute what they did before
                nn.init.zeros_(module.temporal)
        elif isinstance(module, LogitScale):
            nn.init.constant_(module.log_scale, torch.tensor(LogitScale.INITIAL).log().item())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute every block in the backward pass: less memory, one more forward."""
        self._encoder().gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self._encoder().gradient_checkpointing = False

    def compile_blocks(self, **options: Any) -> None:
        """Compile each transformer block, with the roll before it, as one graph.

        The blocks share the graphs, so there is one per kind of pass (training or evaluation, one
        or several frames, all tokens or those that are read), not one per block. Gradients of a
        block are complete when its part of the backward pass ends, so that their reduction overlaps
        with the rest of it. Names of parameters do not change.

        Args:
            **options: Of torch.compile; `fullgraph` is on unless it is given.
        """
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, GRAPHS)
        # by default a hook that is registered after the first pass would be ignored
        config.skip_nnmodule_hook_guards = False
        self._encoder().compiled_block = torch.compile(
            rolled_block, **{"fullgraph": True, **options}
        )

    def _encoder(self) -> Encoder:
        return next(module for module in self.modules() if isinstance(module, Encoder))


class AllInOneModel(AllInOnePreTrainedModel):
    """The transformer without heads. `linear` makes the large layers (model/linear.py)."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory = torch_linear) -> None:
        super().__init__(config)
        self.text_embeddings = TextEmbeddings(config)
        self.video_embeddings = VideoEmbeddings(config)
        self.modality = ModalityEmbedding(config.hidden_size)
        self.encoder = Encoder(config, linear)
        self.pooler = Pooler(config.hidden_size)
        self.post_init()

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        patch_order: Tensor | None = None,
        *,
        clips: Tensor | None = None,
        read: Tensor | Literal["pooled"] | None = None,
        text_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneOutput:
        """Joint pass of S texts, each with one of B clips.

        Args:
            pixels: Normalised frames, [B, T, 3, H, W].
            text_ids: Word pieces, int64 [S, L].
            text_mask: int64 [S, L], 1 at tokens.
            patch_order: int64 [S*T, K]: patch slot k of row i*T + f holds patch order[k]; patches
                that it does not name are left out. None: all, in the order of the config.
            clips: int64 [S], the clip of each text; None: S = B, text i has clip i. Patches are
                embedded once per clip.
            read: What of the result is read; the last block computes nothing else. None: text,
                video and pooled. "pooled": the pooled class token. A tensor, int64 [M]: these text
                tokens (word j of text i is i * L + j), in the output `read`.
            text_lengths: int64 [S] on the CPU, tokens of each text. If given, the blocks compute no
                padding, which must come after the tokens of a text. The outputs are the same, but
                zeros at padding.
            **kwargs: Ignored; transformers passes its own.

        Raises:
            ValueError: A shape does not fit the config.
        """
        frames, (texts, length) = pixels.shape[1], text_ids.shape
        text = self.modality(self.text_embeddings(text_ids), TEXT)
        video = self.modality(self.video_embeddings(pixels, patch_order, clips=clips), VIDEO)
        flatten = self.config.roll == "flatten"
        tokens = _read_tokens(read, texts, length, 1 if flatten else frames, text.device)
        if flatten:
            # [S, T*n, C]: one sequence holds all frames
            video = video.unflatten(0, (texts, frames)).flatten(1, 2)
            mask = _keys(text_mask, 1, video.shape[1], text_lengths)
            x = self.encoder(torch.cat([text, video], 1), mask, read=tokens)
        else:
            # embedded once; copies are adjacent (clip-major) and differ from block 0 on
            text = text.repeat_interleave(frames, 0)
            mask = _keys(text_mask, frames, video.shape[1], text_lengths)
            x = self.encoder(torch.cat([text, video], 1), mask, frames, length, tokens)
            # a plain mean: frames are never padded. No -1 in the shape: there may be 0 words
            x = x.unflatten(0, (x.shape[0] // frames, frames)).mean(1)
        if read is not None:
            if isinstance(read, Tensor):
                return AllInOneOutput(read=x)
            return AllInOneOutput(pooled=self.pooler(x))
        text, video = x[:, :length], x[:, length:]
        if flatten:
            video = video.unflatten(1, (frames, -1)).mean(1)
        return AllInOneOutput(text=text, video=video, pooled=self.pooler(text[:, 0]))

    def encode_text(
        self, text_ids: Tensor, text_mask: Tensor, text_lengths: Tensor | None = None
    ) -> Tensor:
        """Text-only pass. Arguments as in `forward`.

        One copy per text; the original computes T copies, which are equal without frames.

        Args:
            text_ids: int64 [B, L].
            text_mask: int64 [B, L].
            text_lengths: int64 [B] on the CPU; if given, the blocks compute no padding.

        Returns:
            Class token, [B, C].
        """
        x = self.modality(self.text_embeddings(text_ids), TEXT)
        read = ReadTokens.first(x.shape[0], x.device)
        return self.encoder(x, _keys(text_mask, 1, 0, text_lengths), read=read)

    def encode_video(self, pixels: Tensor, patch_order: Tensor | None = None) -> Tensor:
        """Video-only pass without a roll, as in the original: mean class token, [B, C].

        `patch_order`, int64 [B*T, K], names the patches to use; None: all.
        """
        clips, frames = pixels.shape[:2]
        x = self.modality(self.video_embeddings(pixels, patch_order, rolls=False), VIDEO)
        x = self.encoder(x, read=ReadTokens.first(x.shape[0], x.device))
        return x.unflatten(0, (clips, frames)).mean(1)


def _read_tokens(
    read: Tensor | Literal["pooled"] | None,
    texts: int,
    length: int,
    frames: int,
    device: torch.device,
) -> ReadTokens | None:
    """The tokens of all sequences that give what is read; None: all.

    Args:
        read: As in AllInOneModel.forward.
        texts: Texts, S.
        length: Tokens of each, L.
        frames: Sequences per text, T.
        device: Where the tokens are.
    """
    if read is None:
        return None
    if isinstance(read, Tensor):
        return ReadTokens.of_text(read, length, frames)
    return ReadTokens.first(texts * frames, device)


def _keys(
    text_mask: Tensor, frames: int, visual_tokens: int, text_lengths: Tensor | None
) -> Tensor | Packing:
    """What is attended to, real words and all visual tokens.

    Args:
        text_mask: [S, L], 1 at tokens.
        frames: Sequences per text, T.
        visual_tokens: Visual tokens of each sequence, n.
        text_lengths: int64 [S] on the CPU; None: padding is computed.

    Returns:
        A boolean mask [S*T, 1, 1, L + n], or a packing.
    """
    if text_lengths is not None:
        return Packing.of(text_mask, int(text_lengths.sum()), frames, visual_tokens)
    mask = F.pad(text_mask.bool(), (0, visual_tokens), value=True)
    return mask[:, None, None].repeat_interleave(frames, 0)


class AllInOneForPreTraining(ContrastiveFeatures, AllInOnePreTrainedModel):
    """The model with the heads of MLM, VTM and VTC."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory = torch_linear) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = AllInOneModel(config, linear)
        self.mlm_head = MLMHead(width, config.vocab_size)
        self.vtm_head = nn.Linear(width, 2)
        self.text_projection = nn.Linear(width, config.projection_dim)
        self.video_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = LogitScale()
        if config.image_heads:
            self.image_mlm_head = MLMHead(width, config.vocab_size)
            self.image_vtm_head = nn.Linear(width, 2)
        self.post_init()

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        patch_order: Tensor | None = None,
        *,
        clips: Tensor | None = None,
        read: Tensor | Literal["pooled"] | None = None,
        text_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneOutput:
        """Joint pass of the backbone; objectives apply the heads to the tokens they need.

        Arguments and errors as in AllInOneModel.forward.
        """
        return self.backbone(
            pixels,
            text_ids,
            text_mask,
            patch_order,
            clips=clips,
            read=read,
            text_lengths=text_lengths,
        )

    def heads(self, frames: int) -> tuple[nn.Module, nn.Module]:
        """MLM and VTM heads for clips of `frames` frames; images may have separate heads."""
        if frames == 1 and self.config.image_heads:
            return self.image_mlm_head, self.image_vtm_head
        return self.mlm_head, self.vtm_head
