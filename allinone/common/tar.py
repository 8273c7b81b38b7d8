"""Lists the members of a tar of unknown origin, and whether the list is complete.

Python's tarfile takes a damaged header for the end of the archive, and knows no limit for the size
of a header: one flipped bit hides all later members, one number makes it read gigabytes.
"""

from __future__ import annotations

import tarfile
from typing import IO

LARGEST_HEADER = 1 << 20
"""Bytes of an extended header (long names, PAX records); real ones have some hundred."""
_READ = 1 << 20
_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
"""What tarfile raises for damaged headers; RecursionError: a long chain of extended headers."""


class _Headers:
    """A file object that gives tarfile no more than headers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def list_members(file: IO[bytes]) -> tuple[list[tarfile.TarInfo], str]:
    """List the members of an uncompressed tar by reading its headers.

    Args:
        file: The opened tar, at its beginning.

    Returns:
        The members, in the order of the file, and what is wrong after the last of them ("": the
        list is complete). Contents are not verified, except that they are inside the file.

    Raises:
        OSError: The storage failed.
    """
    members: list[tarfile.TarInfo] = []
    end = 0
    file_size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            for member in archive:
                # a negative size leads tarfile back to a header that it has read
                if member.size < 0 or member.offset < end:
                    return members, f"the header at byte {member.offset:,} is damaged"
                if member.offset_data + member.size > file_size:
                    return members, f"it ends inside {member.name!r}, after {file_size:,} bytes"
                members.append(member)
                end = archive.offset
            end = archive.offset
    except _ERRORS as error:
        return members, f"it cannot be read after byte {end:,} ({error})"
    return members, _after(file, end)


def _after(file: IO[bytes], end: int) -> str:
    """What is wrong with the end of an archive, of which tarfile reads only one block at most.

    Args:
        file: The tar.
        end: Where tarfile found no further member.
    """
    size = file.seek(0, 2)
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"it was cut off after {size:,} bytes: the end-of-archive block is missing"
    if any(block):
        return f"the header at byte {end:,} is damaged"
    position = end
    while block:
        if any(block):
            return f"data follows its end-of-archive block, after byte {position:,}"
        position += len(block)
        block = file.read(_READ)
    return ""
