"""Examples for the pre-training report, chosen by position and not by the model's success."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from allinone.data import EvalSet
from allinone.data.loading.batch import Batch
from allinone.data.text import Tokenizer
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.evaluation import EvaluationOutput
from allinone.tools.reporting.pretrain_figures import MaskedWord, RankedClip, RetrievalExample

CPU = torch.device("cpu")
_BATCH = 64


def batch_frames(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation.

    Args:
        batch: Pixels float32 [B, T, 3, H, W].
        mean: Subtracted per channel, in the range 0 to 1.
        std: Divided by per channel.

    Returns:
        uint8 [B, T, H, W, 3].
    """
    pixels = batch.pixels.cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()


def _batches(dataset: EvalSet, limit: int | None) -> Iterator[Batch]:
    number = min(len(dataset), limit or len(dataset))
    return dataset.batches(rank=0, world=1, batch_size=_BATCH, device=CPU, limit=number)


def frames_by_clip(dataset: EvalSet, limit: int | None = None) -> dict[str, np.ndarray]:
    """Clip name → frames uint8 [T, H, W, 3] of the first `limit` clips; keeps them in memory."""
    found: dict[str, np.ndarray] = {}
    for batch in _batches(dataset, limit):
        frames = batch_frames(batch, dataset.config.mean, dataset.config.std)
        found.update(zip(batch.clips, frames, strict=True))
    return found


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly spaced over range(total)."""
    number = min(wanted, total)
    return [int((k + 0.5) * total / number) for k in range(number)]


def retrieval_examples(
    embeddings: EvaluationOutput,
    shown: EvalSet,
    rows: int = 10,
    top: int = 5,
    limit: int | None = None,
) -> list[RetrievalExample]:
    """Captions with the clips that rank first for them.

    Args:
        embeddings: Of the items to search.
        shown: The same items at the resolution to show.
        rows: Captions, evenly spaced over the set.
        top: Clips per caption; the caption's own clip follows if it is not among them.
        limit: The evaluation used at most this many items.
    """
    frames = frames_by_clip(shown, limit)
    similarity = embeddings.similarity()
    examples = []
    for index in evenly_spaced(len(embeddings.items), rows):
        order = similarity[index].argsort(descending=True).tolist()
        best = order[:top]
        examples.append(
            RetrievalExample(
                caption=embeddings.captions[index],
                clips=[
                    RankedClip(
                        frames=frames[embeddings.items[clip]],
                        caption=embeddings.captions[clip],
                        rank=order.index(clip) + 1,
                        correct=clip == index,
                    )
                    for clip in (*best, *([] if index in best else [index]))
                ],
            )
        )
    return examples


@torch.inference_mode()
def masked_words(
    model: AllInOneForPreTraining,
    dataset: EvalSet,
    shown: EvalSet,
    rows: int = 8,
    top: int = 5,
    limit: int | None = None,
) -> list[MaskedWord]:
    """Captions with one masked word piece and the model's guesses; the k-th row masks its
    (k mod words)-th piece.

    Args:
        model: On the CPU.
        dataset: The items as the model reads them.
        shown: The same items at the resolution to show.
        rows: Captions, evenly spaced over the set; those without a word piece are left out.
        top: Guesses per caption.
        limit: Read at most this many items.
    """
    tokenizer = Tokenizer()
    frames = frames_by_clip(shown, limit)
    batches = list(_batches(dataset, limit))
    items = [(batch, row) for batch in batches for row in range(len(batch))]
    examples = []
    for number, item in enumerate(evenly_spaced(len(items), rows)):
        batch, row = items[item]
        ids = batch.text_ids[row : row + 1].clone()
        mask = batch.text_mask[row : row + 1]
        pieces = int(mask.sum()) - 2  # without [CLS] and [SEP]
        if pieces < 1:
            continue
        position = 1 + number % pieces
        truth = int(ids[0, position])
        ids[0, position] = tokenizer.mask_id
        text = model(batch.pixels[row : row + 1], ids, mask).text
        probabilities = model.mlm_head(text[0, position]).float().softmax(-1)
        # one order for both, so that equal probabilities have one rank
        order = probabilities.argsort(descending=True, stable=True).tolist()
        tokens = batch.text_ids[row, 1 : 1 + pieces].tolist()
        best = [(tokenizer.decode([token]), float(probabilities[token])) for token in order[:top]]
        examples.append(
            MaskedWord(
                before=tokenizer.decode(tokens[: position - 1]),
                after=tokenizer.decode(tokens[position:]),
                truth=tokenizer.decode([truth]),
                guesses=best,
                frames=frames[batch.clips[row]],
                rank=order.index(truth) + 1,
                probability=float(probabilities[truth]),
            )
        )
    return examples
