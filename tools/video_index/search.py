"""Searches an index by text, image or clip, and ranks the best clips again with the joint pass.

Letters: N clips, D projection width, B clips of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allinone.common.errors import DataError, InputError
from allinone.finetune.annotations.schema import Media
from allinone.model.contrast import embed_text
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, TextReader
from allinone.tools.inspection.predictor import RANK, Predictor
from allinone.tools.video_index.build import ClipEmbedder, weights_hash
from allinone.tools.video_index.store import IndexedClip, VideoIndex

ROWS_PER_PRODUCT = 1 << 16
"""Rows that are converted to float32 at a time: 64 MiB at D = 256."""


def similarities(embeddings: Sequence[Tensor], query: Tensor) -> Tensor:
    """Products of the rows of all parts, [rows, D] each, and a query float32 [D]: float32 [rows of
    all parts]."""
    parts = (rows for part in embeddings for rows in part.split(ROWS_PER_PRODUCT))
    return torch.cat([torch.zeros(0), *(rows.float() @ query for rows in parts)])


@dataclass(frozen=True)
class Hit:
    """A clip that was found."""

    rank: int
    """1 is the best."""
    score: float
    """Cosine similarity."""
    match: float | None
    """Score of the joint pass; None if it was not computed."""
    row: int
    """Number of the clip's row in the index."""
    clip: IndexedClip
    note: str = ""
    """What has become of the file since: missing, or changed."""
    match_by: str = ""
    """What `match` is: MATCH or RANK of tools/inspection/predictor.py."""

    @property
    def match_text(self) -> str:
        """`match` for people: a probability as a percentage, a score as it is."""
        if self.match is None:
            return "-"
        return f"{self.match:.3f}" if self.match_by == RANK else f"{100 * self.match:.1f} %"


class Searcher:
    """Answers queries.

    Args:
        loaded: The model that made the index.
        index: The index.

    Raises:
        InputError: The index was made with other weights.
    """

    def __init__(self, loaded: LoadedModel, index: VideoIndex) -> None:
        if weights_hash(loaded) != index.manifest.settings.weights:
            raise InputError(
                f"--checkpoint {loaded.weights} did not make the index {index.folder}; it was made"
                f" with {index.manifest.checkpoint}. Give that one, or make another index"
            )
        self.loaded = loaded
        self.index = index
        self._read_text = TextReader(loaded.model.config)
        self._files = index.file_codes()
        self.predictor = Predictor(loaded)
        """Answers about indexed clips: it takes the number of a row for the path of a video."""
        self.predictor.read_clip = self.read_row  # type: ignore[assignment]

    def search(
        self, query: str | Path, *, top: int = 5, rerank: int = 0, all_clips: bool = False
    ) -> list[Hit]:
        """Find clips.

        Args:
            query: A text; or the path of an image or video.
            top: Number of results.
            rerank: Rank this many of the best clips again by the joint pass (texts only).
            all_clips: Several clips of one video may be among the results, not its best one only.

        Returns:
            The results, best first.

        Raises:
            InputError: The query cannot be used.
        """
        scores = self.scores(self.embed(query))
        best = self._best(scores, max(top, rerank), all_clips)
        hits = [
            Hit(rank, float(scores[k]), None, int(row), self.index.row(int(row)))
            for rank, (k, row) in enumerate(zip(best, self.index.clips[best], strict=True), start=1)
        ]
        hits = [replace(hit, note=self._note(hit.clip)) for hit in hits]
        if rerank:
            if isinstance(query, Path):
                raise InputError("--rerank needs a text: the joint pass compares a text and clips")
            hits = [*self._reranked(query, hits[:rerank]), *hits[rerank:]]
            hits = [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]
        return hits[:top]

    @torch.inference_mode()
    def embed(self, query: str | Path) -> Tensor:
        """Embedding of a query, float32 [D] of unit length on the CPU."""
        if isinstance(query, Path):
            return self._embed_file(query)
        if not query.strip():
            raise InputError("the text to search for is empty")
        text, device = self._read_text(query), self.loaded.device
        embedded = embed_text(self.loaded.model, text.ids.to(device), text.mask.to(device))
        return embedded[0].cpu()

    def _embed_file(self, path: Path) -> Tensor:
        if not path.is_file():
            raise InputError(f"{path} is not a file; give an image or a video")
        path = path.absolute()
        clip = IndexedClip(path.name, 0, 0)
        embedder = self._embedder(path.parent)
        media = Media(path.name, path.name)
        embedder.library.prepare([media], quiet=True)
        result: Tensor | str = embedder.library.reason(media)
        if not result:
            ((_, result),) = embedder.embed([clip], 1)
        if isinstance(result, str):
            raise InputError(f"{path} cannot be used: {result}")
        return result

    def read_row(self, row: Path, option: str = "--video") -> InputClip:
        """Read the clip of a row; `row` is its number as a path, as Predictor gives it."""
        return self._indexed.read(self.index.row(int(row.name)))

    @cached_property
    def _indexed(self) -> ClipEmbedder:
        """Reads clips of the index. Kept: its library reads the cache of all files once."""
        return self._embedder(Path(self.index.manifest.root))

    def _embedder(self, root: Path) -> ClipEmbedder:
        return ClipEmbedder(self.loaded, root, self.index.folder / "cache")

    def scores(self, query: Tensor) -> NDArray[np.float32]:
        """Cosine similarity of a query [D] and all clips, float32 [N], in the order of
        `index.clips`."""
        every: NDArray[np.float32] = similarities(self.index.embeddings, query).numpy()
        return every[self.index.clips]

    def _best(self, scores: NDArray[np.float32], count: int, all_clips: bool) -> list[int]:
        # stable: equal scores keep the order of the index
        order = np.argsort(-scores, kind="stable")
        if not all_clips:
            files = self._files[self.index.clips][order]
            _, first = np.unique(files, return_index=True)
            order = order[np.sort(first)]
        return [int(k) for k in order[:count]]

    def _note(self, clip: IndexedClip) -> str:
        try:
            facts = self.index.file(clip.path).stat()
        except (OSError, DataError):
            return "the file is not there any more"
        changed = (facts.st_size, facts.st_mtime_ns) != (clip.size, clip.mtime_ns)
        return "the file has changed since it was indexed" if changed else ""

    def _reranked(self, text: str, hits: Sequence[Hit]) -> list[Hit]:
        words = self._read_text(text)
        readable = [hit for hit in hits if not hit.note]
        if not readable:
            return list(hits)
        clips = [hit.clip for hit in readable]
        media = [Media(clip.path, clip.path) for clip in clips]
        self._indexed.library.prepare(media, quiet=True, again=True)
        found: dict[int, float] = {}
        for batch, _ in self._indexed.batches(clips, 16):
            if batch is not None:
                scores = self.predictor.match_scores(batch.pixels[:, 0, 0], words)
                found.update(zip(batch.items, scores, strict=True))
        by = self.predictor.match_by
        scored = [
            replace(hit, match=found.get(k), match_by=by if k in found else "")
            for k, hit in enumerate(readable)
        ]
        ranked = [hit for hit in scored if hit.match is not None]
        ranked.sort(key=lambda hit: -(hit.match or 0.0))
        rest = [hit for hit in hits if hit.note] + [hit for hit in scored if hit.match is None]
        return [*ranked, *rest]
