"""A shard under construction, and how it is written: the tar first, its index fragment second."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import TEMPORARY, atomic_path, content_hash
from allinone.common.errors import OF_THE_NAME
from allinone.data.index import Clip, Video
from allinone.data.prepare.merge import write_fragment
from allinone.data.prepare.options import PrepareOptions
from allinone.data.prepare.worker import ClipTask, ProbedFile
from allinone.data.sources import SourceRow

MAX_EXAMINED = 3
"""How often a file is examined that changes while it is prepared."""


class ChangedFilesError(Exception):
    """Files have another content than when they were examined; nothing was written.

    Args:
        numbers: The files' rows in their shard.
    """

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(numbers)
        self.numbers = numbers


class PendingShard:
    """A shard whose files are being examined."""

    def __init__(self, name: str, rows: list[SourceRow]) -> None:
        self.name = name
        self.rows = rows
        self.reasons = {
            number: (row.reason, row.detail)
            for number, row in enumerate(rows)
            if row.reason is not None
        }
        """Number of a row → (reason, detail), for bad files."""
        self.good: dict[int, ProbedFile] = {}
        """Number of a row → its file, for good ones."""
        self.examined: Counter[int] = Counter()
        """Number of a row → how often its file was examined."""

    @property
    def complete(self) -> bool:
        """Whether every file has been examined."""
        return len(self.reasons) + len(self.good) == len(self.rows)


def write_shard(options: PrepareOptions, shard: PendingShard) -> None:
    """Write the tar first and the fragment second: a fragment implies a complete tar.

    Args:
        options: Resolved options.
        shard: The shard; all of its files have been examined.

    Raises:
        ChangedFilesError: Files changed since they were examined.
        OSError: The storage failed.
    """
    out, name = options.out, shard.name
    videos: list[Video] = []
    clips: list[Clip] = []
    changed: list[int] = []
    # USTAR: one header block of 512 bytes per member, without PAX records between them. Members are
    # in the order of the rows, not of completion: equal input gives equal bytes.
    with (
        atomic_path(out / "shards" / f"{name}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, row in enumerate(shard.rows):
            if number not in shard.good:
                reason, detail = shard.reasons[number]
                key, captions = f"{row.split}/{row.id}", list(row.captions)
                clip = Clip(key, row.split, captions, row.source, reason=reason, detail=detail)
                clips.append(clip)
                continue
            found = shard.good[number]
            content = _examined_content(found)
            if content is None:
                changed.append(number)
            if content is None or changed:
                continue
            of_file = clips_of(row, found, len(videos))
            video = Video(f"shards/{name}.tar", row.source, hash=found.hash, **found.columns)
            _add_video(archive, f"{name}-{number:05d}", row, found, video, content, of_file)
            videos.append(video)
            clips += of_file
        if changed:
            raise ChangedFilesError(changed)
    # Between tar and fragment: a run that is killed here has no fragment, and so makes the shard
    # again from its sources.
    for number in shard.good:
        unfinished_path(out, name, number).unlink(missing_ok=True)
    write_fragment(out, name, videos, clips)


def unfinished_path(out: Path, name: str, number: int) -> Path:
    """Where a file is re-encoded to, until its shard is written.

    Args:
        out: The prepared folder.
        name: The shard.
        number: Position of the file's row in the shard.

    Returns:
        A path that `existing_shards` recognises as the shard's leftover.
    """
    return out / "shards" / f"{TEMPORARY}{name}.{number:05d}"


def task_of(options: PrepareOptions, name: str, number: int, row: SourceRow) -> ClipTask:
    """The task of a worker for one row.

    Args:
        options: Resolved options.
        name: The row's shard.
        number: The row's position in the shard.
        row: The row.

    Returns:
        The task; it can be sent to a process.
    """
    return ClipTask(
        (row.path, *row.alternatives),
        row.offset,
        row.size,
        row.extension,
        row.narration,
        options.encoding,
        unfinished_path(options.out, name, number),
    )


def clips_of(row: SourceRow, found: ProbedFile, video: int) -> list[Clip]:
    """The clips of one stored file.

    Args:
        row: The file's row.
        found: The file.
        video: Its position in the shard's table of stored files.

    Returns:
        One clip with all captions, or a window for each line of its narration.
    """
    key = f"{row.split}/{row.id}"
    if row.narration is None:
        return [Clip(key, row.split, list(row.captions), row.source, video)]
    return [
        Clip(
            f"{key}#{number}",
            row.split,
            [window.caption],
            row.source,
            video,
            None if window.reason else window.first,
            None if window.reason else window.last,
            window.reason,
            window.detail,
        )
        for number, window in enumerate(found.windows)
    ]


def _examined_content(found: ProbedFile) -> bytes | None:
    """The content of a file; None if it is not the one that was examined.

    Read again rather than sent by the worker: the files of all shards that wait to be written would
    otherwise be in this process's memory. A downloader may have replaced or removed the file.
    """
    try:
        with found.path.open("rb") as file:
            file.seek(found.offset)
            content = file.read() if found.size is None else file.read(found.size)
    except OSError as error:
        if error.errno in OF_THE_NAME:
            return None
        raise
    return content if content_hash(content) == found.hash else None


def _add_video(
    archive: tarfile.TarFile,
    key: str,
    row: SourceRow,
    found: ProbedFile,
    video: Video,
    content: bytes,
    clips: list[Clip],
) -> None:
    """Add a stored file, its caption and its facts to the tar; sets `video`'s place.

    Args:
        archive: The shard's tar.
        key: Name of the three members without their extensions.
        row: The file's row.
        found: The file.
        video: Its row in the table of stored files; offset and size are filled in.
        content: The file.
        clips: Its clips.
    """
    archive.addfile(*_member(f"{key}.{found.extension}", content))
    video.size = len(content)
    # the archive is now positioned after the content, which is padded to blocks of 512 bytes
    video.offset = archive.offset - -(-len(content) // 512) * 512
    facts: dict[str, Any] = {
        "key": f"{row.split}/{row.id}",
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
    }
    if row.narration is None:
        # WebDataset's .txt holds one caption; all of them are in the .json and in the index
        archive.addfile(*_member(f"{key}.txt", row.captions[0].encode()))
        facts["captions"] = row.captions
    else:
        good = (clip for clip in clips if clip.reason is None)
        facts["clips"] = [[clip.first_frame, clip.last_frame, *clip.captions] for clip in good]
    archive.addfile(*_member(f"{key}.json", json.dumps(facts).encode()))


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)  # owner 0, time 0: equal input gives equal bytes
    info.size = len(content)
    return info, io.BytesIO(content)
