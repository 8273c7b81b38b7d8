"""Where the media of a list are: paths in lists, videos by id, images by the URL they came from."""

from __future__ import annotations

import os
import re
import zlib
from hashlib import md5
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.sources.schema import Narration, SourceRow, bad_row

IMAGE_EXTENSIONS = ("jpg", "png", "webp", "jpeg")
NAME_FIELDS = "{split}, {number} (line, from 0), {crc32}, {md5}, {basename}"


_COMPONENT = r"[\w%+=,~@-][\w%+=,~@.-]*"
PLAIN = re.compile(rf"(?:{_COMPONENT}/)*{_COMPONENT}", re.ASCII)
"""Relative paths that are normal as they are: ASCII, no component is empty or begins with a dot."""
KNOWN = IMAGES | VIDEOS


def media_folder(source: Path, given: Path | None, official: str = "") -> Path:
    """Return the folder of a source's videos or images.

    Args:
        source: The list, or the folder that holds it.
        given: What --videos names; None: the official place.
        official: The official place, relative to the list's folder.

    Returns:
        The folder; it need not exist.
    """
    return given or (source.parent if source.is_file() else source) / official


def leaves_folder(relative: Path) -> bool:
    """Whether a path of a list may point outside the folder that it is relative to."""
    return relative.is_absolute() or ".." in relative.parts or "\0" in str(relative)


def media_row(
    split: str,
    name: str,
    captions: tuple[str, ...],
    root: Path,
    relative: Path | str,
    listed: Path,
    place: str,
    default: str = "",
    absolute: bool = False,
) -> SourceRow:
    """Return the row of one file, or a bad row if its path is unusable.

    Args:
        split: Split of the row.
        name: Id of the row.
        captions: Its captions.
        root: Folder of the media.
        relative: The file, relative to `root`; a text that PLAIN matches saves half the time.
        listed: The list that names the file.
        place: Line or record of the list; the id of a bad row.
        default: Extension of a file whose name has none that is known; empty: its content decides.
            For "jpg", the known image extensions are tried after the name.
        absolute: Accept absolute paths: the list was written for this machine.

    Returns:
        The row; whether the file exists is not checked.
    """
    if isinstance(relative, str):
        stem, _, extension = relative.rpartition("/")[2].rpartition(".")
        if stem and extension.lower() in KNOWN:
            path = Path(f"{root}/{relative}")
            return SourceRow(split, name, captions, path, relative, extension=extension.lower())
        relative = Path(relative)
    try:
        os.fsencode(relative)
    except UnicodeEncodeError:
        detail = "the path holds half of a character (a lone surrogate), which no file name has"
        return bad_row(split, place, listed, str(relative), detail)
    inside = Path(*relative.parts[1:]) if absolute and relative.is_absolute() else relative
    if leaves_folder(inside) or not relative.name:
        detail = (
            f"the path is empty, absolute or leaves {root}; give paths below it (--videos names"
            " another folder)"
        )
        return bad_row(split, place, listed, str(relative), detail)
    extension = relative.suffix[1:].lower()
    known = extension in KNOWN
    alternatives: tuple[Path, ...] = ()
    if not known and default == "jpg":
        names = (f"{relative.name}.{extension}" for extension in IMAGE_EXTENSIONS)
        alternatives = tuple(root / relative.with_name(name) for name in names)
    return SourceRow(
        split,
        name,
        captions,
        root / relative,
        relative.as_posix(),
        extension=extension if known else default,
        alternatives=alternatives,
    )


def image_path(template: str, split: str, number: int, url: str) -> Path:
    """Path of a downloaded image below the folder of the images.

    Args:
        template: A format string over NAME_FIELDS.
        split: Split of the row.
        number: Line of the list, from 0.
        url: The URL that the image was downloaded from.

    Returns:
        The path, relative to that folder.

    Raises:
        DataError: The template has unknown fields.
    """
    encoded = url.encode("utf-8", "replace")  # lone surrogates of a damaged list would raise
    values = {
        "split": split,
        "number": number,
        "crc32": zlib.crc32(encoded),
        # without the argument, OpenSSL in FIPS mode refuses MD5
        "md5": md5(encoded, usedforsecurity=False).hexdigest(),
        "basename": url.partition("?")[0].rpartition("/")[2],
    }
    try:
        return Path(template.format(**values))
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"--names {template!r} is not a template over {NAME_FIELDS}: {error!r}"
        ) from error


def _raise(error: OSError) -> None:
    raise error


class MediaFiles:
    """Videos below a folder, by id: the file name up to its last dot.

    If several files have one id, the first in sorted order is used.

    Args:
        root: The folder; its sub-folders are searched too.
        needs: What the files should be called, for messages.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, root: Path, needs: str) -> None:
        if not root.is_dir():
            raise DataError(f"no folder of videos at {root}; --videos DIR names it ({needs})")
        self.root = root
        self._paths: dict[str, str] = {}
        seen: set[str] = set()
        # Links are followed because parts of a large set are often on other disks. A folder that
        # cannot be read raises: its videos must not count as missing.
        for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a parent folder
                folders.clear()
                continue
            seen.add(real)
            folders.sort()  # os.walk has the file system's order, which differs between machines
            for name in sorted(files):
                stem, _, extension = name.rpartition(".")
                if extension.lower() in VIDEOS:
                    path = os.path.join(folder, name)  # noqa: PTH118 - Path is slow for millions
                    self._paths.setdefault(stem, os.path.relpath(path, root))

    def row(self, split: str, name: str, narration: Narration) -> SourceRow:
        """Return the row of a video, or a bad row if it does not exist.

        Args:
            split: Split of the row.
            name: Id of the video.
            narration: Its captions.

        Returns:
            The row; `extension` is that of the file, in lower case.
        """
        relative = self._paths.get(name)
        if relative is None:
            detail = f"no video {name}.* below {self.root}"
            return bad_row(split, name, self.root, name, detail, "missing")
        return SourceRow(
            split,
            name,
            (),
            self.root / relative,
            relative,
            extension=relative.rpartition(".")[2].lower(),
            narration=narration,
        )
