"""A shard in the making, and how it is written: tar first, fragment of the index second."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import TEMPORARY, atomic_path, content_hash
from allinone.data.loading.index import Clip, Video
from allinone.data.prepare.merge import write_fragment
from allinone.data.prepare.options import PrepareOptions
from allinone.data.prepare.worker import ClipTask, Found
from allinone.data.sources import SourceRow


class Shard:
    """A shard in the making."""

    def __init__(self, name: str, rows: list[SourceRow]) -> None:
        self.name, self.rows = name, rows
        self.reasons = {
            number: (row.reason, row.detail)
            for number, row in enumerate(rows)
            if row.reason is not None
        }
        self.found: dict[int, Found] = {}

    @property
    def whole(self) -> bool:
        """Whether every file has been looked at."""
        return len(self.reasons) + len(self.found) == len(self.rows)


def write_shard(options: PrepareOptions, shard: Shard) -> None:
    """Tar first, fragment second: a fragment stands only beside a whole tar."""
    out, name, found = options.out, shard.name, shard.found
    videos: list[Video] = []
    clips: list[Clip] = []
    with (
        atomic_path(out / "shards" / f"{name}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, row in enumerate(shard.rows):
            if number not in found:
                reason, detail = shard.reasons[number]
                captions = list(row.captions)
                clips.append(
                    Clip(
                        f"{row.split}/{row.id}",
                        row.split,
                        captions,
                        row.source,
                        reason=reason,
                        detail=detail,
                    )
                )
                continue
            cuts = clips_of(row, found[number], len(videos))
            video = Video(f"shards/{name}.tar", row.source, **found[number].columns)
            _add_video(archive, f"{name}-{number:05d}", row, found[number], video, cuts)
            videos.append(video)
            clips += cuts
    for number in found:
        unfinished(out, name, number).unlink(missing_ok=True)
    write_fragment(out, name, videos, clips)


def unfinished(out: Path, name: str, number: int) -> Path:
    """Where the number-th file of a shard is encoded to."""
    return out / "shards" / f"{TEMPORARY}{name}.{number:05d}"


def task_of(options: PrepareOptions, name: str, number: int, row: SourceRow) -> ClipTask:
    """What a worker is to do with a row."""
    target = unfinished(options.out, name, number)
    return ClipTask(
        (row.path, *row.others),
        row.offset,
        row.size,
        row.extension,
        row.narration,
        options.encoding,
        target,
    )


def clips_of(row: SourceRow, found: Found, video: int) -> list[Clip]:
    """A file's clips: itself with all its captions, or a window for each line of its narration."""
    key = f"{row.split}/{row.id}"
    if row.narration is None:
        return [Clip(key, row.split, list(row.captions), row.source, video)]
    return [
        Clip(
            f"{key}#{number}",
            row.split,
            [cut.caption],
            row.source,
            video,
            None if cut.reason else cut.first,
            None if cut.reason else cut.last,
            cut.reason,
            cut.detail,
        )
        for number, cut in enumerate(found.cuts)
    ]


def _add_video(
    archive: tarfile.TarFile,
    key: str,
    row: SourceRow,
    found: Found,
    video: Video,
    clips: list[Clip],
) -> None:
    with found.path.open("rb") as file:
        file.seek(found.offset)
        content = file.read() if found.size is None else file.read(found.size)
    archive.addfile(*_member(f"{key}.{found.extension}", content))
    video.size = len(content)
    video.hash = content_hash(content)
    video.offset = (
        archive.offset - -(-len(content) // 512) * 512
    )  # the archive stands behind the padded content now
    good = [clip for clip in clips if clip.reason is None]
    facts: dict[str, Any] = {
        "key": f"{row.split}/{row.id}",
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
    }
    if row.narration is None:
        archive.addfile(*_member(f"{key}.txt", row.captions[0].encode()))
        facts["captions"] = row.captions
    else:
        facts["clips"] = [[clip.first_frame, clip.last_frame, *clip.captions] for clip in good]
    archive.addfile(*_member(f"{key}.json", json.dumps(facts).encode()))


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)  # owner 0, time 0: equal input gives equal bytes
    info.size = len(content)
    return info, io.BytesIO(content)
