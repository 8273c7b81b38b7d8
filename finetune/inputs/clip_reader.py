"""Reads the frames of a media item: videos, GIFs, images and folders of images by one rule.

Which frames are shown is decided in data/loading/clip_input.py, as for pre-training. Here is what
only media files need: the window of an item in seconds, folders of images, painted boxes, and a
memory for clips that several questions share.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.common.errors import LASTING, AllInOneError, StorageError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import (
    IMAGES,
    PixelLimitError,
    dali_reads,
    require_pixels,
)
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import TrimmedStream
from allinone.data.decoding.segment import ByteRange, load_segment
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.open_files import OpenFile, retried
from allinone.data.loading.samples import Visual
from allinone.data.loading.sampling import SampleChoices
from allinone.data.prepare.worker import frames_between
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.media_library import (
    IMAGE_FOLDER,
    LIMITS,
    MediaError,
    MediaFile,
    MediaLibrary,
    probe_file,
)

_REMEMBERED = 8
"""Decoded clips that a reader process keeps: evaluation asks the questions about one video in a
row."""


def media_window(file: MediaFile, media: Media) -> ClipWindow:
    """Return the part of a file that an item shows; raises MediaError beyond the file's end."""
    first, last = 0, file.frames - 1
    # an image is shown whatever span an item names
    if file.frames > 1 and (media.start_s is not None or media.end_s is not None):
        start = media.start_s or 0.0
        end = media.end_s if media.end_s is not None else math.inf
        end_of_file = file.frames / file.frame_rate
        if file.frame_times is not None:
            end_of_file = file.frame_times[-1]
        found = frames_between(
            start, min(end, end_of_file + 1.0), file.frames, file.frame_rate, file.frame_times
        )
        if found is None:
            raise MediaError(
                f"{file.path}: shown from {start:g} s on, it ends at {end_of_file:.1f} s"
            )
        first, last = found
    image = file.codec != IMAGE_FOLDER and Path(file.path).suffix.lower().lstrip(".") in IMAGES
    return ClipWindow(first, last - first + 1, file.width, file.height, file.keyframes, image=image)


class MediaReader:
    """Turns what an item shows into visuals. Lives in reader processes.

    Args:
        library: The benchmark's media files.
        clip: Frames per clip.
        config: How media are decoded and augmented.
    """

    def __init__(self, library: MediaLibrary, clip: ClipConfig, config: DataConfig) -> None:
        self.codecs: frozenset[str] = frozenset()
        """Codecs that are handed over as a trimmed stream, for DALI to decode."""
        self._library = library
        self._clip = clip
        self._config = config
        self._decoded: OrderedDict[tuple[str, tuple[int, ...]], NDArray[np.uint8]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_decoded": OrderedDict()}  # megabytes of frames are not pickled

    def __call__(
        self, look: VisualInput, random: np.random.Generator | None, views: int = 1
    ) -> list[Visual]:
        """Read one thing that an item shows.

        Args:
            look: Media item, and what is painted into its frames.
            random: The sample's generator in training; None in evaluation.
            views: V, views in evaluation.

        Returns:
            One visual in training, V in evaluation.

        Raises:
            DecodeError: The media item is missing, damaged, or ends too early.
        """
        file = self._library[look.media]
        try:
            require_pixels(file.width, file.height, self._config.max_pixels)
        except PixelLimitError as error:
            raise MediaError(f"{file.path}: {error}") from error
        chosen = choose_frames(
            media_window(file, look.media), self._config, self._clip.num_frames, random, views=views
        )
        # painting needs frames in memory: DALI would decode them on the device
        if look.paint is None and self._dali_decodes(file):
            return [Visual(self._stream(file, one.frames), one) for one in chosen]
        # All views are decoded together: one pass over the file.
        frames = self._decode(file, [number for one in chosen for number in one.frames])
        if look.paint is not None:
            frames = np.stack([look.paint(frame) for frame in frames])
        parts = np.split(frames, len(chosen))
        side = self._clip.image_size
        return [Visual(part, one, side) for part, one in zip(parts, chosen, strict=True)]

    def _dali_decodes(self, file: MediaFile) -> bool:
        if not self.codecs or file.codec == IMAGE_FOLDER:
            return False
        names = ("codec", "pixel_format", "width", "height", "rotation", "frame_times")
        row = {name: getattr(file, name) for name in names}
        row["container"] = Path(file.path).suffix[1:].lower()
        return dali_reads(row, self.codecs)

    def _stream(self, file: MediaFile, wanted: Sequence[int]) -> TrimmedStream:
        """Return the encoded stream that frames need; of a long file no more than that is read."""
        path = self._library.root / file.path

        def read() -> TrimmedStream:
            opened = OpenFile(str(path))
            video = ByteRange(opened.descriptor, 0, os.fstat(opened.descriptor).st_size)
            segment = load_segment(video, wanted, file.frames, _timeline(file), path.read_bytes)
            return segment.trim(wanted)

        try:
            return retried(read, path)
        except OSError as error:
            raise unreadable(file.path, error) from error
        finally:
            self._require_unchanged(file)

    def _decode(self, file: MediaFile, wanted: Sequence[int]) -> NDArray[np.uint8]:
        key = (file.path, tuple(wanted))
        if key not in self._decoded:
            decode = self._image_folder if file.codec == IMAGE_FOLDER else self._video
            path = self._library.root / file.path
            try:
                self._decoded[key] = retried(lambda: decode(path, file, wanted), path)
            except DecodeError as error:
                raise DecodeError(f"{file.path}: {error}") from error
            except OSError as error:
                raise unreadable(file.path, error) from error
            finally:
                self._require_unchanged(file)
            if len(self._decoded) > _REMEMBERED:
                # the oldest first: evaluation does not come back to an earlier video
                self._decoded.popitem(last=False)
        return self._decoded[key]

    def _require_unchanged(self, file: MediaFile) -> None:
        with contextlib.suppress(OSError):  # reading has raised it
            self._library.require_unchanged(file)

    def _video(self, path: Path, file: MediaFile, wanted: Sequence[int]) -> NDArray[np.uint8]:
        # The path, not the content: of a long file only the parts that the frames need are read.
        return decode_frames(
            path,
            wanted,
            _timeline(file),
            timeout_s=self._config.clip_timeout_s,
            max_pixels=self._config.max_pixels,
        )

    def _image_folder(
        self, path: Path, file: MediaFile, wanted: Sequence[int]
    ) -> NDArray[np.uint8]:
        timeout_s = self._config.clip_timeout_s
        images = [
            decode_frames(
                path / file.names[number],
                (0,),
                timeout_s=timeout_s,
                max_pixels=self._config.max_pixels,
            )[0]
            for number in wanted
        ]
        # DALI gets the frames of a clip as one array
        if len({image.shape for image in images}) > 1:
            raise DecodeError("its images differ in size")
        return np.stack(images)


def read_long_file(
    path: Path, clip: ClipConfig, config: DataConfig
) -> tuple[NDArray[np.uint8], SampleChoices]:
    """Read a long video as evaluation reads clips, without having it in memory.

    Args:
        path: The file.
        clip: Frames per clip.
        config: Geometry and evaluation's crop, and the decoder's limits.

    Returns:
        Frames uint8 [T, H, W, 3], and how they are to be cropped.

    Raises:
        ProbeError: The file cannot be used.
        DecodeError: Its frames do not decode.
    """
    limits = replace(LIMITS, max_pixels=config.max_pixels)
    file = probe_file(path.parent, path.name, 1.0, limits)
    window = media_window(file, Media(path.name, path.name))
    (choices,) = choose_frames(window, config, clip.num_frames)
    frames = decode_frames(
        path,
        choices.frames,
        _timeline(file),
        timeout_s=config.clip_timeout_s,
        max_pixels=config.max_pixels,
    )
    return frames, choices


def unreadable(path: str, error: OSError) -> AllInOneError:
    """Return what to raise for a media file that cannot be read.

    Args:
        path: The file, for the message.
        error: Why.

    Returns:
        DecodeError if the file will be unreadable the next time too; else StorageError, so that an
        evaluation ends instead of counting an item as wrong.
    """
    if error.errno in LASTING:
        return DecodeError(f"{path}: {error}")
    return StorageError(
        f"{path} cannot be read: {error}. This is the storage's fault, not the file's: once it"
        " works again, run the same command"
    )


def _timeline(file: MediaFile) -> Timeline:
    keyframes = file.keyframes if file.keyframes is not None else (0,)
    return Timeline(keyframes, file.frame_times, file.frame_rate)
