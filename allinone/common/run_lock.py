"""One process at a time writes a run folder.

OUT/run.lock names the process that holds the folder: host, pid and a counter that a thread raises
every BEAT_S. It is an ordinary file, created exclusively, because flock is not dependable on
network file systems and says nothing about a host that has died. A second start decides as follows:

- the holder ran on this host: its process exists (refused) or not (taken over at once)
- the holder runs on another host: if the counter rises within STALE_S, it is alive (refused);
  otherwise the host is dead or unreachable (taken over)

Counters are compared, not clocks, which differ between hosts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from allinone.common.access import UNWRITABLE
from allinone.common.atomic_io import write_atomic
from allinone.common.errors import ConfigError, LocalConfigError
from allinone.common.formatting import duration

log = logging.getLogger(__name__)

LOCK = "run.lock"
BEAT_S = 5.0
"""Seconds between two changes of the lock."""
STALE_S = 60.0
"""Seconds without a change after which a holder on another host counts as dead. NFS clients show a
change of another client within 3 s once a file is reopened, and at most 60 s after it if
attributes are cached for the longest time (acregmax)."""
_TAKEOVER_S = 30.0
"""Seconds after which the marker of a take-over is left over from a process that died in it."""


@dataclass(frozen=True)
class Holder:
    """Content of the lock."""

    host: str
    pid: int
    machine: str
    """Boot and pid namespace: a pid means something only where these are equal."""
    started: int
    """Start of the process in clock ticks since boot, which tells it from a later one with the same
    pid; a time of day would change with the clock."""
    token: str
    """Different for every claim."""
    beat: int = 0
    claimed: float = 0.0
    """Wall clock when it was claimed, seconds; for messages."""

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            started=_process(os.getpid())[1],
            token=uuid.uuid4().hex,
            claimed=time.time(),
        )

    def describe(self) -> str:
        """Host, pid and age."""
        return (
            f"pid {self.pid} on {self.host}, since {duration(max(0, time.time() - self.claimed))}"
        )

    def is_here(self) -> bool:
        """Whether its pid can be looked up in this process."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether the process exists; only for a holder that `is_here`."""
        try:
            state, started = _process(self.pid)
        except OSError:
            return False
        return started == self.started and state not in "ZX"


def _process(pid: int) -> tuple[str, int]:
    """(state, start in clock ticks since boot) of a process, proc(5); OSError if there is none."""
    # the name in parentheses may hold spaces and parentheses
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _machine() -> str:
    parts = [socket.gethostname()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
    return " ".join(parts)


_held: dict[Path, RunLock] = {}
"""Locks of this process, by real path of the run folder."""


class RunLock:
    """The lock of a run folder, held by this process until `release`.

    Use `claim`; a second claim in the same process shares the lock.
    """

    def __init__(self, folder: Path, me: Holder) -> None:
        self._path, self._me = folder / LOCK, me
        self._users = 1
        self._lost = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            # a full or disturbed disk: the next beat may succeed, and others wait for STALE_S
            with contextlib.suppress(OSError):
                found = _read(self._path)
                if found is not None and found.token != self._me.token:
                    self._lost = found.describe()
                    return
                self._me = replace(self._me, beat=self._me.beat + 1)
                _write(self._path, self._me)

    def require(self) -> None:
        """Refuse to go on if another process has taken the folder, because this one was suspended.

        Raises:
            ConfigError: It has; the message names it.
        """
        if self._lost:
            raise ConfigError(
                f"{self._path.parent} was taken over by {self._lost}: this process gave no sign of"
                f" life for {STALE_S:g} s. Nothing more is written"
            )

    def release(self) -> None:
        """Give the folder back."""
        self._users -= 1
        if self._users:
            return
        self._stopped.set()
        self._thread.join()
        for path in [path for path, lock in _held.items() if lock is self]:
            del _held[path]
        with contextlib.suppress(OSError):
            found = _read(self._path)
            if found is not None and found.token == self._me.token:
                self._path.unlink()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def claim(folder: Path) -> RunLock:
    """Claim a run folder for this process; it is created if it is missing.

    Raises:
        ConfigError: Another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        real = folder.resolve()
        if real in _held:
            _held[real]._users += 1
            return _held[real]
        me = Holder.me()
        with _claiming(folder, me):
            _held[real] = RunLock(folder, me)
        return _held[real]
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise LocalConfigError(f"--out {folder} cannot be written: {error.strerror}") from error
        raise


def require(folder: Path) -> None:
    """ConfigError if another process has taken a folder that this process has claimed."""
    lock = _held.get(folder.resolve())
    if lock is not None:
        lock.require()


@contextlib.contextmanager
def _claiming(folder: Path, me: Holder) -> Iterator[None]:
    path, announced = folder / LOCK, False
    while not _create(path, me):
        holder = _read(path)
        if holder is None:  # released, or replaced, between the two lines
            time.sleep(0.05)
            continue
        if holder.is_here():
            if holder.is_alive():
                raise _refusal(folder, holder)
        else:
            if not announced:
                log.info(
                    "%s is held by %s; waiting up to %g s for a sign of life",
                    folder,
                    holder.describe(),
                    STALE_S,
                )
                announced = True
            if _shows_life(path, holder):
                raise _refusal(folder, holder)
        if _take_over(path, holder, me):
            log.warning("%s: taken over from %s, which is dead", folder, holder.describe())
            break
    yield


def _refusal(folder: Path, holder: Holder) -> ConfigError:
    return ConfigError(
        f"{folder} is in use by another process: {holder.describe()}. Wait for it, end it, or give"
        " another --out"
    )


def _shows_life(path: Path, holder: Holder) -> bool:
    """Whether the lock changes within STALE_S; returns early once it has."""
    end = time.monotonic() + STALE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_S))
        found = _read(path)
        if found is None or found.token != holder.token:
            return False  # released or taken: the caller looks again
        if found.beat != holder.beat:
            return True
    return False


def _create(path: Path, me: Holder) -> bool:
    """Create the lock, complete; False if there is one."""
    # written under another name and then linked: link() is exclusive on every file system that has
    # it, NFS included, and no reader sees half a lock
    temporary = path.with_name(f".tmp-{LOCK}-{me.token}")
    try:
        _write(temporary, me)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            os.close(handle)
            _write(path, me)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _take_over(path: Path, dead: Holder, me: Holder) -> bool:
    """Replace the lock of a dead holder; False if another process did so first."""
    # only the process that creates the marker of this very claim may replace its lock
    marker = path.with_name(f".tmp-{LOCK}-after-{dead.token}")
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - marker.stat().st_mtime > _TAKEOVER_S:
                marker.unlink()
        time.sleep(0.2)
        return False
    try:
        found = _read(path)
        if found is None or found.token != dead.token:
            return False
        _write(path, me)
        return True
    finally:
        marker.unlink(missing_ok=True)


def _write(path: Path, holder: Holder) -> None:
    write_atomic(path, json.dumps(asdict(holder)) + "\n")


def _read(path: Path) -> Holder | None:
    """The holder; None if there is no lock. A lock that cannot be understood counts as dead."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Holder(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # not ours, or the disk was full
        return Holder("an unknown host", 0, _machine(), 0, token="unreadable")
