"""Examples for people: gallery rows and masked words, chosen by a fixed rule and not by their
success."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from allinone.data import EvalSet
from allinone.data.loading.batch import Batch
from allinone.data.text import Tokenizer
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.evaluation import Embeddings
from allinone.tools.reporting.pretrain_page import MaskedWord, Query

CPU = torch.device("cpu")


def frames_of(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Pixels back to pictures: uint8 [B, T, H, W, 3]."""
    pixels = batch.pixels.cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()


def strips(dataset: EvalSet) -> dict[str, np.ndarray]:
    """Clip name → frames uint8 [T, H, W, 3], of a whole evaluation set (small ones only)."""
    found: dict[str, np.ndarray] = {}
    for batch in dataset.batches(rank=0, world=1, batch_size=64, device=CPU):
        found.update(
            zip(batch.clips, frames_of(batch, dataset.config.mean, dataset.config.std), strict=True)
        )
    return found


def evenly(number: int, wanted: int) -> list[int]:
    """`wanted` indices spread over range(number)."""
    return [int((k + 0.5) * number / wanted) for k in range(min(wanted, number))]


def gallery(embeddings: Embeddings, shown: EvalSet, rows: int = 10, top: int = 5) -> list[Query]:
    """Captions spread evenly over the set, each with its `top` clips. `shown` delivers the pictures
    of the same items."""
    pictures = strips(shown)
    similarity = embeddings.similarity()
    queries = []
    for index in evenly(len(embeddings.items), rows):
        order = similarity[index].argsort(descending=True).tolist()
        best = order[:top]
        queries.append(
            Query(
                caption=embeddings.captions[index],
                strips=[pictures[embeddings.items[clip]] for clip in best],
                captions=[embeddings.captions[clip] for clip in best],
                right=[clip == index for clip in best],
                rank=order.index(index) + 1,
            )
        )
    return queries


@torch.inference_mode()
def masked_words(
    model: AllInOneForPreTraining, dataset: EvalSet, shown: EvalSet, rows: int = 8, top: int = 5
) -> list[MaskedWord]:
    """One word piece hidden in each of `rows` captions spread over the set: the k-th row hides its
    (k mod words)-th word piece."""
    tokenizer = Tokenizer()
    pictures = strips(shown)
    batches = list(dataset.batches(rank=0, world=1, batch_size=64, device=CPU))
    where = [(batch, row) for batch in batches for row in range(len(batch))]
    examples = []
    for number, item in enumerate(evenly(len(where), rows)):
        batch, row = where[item]
        ids, mask = batch.text_ids[row : row + 1].clone(), batch.text_mask[row : row + 1]
        pieces = int(mask.sum()) - 2
        if pieces < 1:
            continue
        place = 1 + number % pieces
        truth = int(ids[0, place])
        ids[0, place] = tokenizer.mask_id
        text = model(batch.pixels[row : row + 1], ids, mask).text
        chances = model.mlm_head(text[0, place]).float().softmax(-1)
        best = chances.topk(top)
        tokens = [int(token) for token in batch.text_ids[row, 1 : 1 + pieces]]
        examples.append(
            MaskedWord(
                before=tokenizer.decode(tokens[: place - 1]),
                after=tokenizer.decode(tokens[place:]),
                truth=tokenizer.decode([truth]),
                guesses=[
                    (tokenizer.decode([int(token)]), float(chance))
                    for chance, token in zip(best.values, best.indices, strict=True)
                ],
                strip=pictures[batch.clips[row]],
            )
        )
    return examples
