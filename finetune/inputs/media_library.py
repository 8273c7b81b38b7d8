"""The media folder of a benchmark: which file an annotation means, and what that file holds.

All ranks together decode every file once to its end, in processes that can be killed. The results
are cached by (path, size, modification time), so the next start only lists names and sizes.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from allinone.common.atomic_io import content_hash
from allinone.common.errors import LASTING, DataError, StorageError
from allinone.common.validation import MAX_PIXELS
from allinone.data.decoding.codecs import IMAGES, image_extension
from allinone.data.decoding.frames import DecodeError
from allinone.data.prepare.pool import ProbePool, answer_tasks
from allinone.data.prepare.probe import Limits, ProbeError, probe, probe_packets
from allinone.finetune.annotations.common import SUFFIXES
from allinone.finetune.annotations.schema import Media

LIMITS = Limits(min_frames=1, max_duration_s=float("inf"), timeout_s=900.0)
_COLUMNS = ("codec", "pixel_format", "width", "height", "rotation", "frames", "frame_rate")
_SAVE_EVERY = 200
"""Probed files after which results are written: a killed start loses no more than these."""
NOT_OF_CONTENT = frozenset(
    {"timeout", "decoder_crashed", "killed", "unreadable", "too_many_pixels"}
)
"""Reasons that say nothing about a file's content: the next start, another machine or a higher
--max-pixels may read it. They are not remembered."""
IMAGE_FOLDER = "pictures"
"""`MediaFile.codec` of a folder of numbered images; part of the cache's format."""
LONG_BYTES = 64 << 20
"""Larger files are probed by their packets instead of decoded to the end, where the packets say
what the frames are."""
_END_BYTES = 1 << 20
"""Bytes at both ends of a long file that its hash covers."""


class MediaError(DecodeError):
    """A media item cannot be shown; the message is the reason."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """What a media file holds. Frame numbers are in display order, from 0."""

    path: str
    """Relative to the media folder; for a folder of images, that folder."""
    hash: str
    """Of the content; results are cached by it."""
    codec: str = ""
    """A codec's name, or IMAGE_FOLDER."""
    pixel_format: str = ""
    width: int = 0
    """Pixels, after rotation."""
    height: int = 0
    rotation: int = 0
    frames: int = 0
    frame_rate: float = 0.0
    keyframes: array[int] | None = None
    frame_times: array[float] | None = None
    """Seconds from the first frame; None at a constant rate."""
    names: tuple[str, ...] = ()
    """The images of a folder, in order."""
    version: str = ""
    """Size and modification time of the file that was probed."""
    reason: str = ""
    """Why the file cannot be used; empty for a good file."""


def check_folder(root: Path, source: str) -> None:
    """Raise DataError, naming the official archive, if the folder is missing or empty."""
    if not root.is_dir() or not any(root.iterdir()):
        what = "is empty" if root.is_dir() else "is not a folder"
        raise DataError(
            f"--media {root} {what}. Source: {source}. Give the folder that holds the files"
        )


class MediaLibrary:
    """The files of a media folder by the paths that annotations name.

    Filled by `prepare`, then read-only and sent to reader processes.

    Args:
        root: The media folder.
        cache: Holds what earlier starts found out.
        source: The official archive, for messages.
        picture_rate: Frames per second of a folder of numbered images.
        max_pixels: Most pixels of a frame or image; 0: any number.
        workers: Processes that probe; 0 probes in this process, where a file that hangs cannot be
            stopped.
    """

    def __init__(
        self,
        root: Path,
        cache: Path,
        *,
        source: str,
        picture_rate: float = 3.0,
        max_pixels: int = MAX_PIXELS,
        workers: int = 0,
    ) -> None:
        self.root = root.absolute()
        self._source = source
        self._picture_rate = picture_rate
        self._limits = replace(LIMITS, max_pixels=max_pixels)
        self._workers = workers
        self._store = cache / "media" / content_hash(str(self.root).encode())
        self._files: dict[str, MediaFile] = {}
        self._known: dict[str, MediaFile] | None = None
        """What the cache holds, read once; None: not read yet."""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_known": None}  # reader processes do not probe

    def __getitem__(self, media: Media) -> MediaFile:
        """Return the file of a media item; raises MediaError if it is missing or damaged."""
        file = self._files.get(media.path)
        if file is None or file.reason:
            raise MediaError(self.reason(media))
        return file

    def reason(self, media: Media) -> str:
        """Return why an item cannot be shown; empty for a good file."""
        file = self._files.get(media.path)
        if file is None:
            return f"{media.path}: was not looked up"
        return f"{file.path}: {file.reason}" if file.reason else ""

    def require_unchanged(self, file: MediaFile) -> None:
        """Raise DataError if a file is not the one that was probed.

        After reading rather than before: frame numbers would be those of another file.
        """
        path = self.root / file.path
        if file.version and file.version != _version(path, self._picture_rate):
            raise DataError(
                f"{path} has changed since it was examined; once --media is complete, run the same"
                " command again"
            )

    def content(self, media: Media) -> str:
        """Return the hash of an item's file; for a bad file, what is wrong with it."""
        file = self._files.get(media.path)
        return file.hash or file.reason if file else ""

    def prepare(self, media: Iterable[Media], *, quiet: bool = False, again: bool = False) -> None:
        """Find and probe the files that are not known yet, each rank its share. Collective.

        Args:
            media: Items whose files will be read.
            quiet: No progress bar.
            again: Also look at files that are known, and probe those that have changed since.

        Raises:
            DataError: The folder holds none of the files.
            StorageError: The storage failed on any rank.
        """
        check_folder(self.root, self._source)
        wanted = sorted({item.path for item in media} - (set() if again else self._files.keys()))
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        # every world-th file of the sorted list: long videos of one folder are spread over ranks
        mine: dict[str, MediaFile] | str
        try:
            mine = self._probe(wanted[rank::world], quiet=quiet or rank > 0)
        except OSError as error:
            mine = str(error)
        shares: list[Any] = [mine]
        if world > 1:
            shares = [None] * world
            dist.all_gather_object(shares, mine)
        # every rank knows all files: items are dealt to ranks later, and differently in each epoch
        for share in shares:
            if isinstance(share, str):
                raise StorageError(
                    f"--media {self.root} cannot be read: {share}. This is the storage's fault, not"
                    " a file's: once it works again, run the same command"
                )
            self._files |= share
        missing = [path for path in wanted if self._files[path].reason.startswith("no such file")]
        if wanted and len(missing) == len(wanted):
            raise DataError(
                f"--media {self.root} holds none of the {len(wanted):,} files that the annotations"
                f" name, for example {missing[0]}. Source: {self._source}"
            )

    def _probe(self, paths: list[str], *, quiet: bool) -> dict[str, MediaFile]:
        names = _Names(self.root)
        if self._known is None:
            self._known = _read_store(self._store)
        known = self._known
        found: dict[str, MediaFile] = {}
        new: list[tuple[str, Path, str]] = []
        for path in paths:
            file = names.find(path)
            if file is None:
                found[path] = MediaFile(
                    path, "", reason="no such file in the media folder, nor one with another suffix"
                )
                continue
            try:
                # name, size and time: hashing the content at every start would read the data set
                key = _key(file, self.root, self._picture_rate)
            except OSError as error:
                if error.errno not in LASTING:
                    raise
                found[path] = MediaFile(path, "", reason=f"cannot be read: {error}")
                continue
            if key in known:
                found[path] = replace(known[key], version="|".join(key.rsplit("|", 2)[1:]))
            else:
                new.append((path, file, key))
        if new:
            found |= self._probe_new(new, known, quiet=quiet)
        return found

    def _probe_new(
        self, new: list[tuple[str, Path, str]], known: dict[str, MediaFile], *, quiet: bool
    ) -> dict[str, MediaFile]:
        found: dict[str, MediaFile] = {}
        lines: list[str] = []
        # a store file per process: appending to one file from several nodes is not safe on NFS
        store = self._store / f"{uuid.uuid4().hex}.jsonl"
        tasks = [
            (str(self.root), str(file.relative_to(self.root)), self._picture_rate, self._limits)
            for _, file, _ in new
        ]
        # a file may hang a decoder for ever: processes can be killed, threads cannot
        pool = None
        if self._workers:
            pool = ProbePool(min(self._workers, len(new)), self._limits, probing_process)
            answers = pool.map(tasks)
        else:
            answers = ((number, *_probe_task(task)) for number, task in enumerate(tasks))
        try:
            for number, reason, answer in tqdm(
                answers, total=len(new), desc="media", unit="file", disable=quiet
            ):
                path, file, key = new[number]
                if isinstance(answer, OSError):
                    raise answer
                if reason is not None:
                    relative = str(file.relative_to(self.root))
                    answer = MediaFile(relative, "", reason=f"{reason}: {answer}")
                found[path] = answer
                if reason not in NOT_OF_CONTENT:
                    if reason is None:  # the file may have changed since its key was made
                        key = f"{answer.path}|{answer.version}"
                    known[key] = answer
                    lines.append(json.dumps([key, _as_json(answer)]) + "\n")
                if len(lines) >= _SAVE_EVERY:
                    _append(store, lines)
        finally:
            if pool:
                pool.close()
            _append(store, lines)
        return found


class _Names:
    """Finds files by the names that annotations give them; lists each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def find(self, path: str) -> Path | None:
        """Return the file or folder of this name, else the first one with another known suffix.

        Letter case is ignored for the latter. None for a path that leaves the media folder.
        """
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            return None
        folder = self._root / relative.parent
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        exact, stems = self._listed[folder]
        if relative.name in exact:
            return folder / relative.name
        name = stems.get(relative.name.lower()) or stems.get(_stem(relative.name).lower())
        return folder / name if name else None

    @staticmethod
    def _list(folder: Path) -> tuple[set[str], dict[str, str]]:
        try:
            # one listing per folder instead of one stat per name: on network storage a request each
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            if error.errno not in LASTING:
                raise  # its files must not count as missing
            return set(), {}
        stems: dict[str, str] = {}
        for name in names:
            # the first in sorted order wins if files differ only in their suffix
            if _stem(name) != name:
                stems.setdefault(_stem(name).lower(), name)
        return set(names), stems


def _stem(name: str) -> str:
    head, dot, suffix = name.rpartition(".")
    return head if dot and suffix.lower() in SUFFIXES else name


def _key(file: Path, root: Path, rate: float) -> str:
    """Return the cache key of a probe: name, size, modification time; for a folder, its rate."""
    return f"{file.relative_to(root)}|{_version(file, rate)}"


def _version(file: Path, rate: float) -> str:
    facts = file.stat()
    size = rate if stat.S_ISDIR(facts.st_mode) else facts.st_size
    return f"{size}|{facts.st_mtime_ns}"


def _append(store: Path, lines: list[str]) -> None:
    if lines:
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        lines.clear()


def _read_store(folder: Path) -> dict[str, MediaFile]:
    known: dict[str, MediaFile] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                key, content = json.loads(line)
                # earlier versions remembered a file that could not be read, for ever
                if content["reason"].partition(":")[0] not in NOT_OF_CONTENT:
                    known[key] = _from_json(content)
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                continue  # a line that a killed run cut off
            except RecursionError:
                continue
    return known


def _as_json(file: MediaFile) -> dict[str, Any]:
    values = {name: getattr(file, name) for name in MediaFile.__dataclass_fields__}
    return {
        name: value.tolist() if isinstance(value, array) else value
        for name, value in values.items()
    }


def _from_json(content: Mapping[str, Any]) -> MediaFile:
    values = dict(content)
    for name, code in (("keyframes", "l"), ("frame_times", "d")):
        values[name] = None if values[name] is None else array(code, values[name])
    return MediaFile(**{**values, "names": tuple(values["names"])})


def probe_file(
    root: Path, relative: str, picture_rate: float, limits: Limits = LIMITS
) -> MediaFile:
    """Find out what one file or folder of images holds.

    Args:
        root: The media folder.
        relative: The file's path in it.
        picture_rate: Frames per second of a folder of images.
        limits: Requirements that it must meet.

    Raises:
        ProbeError: The file cannot be used.
        OSError: The file cannot be read, or changes all the time.
    """
    path = root / relative
    for _ in range(3):
        version = _version(path, picture_rate)
        try:
            file = _probe_once(path, relative, picture_rate, limits)
        except ProbeError:
            if version == _version(path, picture_rate):
                raise
            continue
        if version == _version(path, picture_rate):
            return replace(file, version=version)
    raise OSError(errno.EAGAIN, "the file changes while it is examined", str(path))


def _probe_once(path: Path, relative: str, picture_rate: float, limits: Limits) -> MediaFile:
    if path.is_dir():
        return _probe_folder(path, relative, picture_rate, limits)
    extension = path.suffix.lstrip(".").lower()
    if path.stat().st_size > LONG_BYTES:
        facts = probe_packets(path, extension, limits)
        if facts is not None:
            return _video_file(relative, _hash_of_long(path), facts)
    if not path.is_file():
        raise ProbeError("unreadable", "not a regular file")  # reading a FIFO would not end
    content = path.read_bytes()
    extension = image_extension(content, extension)
    return _video_file(relative, content_hash(content), probe(content, extension, limits))


def _hash_of_long(path: Path) -> str:
    """Hash size and both ends: hours of video are not read completely."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        ends = file.read(_END_BYTES)
        file.seek(size - _END_BYTES)
        return content_hash(str(size).encode() + ends + file.read())


def _video_file(relative: str, content: str, facts: Mapping[str, Any]) -> MediaFile:
    times = facts["frame_times"]
    return MediaFile(
        relative,
        content,
        **{name: facts[name] for name in _COLUMNS},
        keyframes=array("l", facts["keyframes"]),
        frame_times=None if times is None else array("d", times),
    )


def _probe_folder(path: Path, relative: str, rate: float, limits: Limits) -> MediaFile:
    """Probe a folder of images numbered by name (00001.jpg); only the first one is decoded."""
    found = [entry.name for entry in path.iterdir() if entry.suffix.lstrip(".").lower() in IMAGES]
    # by number, not by name: 10.jpg comes after 9.jpg
    numbered = sorted((int(_stem(name)), name) for name in found if _stem(name).isdecimal())
    if not numbered:
        raise ProbeError(
            "no_pictures", "the folder holds no image named by a number, such as 00001.jpg"
        )
    names = tuple(name for _, name in numbered)
    # one picture of up to 270 (90 s at 3 per second): TVQA has 21,793 such folders
    extension = names[0].rpartition(".")[2].lower()
    first = probe((path / names[0]).read_bytes(), extension, limits)
    sizes = repr([(name, (path / name).stat().st_size) for name in names])
    return MediaFile(
        relative,
        content_hash(sizes.encode()),
        codec=IMAGE_FOLDER,
        width=first["width"],
        height=first["height"],
        frames=len(names),
        frame_rate=rate,
        names=names,
    )


def probing_process(pipe: Connection, limits: Limits) -> None:
    """Run as the main function of a process of ProbePool."""
    answer_tasks(pipe, _probe_task)


def _probe_task(
    task: tuple[str, str, float, Limits],
) -> tuple[str | None, MediaFile | OSError | str]:
    root, relative, rate, limits = task
    try:
        return None, probe_file(Path(root), relative, rate, limits)
    except OSError as error:
        return ("unreadable", str(error)) if error.errno in LASTING else (None, error)
    except ProbeError as error:
        return error.reason, str(error)
