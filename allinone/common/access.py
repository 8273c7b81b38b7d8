"""What this user may do with files, in words."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from allinone.common.errors import ConfigError

DENIED = frozenset({errno.EACCES, errno.EPERM})
UNWRITABLE = DENIED | {errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
"""Values of OSError.errno for a folder into which this user will never be able to write."""


def exists(path: Path) -> bool:
    """Whether something is there; PermissionError if this user may not know.

    Path.exists and is_file say False to that in some versions of Python.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def describe_denied(path: Path) -> str:
    """Why `path` may not be read: who owns it, and the mode of the file or of a folder above it."""
    for part in (path, *path.parents):
        try:
            facts = part.stat()
        except OSError:  # inside a folder that may not be entered
            continue
        mode = stat.S_IMODE(facts.st_mode)
        return (
            f"permission denied: {part} has mode {mode:04o} and belongs to {_name(facts.st_uid)},"
            f" this process runs as {_name(os.geteuid())}; its owner can open it with chmod"
        )
    return "permission denied"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # containers often run as a number without an entry
        return f"user {uid}"


def require_writable(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be created or written, before anything slow is started.

    Args:
        folder: It need not exist yet; nothing is created.
        option: The option named in the message.

    Raises:
        ConfigError: A file is in its place, or permissions or a read-only mount forbid to write.
    """
    for part in (folder, *folder.absolute().parents):
        try:
            facts = part.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{option} {folder} cannot be used: {error.strerror}") from error
        if not stat.S_ISDIR(facts.st_mode):
            raise ConfigError(f"{option} {folder} cannot be a folder: {part} is a file")
        if not os.access(part, os.W_OK | os.X_OK, effective_ids=True):
            reason = "is on a file system that is mounted read-only"
            if not os.statvfs(part).f_flag & os.ST_RDONLY:
                reason = "may not be written by this user"
            raise ConfigError(f"{option} {folder} cannot be written: {part} {reason}")
        return
