"""Bytes that a forward pass saves for its backward pass.

Derived from model/all_in_one.py; tests/engine/planning/test_memory.py compares it with autograd.

Letters: R sequences (clips x frames; texts), N tokens of a sequence, C width, H heads, s bytes of
an activation, m bytes of a dropout mask's element (1 on a GPU, s on a CPU), M masked tokens, V
vocabulary. A tensor that two operations save counts once; weights do not count.
"""

from __future__ import annotations

from .config import AllInOneConfig
from .flops import Part

STATISTICS = 8
"""Bytes of a LayerNorm's mean and reciprocal deviation per token, fp32 on a GPU."""


def block_bytes(
    config: AllInOneConfig, sequences: int, tokens: int, element: int, mask: int
) -> float:
    """One transformer block.

    Per token: its input (norm 1), norm 1's output, q, k and v, the mixed heads, the input of norm 2
    and its output: 8 C s; GELU's input and the second layer's input: 2 mlp_ratio C s. Dropout
    masks: (2 + mlp_ratio) C m. The attention matrix is never stored.

    Args:
        config: The model.
        sequences: Sequences, R.
        tokens: Tokens of each, N.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
    """
    width, ratio = config.hidden_size, config.mlp_ratio
    masks = (2 + ratio) * width * mask if config.hidden_dropout else 0
    return (
        sequences
        * tokens
        * (
            (8 + 2 * ratio) * width * element
            + masks
            + 2 * STATISTICS
            # fused attention saves the fp32 log-sum-exp of each query and head
            + 4 * config.num_attention_heads
        )
    )


def encoder_bytes(
    config: AllInOneConfig,
    sequences: int,
    tokens: int,
    element: int,
    mask: int,
    checkpointing: bool = False,
) -> float:
    """All blocks and the final norm.

    Args:
        config: The model.
        sequences: Sequences, R.
        tokens: Tokens of each, N.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        checkpointing: Blocks keep only their input.
    """
    width = config.hidden_size
    one = (
        sequences * tokens * width * element
        if checkpointing
        else block_bytes(config, sequences, tokens, element, mask)
    )
    return config.num_hidden_layers * one + sequences * tokens * (width * element + STATISTICS)


def pass_shape(
    config: AllInOneConfig, clips: int, frames: int, text_tokens: int, part: Part = "joint"
) -> tuple[int, int]:
    """Shape of the tokens in the blocks of one pass.

    Args:
        config: The model.
        clips: Clips, B.
        frames: Frames per clip, T.
        text_tokens: Tokens per text, L.
        part: Joint pass, or one modality alone.

    Returns:
        (sequences, tokens of each). Frames are separate sequences, except in the joint pass of
        roll="flatten".
    """
    visual = config.num_visual_tokens
    if part == "text":
        return clips, text_tokens
    if part == "video":
        return clips * frames, visual
    return (
        (clips, text_tokens + frames * visual)
        if config.roll == "flatten"
        else (clips * frames, text_tokens + visual)
    )


def pass_bytes(
    config: AllInOneConfig,
    *,
    clips: int,
    frames: int,
    text_tokens: int,
    part: Part = "joint",
    element: int = 2,
    mask: int = 1,
    checkpointing: bool = False,
    own_pixels: bool = True,
) -> float:
    """One pass through the backbone, embeddings included.

    Args:
        config: The model.
        clips: Clips, B.
        frames: Frames per clip, T.
        text_tokens: Tokens per text, L.
        part: Joint pass, or one modality alone.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        checkpointing: Blocks keep only their input.
        own_pixels: The patch convolution saves a copy of the pixels (cast to another precision, or
            reordered) instead of the batch's tensor.
    """
    width, visual = config.hidden_size, config.num_visual_tokens
    dropout = mask if config.hidden_dropout else 0
    text = clips * text_tokens * (width * (element + dropout) + STATISTICS)
    pixels = clips * frames * 3 * config.image_size**2 * element if own_pixels else 0
    video = pixels + clips * frames * visual * width * dropout
    blocks = encoder_bytes(
        config, *pass_shape(config, clips, frames, text_tokens, part), element, mask, checkpointing
    )
    if part == "text":
        # the class token is a view of the final norm's output, which therefore stays in memory
        output = clips * text_tokens * width * element
        return text + output + blocks
    return blocks + video + (text if part == "joint" else 0)


def mlm_head_bytes(config: AllInOneConfig, masked_tokens: int, element: int = 2) -> float:
    """Bytes that the MLM head saves at M positions.

    Gathered text, and the inputs of GELU, norm and decoder; fp32 log-probabilities over the
    vocabulary.

    Args:
        config: The model.
        masked_tokens: Positions, M.
        element: Bytes of an activation, s.
    """
    return masked_tokens * (4 * config.hidden_size * element + 4 * config.vocab_size + STATISTICS)


def working_bytes(
    config: AllInOneConfig,
    sequences: int,
    tokens: int,
    element: int = 2,
    mask: int = 1,
    checkpointing: bool = False,
) -> float:
    """Bytes that the backward pass of one block needs in addition to saved tensors.

    Two gradients of the MLP's hidden layer and of the residual stream; with checkpointing also the
    block's recomputed activations.

    Args:
        config: The model.
        sequences: Sequences, R.
        tokens: Tokens of each, N.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        checkpointing: Blocks are recomputed.
    """
    gradients = sequences * tokens * (2 * config.mlp_ratio + 2) * config.hidden_size * element
    return gradients + (
        block_bytes(config, sequences, tokens, element, mask) if checkpointing else 0
    )
