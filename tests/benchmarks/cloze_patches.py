#!/usr/bin/env python3
"""Which way of choosing patches for tools/cloze.py names those that the model uses? Measured by
deletion.

    python tests/benchmarks/cloze_patches.py --checkpoint runs/demo/train --data runs/demo/data:val

One word piece of each caption is hidden. Each method ranks the patches of all frames for that word;
the first quarter of them is wiped out (set to the mean colour), and then everything but that
quarter. A good method loses much log probability of the word in the first case and little in the
second. Only words whose log probability falls by at least 0.3 without any picture are counted: the
others are read off the sentence.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.data import EvalSet
from allinone.data.config import ClipConfig, DatasetSpec
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.inspection.media_inputs import InputClip, TextReader, Words
from allinone.tools.inspection.patch_attribution import (
    AttentionRecorder,
    patch_features,
    patch_relevance,
    row_to_places,
)

SEEN = 0.3


@torch.inference_mode()
def attention_map(loaded: LoadedModel, clip: InputClip, words: Words) -> Tensor:
    """The gap's attention to each patch, mean over heads, sum over blocks: [T, P]."""
    frames, length = clip.pixels.shape[1], words.ids.shape[1]
    with AttentionRecorder(loaded.model.backbone.encoder) as seen:
        loaded.model(clip.pixels, words.ids, words.mask)
    rows = [weights[:, :, words.gaps[0]].mean(1) for weights in seen.weights]
    places = [
        row_to_places(row, loaded.model.config, frames, length, block)
        for block, row in enumerate(rows)
    ]
    return torch.stack(places).sum(0)


@torch.inference_mode()
def alignment_map(loaded: LoadedModel, clip: InputClip, words: Words) -> Tensor:
    """Cosine of the gap's final feature and each patch's: what word-patch alignment goes by, [T,
    P]."""
    text = loaded.model(clip.pixels, words.ids, words.mask).text[0, words.gaps[0]]
    return F.cosine_similarity(patch_features(loaded, clip, words), text[None, None], dim=-1)


@torch.inference_mode()
def log_probability(loaded: LoadedModel, pixels: Tensor, words: Words, target: int) -> float:
    """Of the hidden word piece."""
    text = loaded.model(pixels, words.ids, words.mask).text[0, words.gaps[0]]
    return float(loaded.model.mlm_head(text).log_softmax(-1)[target])


def keep(pixels: Tensor, kept: Tensor) -> Tensor:
    """Pixels [1, T, 3, S, S] with the mean colour in all patches outside the boolean mask [T,
    P]."""
    grid = round(kept.shape[1] ** 0.5)
    size = pixels.shape[-1] // grid
    mask = kept.view(1, -1, 1, grid, grid).repeat_interleave(size, 3).repeat_interleave(size, 4)
    return pixels * mask


def measure(
    loaded: LoadedModel, clip: InputClip, words: Words, target: int, random: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Method → loss of log probability (first quarter deleted, only first quarter kept); {} where
    the word needs no picture."""
    whole = log_probability(loaded, clip.pixels, words, target)
    if whole - log_probability(loaded, torch.zeros_like(clip.pixels), words, target) < SEEN:
        return {}
    relevance = patch_relevance(loaded, clip, words, [target])[0]
    maps = {
        "attention x effect": relevance,
        "attention": attention_map(loaded, clip, words),
        "alignment (cosine)": alignment_map(loaded, clip, words),
        "random": torch.rand(relevance.shape, generator=random),
    }
    losses = {}
    for name, values in maps.items():
        first = torch.zeros(values.numel(), dtype=torch.bool)
        first[values.flatten().topk(values.numel() // 4).indices] = True
        first = first.view_as(values)
        losses[name] = tuple(
            whole - log_probability(loaded, keep(clip.pixels, kept), words, target)
            for kept in (~first, first)
        )
    return losses


def main() -> None:
    """Print mean and standard error per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True, help="prepared data, DIR[:SPLIT]")
    args = parser.parse_args()
    loaded = load_checkpoint(args.checkpoint, "cpu")
    config, reader = loaded.model.config, TextReader(loaded.model.config)
    shape = ClipConfig(
        num_frames=config.num_frames, image_size=config.image_size, max_text_len=config.max_text_len
    )
    dataset = EvalSet(DatasetSpec.parse(args.data, "val"), shape, replace(loaded.data, workers=0))
    choose, random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    found: dict[str, list[tuple[float, float]]] = {}
    for batch in dataset.batches(rank=0, world=1, batch_size=32, device=torch.device("cpu")):
        for row in range(len(batch)):
            ids, mask = batch.text_ids[row : row + 1].clone(), batch.text_mask[row : row + 1]
            gap = 1 + int(choose.integers(int(mask.sum()) - 2))
            target, ids[0, gap] = int(ids[0, gap]), reader.tokenizer.mask_id
            clip = InputClip(
                Path(batch.clips[row]), batch.pixels[row : row + 1], np.empty(0, np.uint8), ()
            )
            for name, losses in measure(
                loaded, clip, Words("", ids, mask, (gap,)), target, random
            ).items():
                found.setdefault(name, []).append(losses)
    print(
        f"{len(found['random'])} of {len(dataset)} words need the picture; loss of log probability,"
        " mean ± standard error"
    )
    print(f"{'method':<20}{'first quarter deleted':>24}{'only first quarter kept':>26}")
    for name, pairs in found.items():
        table = np.array(pairs)
        cells = [
            f"{m:.2f} ± {s:.2f}"
            for m, s in zip(table.mean(0), table.std(0) / len(table) ** 0.5, strict=True)
        ]
        print(f"{name:<20}{cells[0]:>24}{cells[1]:>26}")


if __name__ == "__main__":
    main()
