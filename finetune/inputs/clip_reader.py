"""Frames of a media item: which ones, and how they are decoded. One rule for videos, GIFs, pictures
and folders of pictures."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import dali_reads
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import Trimmed, trim
from allinone.data.decoding.segment import ByteRange, Piece, read_piece
from allinone.data.loading.open_files import OpenFile
from allinone.data.loading.sampling import (
    SampleChoices,
    draw,
    fixed,
    nearest_keyframes,
    view_frames,
)
from allinone.data.prepare.worker import frames_between
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.media_library import MediaError, MediaFile, MediaLibrary

_REMEMBERED = 8
"""Decoded clips that a reader process keeps: questions about one video follow one another in
evaluation."""


@dataclass(frozen=True)
class Visual:
    """T chosen frames of a clip."""

    media: NDArray[np.uint8] | Trimmed
    choices: SampleChoices


def window(file: MediaFile, media: Media) -> tuple[int, int]:
    """(first frame, number of frames) of the part of a file that an item shows; MediaError where it
    lies beyond the end."""
    if media.start_s is None and media.end_s is None:
        return 0, file.frames
    start, end = media.start_s or 0.0, media.end_s if media.end_s is not None else math.inf
    if file.frames == 1:
        return 0, 1
    last_s = file.frame_times[-1] if file.frame_times is not None else file.frames / file.frame_rate
    found = frames_between(
        start, min(end, last_s + 1.0), file.frames, file.frame_rate, file.frame_times
    )
    if found is None:
        raise MediaError(f"{file.path}: shown from {start:g} s on, it ends at {last_s:.1f} s")
    return found[0], found[1] - found[0] + 1


class Reader:
    """Looks → visuals. Lives in reader processes; what it keeps open or remembers is not sent
    along."""

    def __init__(self, library: MediaLibrary, clip: ClipConfig, config: DataConfig) -> None:
        self._library, self._clip, self._config = library, clip, config
        self.codecs: frozenset[str] = frozenset()
        """What is handed over as a trimmed stream, for DALI to decode."""
        self._decoded: OrderedDict[tuple[str, tuple[int, ...]], NDArray[np.uint8]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_decoded": OrderedDict()}

    def __call__(
        self, look: VisualInput, random: np.random.Generator | None, views: int = 1
    ) -> list[Visual]:
        """One visual in training (`random` draws), `views` of them in evaluation. Raises
        DecodeError."""
        file = self._library[look.media]
        first, available = window(file, look.media)
        shape = {
            "frames": available,
            "width": file.width,
            "height": file.height,
            "wanted": self._clip.num_frames,
        }
        if random is not None:
            chosen = [draw(self._config, random, captions=1, **shape)]
        else:
            plain = fixed(self._config, **shape)
            chosen = [
                replace(plain, frames=frames)
                for frames in view_frames(available, self._clip.num_frames, views)
            ]
        if self._config.frames_from == "key" and file.keyframes is not None:
            inside = [key - first for key in file.keyframes if first <= key < first + available]
            chosen = [
                replace(one, frames=nearest_keyframes(one.frames, inside, available))
                for one in chosen
            ]
        chosen = [one.later(first) for one in chosen]
        if (
            look.paint is None
            and self.codecs
            and file.codec != "pictures"
            and dali_reads(_row(file), self.codecs)
        ):
            return [Visual(self._stream(file, one.frames), one) for one in chosen]
        frames = self._decode(file, [number for one in chosen for number in one.frames])
        if look.paint is not None:
            frames = np.stack([look.paint(frame) for frame in frames])
        return [
            Visual(part, one)
            for part, one in zip(np.split(frames, len(chosen)), chosen, strict=True)
        ]

    def _stream(self, file: MediaFile, wanted: Sequence[int]) -> Trimmed:
        """The encoded stream that the frames need, for DALI; of a long file no more than that is
        read."""
        path, timeline = self._library.root / file.path, _timeline(file)
        opened = OpenFile(str(path))
        region = ByteRange(opened.descriptor, 0, os.fstat(opened.descriptor).st_size)
        piece = read_piece(region, wanted, file.frames, timeline) or Piece(
            path.read_bytes(), 0, file.frames, timeline
        )
        return trim(
            piece.content, [number - piece.first for number in wanted], piece.frames, piece.timeline
        )

    def _decode(self, file: MediaFile, wanted: Sequence[int]) -> NDArray[np.uint8]:
        key = (file.path, tuple(wanted))
        if key not in self._decoded:
            path = self._library.root / file.path
            try:
                self._decoded[key] = (
                    self._pictures(path, file, wanted)
                    if file.codec == "pictures"
                    else self._video(path, file, wanted)
                )
            except (OSError, DecodeError) as error:
                raise DecodeError(f"{file.path}: {error}") from error
            if len(self._decoded) > _REMEMBERED:
                self._decoded.popitem(last=False)
        return self._decoded[key]

    def _video(self, path: Path, file: MediaFile, wanted: Sequence[int]) -> NDArray[np.uint8]:
        # the path, not the content: of a long file only the parts that the frames need are read
        return decode_frames(path, wanted, _timeline(file), timeout_s=self._config.clip_timeout_s)

    def _pictures(self, path: Path, file: MediaFile, wanted: Sequence[int]) -> NDArray[np.uint8]:
        pictures = [
            decode_frames(path / file.names[number], (0,), timeout_s=self._config.clip_timeout_s)[0]
            for number in wanted
        ]
        if len({picture.shape for picture in pictures}) > 1:
            raise DecodeError("its pictures differ in size")
        return np.stack(pictures)


def _timeline(file: MediaFile) -> Timeline:
    return Timeline(
        file.keyframes if file.keyframes is not None else (0,), file.frame_times, file.frame_rate
    )


def _row(file: MediaFile) -> dict[str, object]:
    return {
        name: getattr(file, name)
        for name in ("codec", "pixel_format", "width", "height", "rotation")
    }
