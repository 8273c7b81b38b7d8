"""Bytes that a forward pass saves for its backward pass.

Derived from model/all_in_one.py; tests/engine/planning/test_memory.py compares it with autograd.

Letters: R sequences (clips x frames; texts), N tokens of a sequence, C width, H heads, s bytes of
an activation, m bytes of a dropout mask's element (1 on a GPU, s on a CPU), M masked tokens, V
vocabulary. A tensor that two operations save counts once; weights do not count.
"""

from __future__ import annotations

from .config import AllInOneConfig
from .flops import CLASS_TOKEN, LastBlock, Part

STATISTICS = 8
"""Bytes of a LayerNorm's mean and reciprocal deviation per token, fp32 on a GPU."""


def block_bytes(
    config: AllInOneConfig,
    sequences: int,
    tokens: int,
    element: int,
    mask: int,
    last: LastBlock | None = None,
) -> float:
    """One transformer block.

    Per token: its input (norm 1), norm 1's output, q, k and v: 5 C s; the mixed heads, the input of
    norm 2 and its output: 3 C s; GELU's input and the second layer's input: 2 mlp_ratio C s.
    Dropout masks: (2 + mlp_ratio) C m. The attention matrix is never stored. The last block keeps
    the 5 C s of all tokens, the mixed heads of its queries, and all but the 5 C s of its rows.

    Args:
        config: The model.
        sequences: Sequences, R.
        tokens: Tokens of each, N.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        last: The last block, where few tokens are read; None: all tokens.
    """
    width, ratio = config.hidden_size, config.mlp_ratio
    masks = (2 + ratio) * width * mask if config.hidden_dropout else 0
    # fused attention saves the fp32 log-sum-exp of each query and head
    query = width * element + 4 * config.num_attention_heads
    row = (2 + 2 * ratio) * width * element + masks + STATISTICS
    if last is None:
        last = LastBlock(tokens, tokens)
    else:
        row += width * element  # the mixed heads of the rows, copied from those of the queries
    return sequences * (
        tokens * (5 * width * element + STATISTICS) + last.queries * query + last.rows * row
    )


def encoder_bytes(
    config: AllInOneConfig,
    sequences: int,
    tokens: int,
    element: int,
    mask: int,
    checkpointing: bool = False,
    last: LastBlock | None = None,
) -> float:
    """All blocks and the final norm.

    Args:
        config: The model.
        sequences: Sequences, R.
        tokens: Tokens of each, N.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        checkpointing: Blocks keep only their input.
        last: The last block, where few tokens are read; None: all tokens.
    """
    width = config.hidden_size
    if checkpointing:
        one = final = float(sequences * tokens * width * element)
    else:
        one = block_bytes(config, sequences, tokens, element, mask)
        final = block_bytes(config, sequences, tokens, element, mask, last)
    blocks = (config.num_hidden_layers - 1) * one + final
    rows = tokens if last is None else last.rows
    return blocks + sequences * rows * (width * element + STATISTICS)


def pass_shape(
    config: AllInOneConfig,
    clips: int,
    frames: int,
    text_tokens: int,
    part: Part = "joint",
    patches: int | None = None,
) -> tuple[int, int]:
    """Shape of the tokens in the blocks of one pass.

    Args:
        config: The model.
        clips: Clips, B.
        frames: Frames per clip, T.
        text_tokens: Tokens per text, L.
        part: Joint pass, or one modality alone.
        patches: Patches of a frame that are used; None: all.

    Returns:
        (sequences, tokens of each). Frames are separate sequences, except in the joint pass of
        roll="flatten".
    """
    visual = config.visual_tokens(patches)
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
    embedded: int | None = None,
    last: LastBlock | None = None,
    patches: int | None = None,
) -> float:
    """One pass through the backbone, embeddings included.

    Args:
        config: The model.
        clips: Texts with a clip, or clips, or texts, of the pass.
        frames: Frames per clip, T.
        text_tokens: Tokens per text, L.
        part: Joint pass, or one modality alone, of which only the class token is read.
        element: Bytes of an activation, s.
        mask: Bytes of an element of a dropout mask, m.
        checkpointing: Blocks keep only their input.
        embedded: Different clips among them, whose patches are embedded once; None: all.
        last: What the last block of a joint pass computes; None: all tokens.
        patches: Patches of a frame that are used; None: all.
    """
    width, visual = config.hidden_size, config.visual_tokens(patches)
    dropout = mask if config.hidden_dropout else 0
    text = clips * text_tokens * (width * (element + dropout) + STATISTICS)
    # the patch projection saves the pixels in the order of the patches
    pixels = (clips if embedded is None else embedded) * frames * 3 * config.image_size**2 * element
    video = pixels + clips * frames * visual * width * dropout
    shape = pass_shape(config, clips, frames, text_tokens, part, patches)
    blocks = encoder_bytes(
        config, *shape, element, mask, checkpointing, last if part == "joint" else CLASS_TOKEN
    )
    if part == "text":
        # without a mean over frames, the final norm's output is the input of the projection
        return text + blocks + clips * width * element
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
