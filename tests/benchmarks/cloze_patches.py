#!/usr/bin/env python3
"""Measures by deletion how well patch attribution methods find the patches that the model uses.

    python tests/benchmarks/cloze_patches.py --checkpoint runs/demo/train --data runs/demo/data:val

One word piece of each caption is masked. Each method ranks the patches of all frames for that word;
the first quarter of them is deleted (set to the mean colour), and then everything except that
quarter. A good method reduces the log probability of the word a lot in the first case and little in
the second. Only words whose log probability drops by at least 0.3 without the video are counted;
the others can be predicted from the sentence alone. Results: docstring of tools/cloze.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.command_line import parse, run_command
from allinone.data import EvalSet
from allinone.data.config import ClipConfig, DatasetSpec
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.inspection.media_inputs import InputClip, InputText, TextReader
from allinone.tools.inspection.patch_attribution import (
    AttentionRecorder,
    attention_at_origins,
    patch_features,
    patch_relevance,
)

MIN_DROP = 0.3
"""Smallest drop of the log probability without the video for a word to be counted."""


@dataclass(frozen=True)
class ClozePatchOptions:
    """Options of the benchmark."""

    checkpoint: Path
    """save_pretrained folder, checkpoint, or run."""
    data: str
    """Prepared data, DIR[:SPLIT]; the split is val by default."""


@torch.inference_mode()
def attention_map(loaded: LoadedModel, clip: InputClip, text: InputText) -> Tensor:
    """Attention from the [MASK] to each patch, mean over heads, sum over blocks: [T, P]."""
    frames, length = clip.pixels.shape[1], text.ids.shape[1]
    with AttentionRecorder(loaded.model.backbone.encoder) as seen:
        loaded.model(clip.pixels, text.ids, text.mask)
    maps = [
        attention_at_origins(
            weights[:, :, text.mask_positions[0]].mean(1),
            loaded.model.config,
            frames,
            length,
            block,
        )
        for block, weights in enumerate(seen.weights)
    ]
    return torch.stack(maps).sum(0)


@torch.inference_mode()
def alignment_map(loaded: LoadedModel, clip: InputClip, text: InputText) -> Tensor:
    """Cosine of the final features of the [MASK] and of each patch, as in word-patch alignment:
    [T, P]."""
    hidden = loaded.model(clip.pixels, text.ids, text.mask).text[0, text.mask_positions[0]]
    return F.cosine_similarity(patch_features(loaded, clip, text), hidden[None, None], dim=-1)


@torch.inference_mode()
def log_probability(loaded: LoadedModel, pixels: Tensor, text: InputText, target: int) -> float:
    """Log probability of the masked word piece."""
    hidden = loaded.model(pixels, text.ids, text.mask).text[0, text.mask_positions[0]]
    return float(loaded.model.mlm_head(hidden).log_softmax(-1)[target])


def keep(pixels: Tensor, kept: Tensor) -> Tensor:
    """Pixels [1, T, 3, S, S] with the mean colour (0) in all patches outside a mask [T, P]."""
    grid = round(kept.shape[1] ** 0.5)
    size = pixels.shape[-1] // grid
    mask = kept.view(1, -1, 1, grid, grid).repeat_interleave(size, 3).repeat_interleave(size, 4)
    return pixels * mask


def measure(
    loaded: LoadedModel, clip: InputClip, text: InputText, target: int, random: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Measure all methods on one word.

    Args:
        loaded: The model.
        clip: The video.
        text: A text with one [MASK].
        target: The masked word piece.
        random: Generator of the random baseline.

    Returns:
        For each method the drop of the log probability (first quarter deleted, only the first
        quarter kept); {} if the word does not need the video.
    """
    complete = log_probability(loaded, clip.pixels, text, target)
    if complete - log_probability(loaded, torch.zeros_like(clip.pixels), text, target) < MIN_DROP:
        return {}
    relevance = patch_relevance(loaded, clip, text, [target])[0]
    maps = {
        "attention x effect": relevance,
        "attention": attention_map(loaded, clip, text),
        "alignment (cosine)": alignment_map(loaded, clip, text),
        "random": torch.rand(relevance.shape, generator=random),
    }
    drops = {}
    for name, values in maps.items():
        first = torch.zeros(values.numel(), dtype=torch.bool)
        first[values.flatten().topk(values.numel() // 4).indices] = True
        first = first.view_as(values)
        deleted, kept = (
            complete - log_probability(loaded, keep(clip.pixels, patches), text, target)
            for patches in (~first, first)
        )
        drops[name] = (deleted, kept)
    return drops


def masked_clips(
    loaded: LoadedModel, dataset: EvalSet
) -> Iterator[tuple[InputClip, InputText, int]]:
    """Each clip, its caption with one random word piece masked, and the masked word piece."""
    choose = np.random.default_rng(0)
    mask_id = TextReader(loaded.model.config).tokenizer.mask_id
    for batch in dataset.batches(rank=0, world=1, batch_size=32, device=torch.device("cpu")):
        for row in range(len(batch)):
            ids, mask = batch.text_ids[row : row + 1].clone(), batch.text_mask[row : row + 1]
            position = 1 + int(choose.integers(int(mask.sum()) - 2))
            target = int(ids[0, position])
            ids[0, position] = mask_id
            pixels = batch.pixels[row : row + 1]
            clip = InputClip(Path(batch.clips[row]), pixels, np.empty(0, np.uint8), ())
            yield clip, InputText("", ids, mask, (position,)), target


def _run(argv: Sequence[str]) -> None:
    options = parse(ClozePatchOptions, argv, prog="cloze_patches.py", description=__doc__ or "")
    loaded = load_checkpoint(options.checkpoint, "cpu")
    config = loaded.model.config
    shape = ClipConfig(
        num_frames=config.num_frames, image_size=config.image_size, max_text_len=config.max_text_len
    )
    spec = DatasetSpec.parse(options.data, "val")
    dataset = EvalSet(spec, shape, replace(loaded.data, workers=0))
    random = torch.Generator().manual_seed(0)
    found: dict[str, list[tuple[float, float]]] = {}
    for clip, text, target in masked_clips(loaded, dataset):
        for name, drops in measure(loaded, clip, text, target, random).items():
            found.setdefault(name, []).append(drops)
    print(
        f"{len(found['random'])} of {len(dataset)} words need the video; drop of the log"
        " probability, mean ± standard error"
    )
    print(f"{'method':<20}{'first quarter deleted':>24}{'only first quarter kept':>26}")
    for name, pairs in found.items():
        table = np.array(pairs)
        errors = table.std(0) / len(table) ** 0.5
        deleted, kept = (
            f"{mean:.2f} ± {error:.2f}" for mean, error in zip(table.mean(0), errors, strict=True)
        )
        print(f"{name:<20}{deleted:>24}{kept:>26}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print mean and standard error per method."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
