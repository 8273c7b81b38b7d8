"""Makes system calls of this process fail, as a disturbed disk does."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any


def inject(call: str, error: str, match: str = "", times: int = 1_000_000, skip: int = 0) -> None:
    """Let calls fail whose path has a pattern.

    Args:
        call: fsync, unlink, rmdir or rename of module os; "append", what history.jsonl is written
            with; "tensorboard", its writing thread.
        error: Name of an errno.
        match: Pattern of a part of the path.
        times: Number of calls that fail.
        skip: Number of calls before them that do not.
    """
    number = getattr(errno, error)
    left, before = [times], [skip]

    def check(path: object) -> None:
        if not re.search(match, os.fsdecode(path)) or not left[0]:  # type: ignore[arg-type]
            return
        if before[0]:
            before[0] -= 1
            return
        left[0] -= 1
        raise OSError(number, os.strerror(number), os.fsdecode(path))  # type: ignore[arg-type]

    if call == "append":
        from allinone.engine.monitoring import history

        class Failing(FileIO):
            def write(self, content: Any) -> int:
                check(str(self.name))
                return super().write(content)

        history.FileIO = Failing  # type: ignore[misc]
    elif call == "tensorboard":
        from tensorboard.summary.writer.record_writer import RecordWriter

        _wrap(RecordWriter, "write", lambda *_: check("tensorboard"))
    else:
        _wrap(os, call, lambda path, *_: check(_path(path)))


def _wrap(owner: Any, name: str, check: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        check(*args)
        return original(*args, **options)

    setattr(owner, name, wrapped)


def _path(file: Any) -> str | Path:
    """Path of a file, which may be given as a descriptor or by an entry of its folder."""
    return Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else os.fspath(file)
