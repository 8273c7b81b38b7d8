"""Makes and updates an index: finds new, changed and deleted files, embeds their clips.

Letters: B clips, T frames, S side of the image, D projection width.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from allinone.common.errors import DataError, InputError
from allinone.common.run_lock import claim
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.augmentation import augmentation_for
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.loader import TaskSource, evaluation_batches
from allinone.finetune.inputs.media_library import MediaFile, MediaLibrary
from allinone.model.contrast import embed_video
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, display_crops, media_files
from allinone.tools.inspection.predictor import CONTRAST_HEADS
from allinone.tools.video_index.remote_media import inside, remote_media
from allinone.tools.video_index.store import (
    DELETED,
    IndexedClip,
    IndexSettings,
    Manifest,
    Precision,
    VideoIndex,
    add_part,
    read_manifest,
    remove_unlisted,
    write_manifest,
)

log = logging.getLogger(__name__)

MIN_CLIPS_PER_FILE_S = 1.5
"""A file is divided once it is this many times as long as a clip."""
PART_CLIPS = 4096
"""Clips after which a part is written."""
GROUP_BYTES = 2 << 30
"""Bytes of files from object storage that are on this machine at the same time."""
PART_S = 300.0
"""Seconds after which a part is written: an interruption loses no more."""


@dataclass(frozen=True)
class BuildSummary:
    """What an update did."""

    clips: int
    """Clips that can be found now."""
    added: int
    """Clips of new and changed files."""
    unchanged_files: int
    """Files that were left as they are."""
    deleted_files: int
    """Files that are no longer there."""
    problems: dict[str, str]
    """File → why it cannot be found."""
    seconds: float
    """Duration of the update."""


def weights_hash(loaded: LoadedModel) -> str:
    """Content hash of a model's tensors: embeddings of two models cannot be compared."""
    digest = blake2b(digest_size=8)
    for name, tensor in sorted(loaded.model.state_dict().items()):
        # a head that the file lacks, as of a fine-tuned model, is random in every process
        if name.split(".")[0] in loaded.missing:
            continue
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def clip_spans(file: MediaFile, clip_s: float) -> list[tuple[float, float | None]]:
    """Divide a file into clips of nearly equal length.

    Returns:
        (start, end) of each clip, seconds; (0, None) for a short file or an image.
    """
    duration = file.frame_times[-1] if file.frame_times else file.frames / (file.frame_rate or 1.0)
    if file.frames < 2 or duration < MIN_CLIPS_PER_FILE_S * clip_s:
        return [(0.0, None)]
    edges = np.linspace(0.0, duration, round(duration / clip_s) + 1)
    return [(float(start), float(end)) for start, end in pairwise(edges)]


class ClipEmbedder:
    """Embeds clips of files below a folder, as evaluation reads clips.

    Args:
        loaded: A model with contrastive heads.
        root: The folder, here or in object storage.
        cache: Folder for what is found out about files.
        workers: Reader processes; 0 reads in this process.
    """

    def __init__(self, loaded: LoadedModel, root: Path, cache: Path, workers: int = 0) -> None:
        loaded.needs(*CONTRAST_HEADS)
        config = loaded.model.config
        self.clip = ClipConfig(
            num_frames=config.num_frames,
            image_size=config.image_size,
            max_text_len=config.max_text_len,
        )
        self.data: DataConfig = replace(loaded.data, workers=workers)
        self.media = remote_media(root)
        """Object storage that holds the files; None if they are here."""
        folder = root if self.media is None else self.media.local
        self.library = MediaLibrary(folder, cache, source="your files", workers=workers)
        self._loaded = loaded

    def batches(
        self, clips: Sequence[IndexedClip], batch_size: int
    ) -> Iterator[tuple[TaskBatch | None, dict[int, str]]]:
        """Decode clips; yields (batch, number of each clip that cannot be read → reason)."""
        if self.media is not None:
            self.media.fetch(clip.path for clip in clips)
        reader = MediaReader(self.library, self.clip, self.data)
        names = [f"{clip.path}@{clip.start_s:g}" for clip in clips]
        source = TaskSource("index", names, ClipExamples(clips), reader, self.clip)
        numbers = [
            list(range(first, min(first + batch_size, len(clips))))
            for first in range(0, len(clips), batch_size)
        ]
        made = evaluation_batches(
            source, numbers, range(len(numbers)), self.data, self._loaded.device, views=1
        )
        for _, batch, missing in made:
            yield batch, {int(bad.clip): bad.reason for bad in missing}

    def read(self, clip: IndexedClip) -> InputClip:
        """Read one clip, also for drawing.

        Raises:
            InputError: It cannot be read; the message says why.
        """
        example = ClipExamples([clip])(0, None)
        media = example.looks[0].media
        try:
            inside(self.library.root, clip.path)
            if self.media is not None:
                self.media.fetch([clip.path])
            self.library.prepare([media], quiet=True, again=True)
            (visual,) = MediaReader(self.library, self.clip, self.data)(example.looks[0], None)
        except (DataError, DecodeError) as error:
            raise InputError(f"{clip.path} cannot be shown: {error}") from error
        assert isinstance(visual.media, np.ndarray)  # the reader has no codecs for DALI
        augment = augmentation_for(self.clip, self.data, torch.device("cpu"), 1)
        pixels = augment([visual.media], [visual.choices])
        crops = display_crops(visual.media, visual.choices.box)
        return InputClip(Path(clip.path), pixels, crops, visual.choices.frames)

    @torch.inference_mode()
    def embed(
        self, clips: Sequence[IndexedClip], batch_size: int
    ) -> Iterator[tuple[int, Tensor | str]]:
        """Embed clips.

        Yields:
            (number of the clip, embedding float32 [D] of unit length on the CPU, or the reason why
            the clip cannot be read).
        """
        for batch, missing in self.batches(clips, batch_size):
            yield from missing.items()
            if batch is not None:
                embedded = embed_video(self._loaded.model, batch.pixels[:, 0, 0])
                yield from zip(batch.items, embedded.cpu(), strict=True)


@dataclass(frozen=True)
class ClipExamples:
    """IndexedClip → the example that shows it."""

    clips: Sequence[IndexedClip]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        clip = self.clips[number]
        start = clip.start_s or None  # None: from the first frame, whatever its time
        media = Media(clip.path, clip.path, start, clip.end_s)
        return Example((VisualInput(media),), ())


def update_index(
    loaded: LoadedModel,
    checkpoint: str,
    root: Path,
    folder: Path,
    *,
    clip_s: float = 10.0,
    precision: Precision = "fp16",
    batch_size: int = 16,
    workers: int = 2,
    retry: bool = False,
    quiet: bool = False,
) -> BuildSummary:
    """Make an index, or bring it up to date with its folder.

    Args:
        loaded: The model.
        checkpoint: What --checkpoint was given.
        root: The folder of the videos, here or in object storage.
        folder: The index.
        clip_s: Long videos are divided into clips of about this length, seconds.
        precision: Of the stored embeddings.
        batch_size: Clips per forward pass.
        workers: Reader processes.
        retry: Try files again that could not be read.
        quiet: No progress bar.

    Returns:
        What was done.

    Raises:
        InputError: The index belongs to another model or folder, or was made with other settings.
        ConfigError: Another process writes the index.
        StorageError: The storage failed; what was embedded is kept, the same command continues.
    """
    begin = time.monotonic()
    media = remote_media(root)
    if media is None:
        root = local = root.absolute()
    else:
        media.list()
        local = media.local
    place = str(root) if media is None else media.url
    files = media_files(local, "DIR")
    settings = IndexSettings(
        weights_hash(loaded),
        loaded.model.video_projection.out_features,
        clip_s,
        precision,
    )
    embedder = ClipEmbedder(loaded, root, folder / "cache", workers)
    with claim(folder):
        manifest = read_manifest(folder)
        remove_unlisted(folder, manifest)
        if manifest is None:
            manifest = Manifest(place, checkpoint, settings)
        _require_same(manifest, settings, folder)
        if manifest.root != place:
            log.info("the videos were at %s; they are at %s now", manifest.root, place)
        manifest = replace(manifest, root=place, checkpoint=checkpoint)
        write_manifest(folder, manifest)
        known = VideoIndex(folder).known()
        found, rows = _compare(local, files, known, retry)
        new = [row for row in rows if not row.problem]
        writer = _PartWriter(folder, manifest)
        for row in rows:
            if row.problem:
                writer.add([row], [])
        for group in _groups(new, GROUP_BYTES if media else None):
            paths = [row.path for row in group]
            if media is not None:
                media.fetch(paths)
            embedder.library.prepare([Media(path, path) for path in paths], quiet=quiet)
            _embed(embedder, group, clip_s, batch_size, writer, quiet=quiet)
            if media is not None:
                media.release(paths)
        writer.flush()
        index = VideoIndex(folder)
    return BuildSummary(
        clips=len(index),
        added=writer.clips,
        unchanged_files=len(found) - sum(row.path in found for row in rows),
        deleted_files=sum(row.problem == DELETED for row in rows),
        problems=index.problems(),
        seconds=time.monotonic() - begin,
    )


def _groups(rows: Sequence[IndexedClip], limit: int | None) -> Iterator[list[IndexedClip]]:
    """Divide files into groups of at most `limit` bytes, or of one larger file; None: one group."""
    group: list[IndexedClip] = []
    for row in rows:
        if limit is not None and group and sum(other.size for other in group) + row.size > limit:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _require_same(manifest: Manifest, settings: IndexSettings, folder: Path) -> None:
    old = manifest.settings
    if old.weights != settings.weights:
        raise InputError(
            f"--out {folder} was made with other weights ({manifest.checkpoint}); embeddings of two"
            " models cannot be compared. Give that checkpoint, or another --out"
        )
    for name in ("clip_s", "precision"):
        if getattr(old, name) != getattr(settings, name):
            raise InputError(
                f"--out {folder} was made with --{name.replace('_', '-')} {getattr(old, name)}, not"
                f" {getattr(settings, name)}; give the same value, or another --out"
            )


def _compare(
    root: Path, files: Sequence[Path], known: dict[str, tuple[int, int, str]], retry: bool
) -> tuple[set[str], list[IndexedClip]]:
    """What differs between a folder and its index.

    Returns:
        (paths found, a row for each file that is new, changed, deleted or cannot be indexed).
    """
    found: set[str] = set()
    rows: list[IndexedClip] = []
    for file in files:
        path = file.relative_to(root).as_posix()
        try:
            path.encode()
        except UnicodeEncodeError:
            log.warning("left out: %s, its name is not UTF-8", os.fsencode(path))
            continue
        found.add(path)
        try:
            facts = file.stat()
        except OSError as error:  # a link to nothing
            row = IndexedClip(path, 0, 0, problem=f"cannot be read: {error.strerror}")
        else:
            row = IndexedClip(path, facts.st_size, facts.st_mtime_ns)
            try:
                inside(root, path)
            except DataError as error:
                row = replace(row, problem=str(error))
        size, mtime, problem = known.get(path, (-1, -1, ""))
        changed = (size, mtime) != (row.size, row.mtime_ns) or problem == DELETED
        if changed or (retry and problem):
            rows.append(row)
    rows += [
        IndexedClip(path, 0, 0, problem=DELETED)
        for path, (_, _, problem) in known.items()
        if problem != DELETED and path not in found
    ]
    return found, rows


def _embed(
    embedder: ClipEmbedder,
    files: Sequence[IndexedClip],
    clip_s: float,
    batch_size: int,
    writer: _PartWriter,
    *,
    quiet: bool,
) -> None:
    clips: list[IndexedClip] = []
    first: list[int] = []
    for file in files:
        first.append(len(clips))
        media = Media(file.path, file.path)
        if reason := embedder.library.reason(media):
            clips.append(replace(file, problem=reason))
            continue
        spans = clip_spans(embedder.library[media], clip_s)
        clips += [replace(file, start_s=start, end_s=end) for start, end in spans]
    first.append(len(clips))
    results: dict[int, Tensor | str] = {
        number: clip.problem for number, clip in enumerate(clips) if clip.problem
    }
    good = [number for number in range(len(clips)) if number not in results]
    embedded = embedder.embed([clips[number] for number in good], batch_size)
    progress = tqdm(total=len(clips), initial=len(results), unit="clip", disable=quiet)
    done = 0
    with progress:
        for k, result in embedded:
            results[good[k]] = result
            progress.update()
            # in order and complete: a file's clips are in one part
            while done < len(files) and all(
                n in results for n in range(first[done], first[done + 1])
            ):
                done = _finish(clips, results, first, done, writer)
    while done < len(files):
        done = _finish(clips, results, first, done, writer)


def _finish(
    clips: Sequence[IndexedClip],
    results: dict[int, Tensor | str],
    first: Sequence[int],
    number: int,
    writer: _PartWriter,
) -> int:
    """Hand the clips of one file to the writer; returns the number of the next file."""
    rows: list[IndexedClip] = []
    tensors: list[Tensor] = []
    for n in range(first[number], first[number + 1]):
        result = results.pop(n)
        if isinstance(result, str):
            rows.append(replace(clips[n], problem=result))
        else:
            rows.append(clips[n])
            tensors.append(result)
    writer.add(rows, tensors)
    return number + 1


class _PartWriter:
    """Collects rows and writes a part now and then."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._rows: list[IndexedClip] = []
        self._tensors: list[Tensor] = []
        self._written = time.monotonic()
        self.clips = 0
        """Clips with an embedding so far."""

    def add(self, rows: Sequence[IndexedClip], tensors: Sequence[Tensor]) -> None:
        """Add all rows of one file, and the embeddings of those without a problem, in order."""
        zero = torch.zeros(self._manifest.settings.width)
        given = iter(tensors)
        self._rows += rows
        self._tensors += [zero if row.problem else next(given) for row in rows]
        self.clips += len(tensors)
        late = time.monotonic() - self._written > PART_S
        if len(self._rows) >= PART_CLIPS or late:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self._rows:
            self._manifest = add_part(
                self._folder, self._manifest, self._rows, torch.stack(self._tensors)
            )
        self._rows, self._tensors, self._written = [], [], time.monotonic()
