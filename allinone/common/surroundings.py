"""Makes a program work where the home folder or the temporary folder cannot be used.

Containers often run as a number without an entry in /etc/passwd, with HOME unset, missing or
read-only; batch systems give long temporary folders. Libraries then fail at places that name
neither.
Nothing of this project or of torch is imported here, because it must run first.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from pathlib import Path

MAX_TEMPORARY = 70
"""Characters of a temporary folder in which multiprocessing can listen: a socket's path has at most
107, and multiprocessing adds pymp-xxxxxxxx/listener-xxxxxxxx."""
CACHES = {
    "XDG_CACHE_HOME": "cache",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "MPLCONFIGDIR": "matplotlib",
}
"""Environment variables of folders that libraries write below HOME by default."""
_KEPT = {"HF_HOME": ".cache/huggingface"}
"""Folders below HOME that are read where they exist."""


def adapt() -> list[str]:
    """Replace what cannot be used by a folder of this user in the temporary folder.

    Changes os.environ, so that child processes do the same.

    Returns:
        A sentence on each replacement.
    """
    notes = [*_adapt_temporary_folder(), *_adapt_user_name()]
    home = os.environ.get("HOME", "")
    problem = _problem(home)
    if not problem:
        return notes
    replacement = _own_folder()
    if home and _is_folder(home):
        # what can be read there stays in use
        for name, place in _KEPT.items():
            if (Path(home) / place).is_dir():
                os.environ.setdefault(name, str(Path(home) / place))
        for name, place in CACHES.items():
            os.environ.setdefault(name, str(replacement / place))
    else:
        os.environ["HOME"] = str(replacement)
    return [*notes, f"the home folder {problem}; {replacement} is used for caches"]


def say(notes: list[str]) -> None:
    """Print notes once per run: children inherit a mark in the environment."""
    if notes and not os.environ.get("ALLINONE_ADAPTED"):
        os.environ["ALLINONE_ADAPTED"] = "1"
        for note in notes:
            print(f"warning: {note}", file=sys.stderr)


def _problem(home: str) -> str:
    """Why a home folder cannot hold caches; empty if it can."""
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return "is unknown (HOME is not set, and the user has no entry in /etc/passwd)"
    if not Path(home).is_absolute():
        return f"{home} is not an absolute path"
    if not _is_folder(home):
        return f"{home} does not exist, or may not be entered"
    # caches may have been placed elsewhere, and then nothing is written there
    if os.access(home, os.W_OK | os.X_OK, effective_ids=True) or all(
        os.environ.get(name) for name in CACHES
    ):
        return ""
    return f"{home} cannot be written"


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except PermissionError:  # a folder above it is closed
        return False


def _adapt_user_name() -> list[str]:
    """getpass.getuser, which torch and DeepSpeed call, needs a name."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            os.environ["LOGNAME"] = f"user{os.getuid()}"
    return []


def _adapt_temporary_folder() -> list[str]:
    given = os.environ.get("TMPDIR", "")
    if given and (not _is_folder(given) or not os.access(given, os.W_OK | os.X_OK)):
        problem = "is not a folder that can be written"
    elif len(os.fsencode(given)) > MAX_TEMPORARY:
        problem = f"has more than {MAX_TEMPORARY} characters, too many for the names of sockets"
    else:
        return []
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        if _is_folder(place) and os.access(place, os.W_OK | os.X_OK):
            os.environ["TMPDIR"], tempfile.tempdir = place, None
            return [f"TMPDIR={given} {problem}; {place} is used"]
    return []


def _own_folder() -> Path:
    """A private folder of this user in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"allinone-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        # another user may have made a folder or a link of this name
        if facts.st_uid == os.geteuid() and folder.is_dir() and not folder.is_symlink():
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="allinone-"))
