"""Objects of S3, Google Cloud Storage, the Hugging Face hub and web servers, through fsspec.

Credentials come from the environment that each service documents and are never logged. Requests
that fail for a reason that may pass are repeated; everything else is reported at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from allinone.common.atomic_io import atomic_path
from allinone.common.errors import (
    LASTING,
    DataError,
    InputError,
    LostDataError,
    StorageError,
)
from allinone.common.redaction import redact
from allinone.common.write_guard import is_milestone

log = logging.getLogger(__name__)
T = TypeVar("T")

CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN if they are temporary), or"
        " AWS_PROFILE"
    ),
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
    "https": "no credentials: the server must allow reading without any",
    "http": "no credentials: the server must allow reading without any",
    "file": "no credentials: the permissions of the file count",
    "memory": "no credentials",
}
"""Scheme of an address → the environment variables that its library reads."""
INSTALL = {"s3": "s3", "gs": "gs", "https": "https", "http": "https"}
"""Scheme → extra of this package; fsspec itself comes with torch, the hub's with transformers."""
TIMEOUT_S = 60.0
"""Seconds after which a range request has failed: 1 MiB arrives within them at 20 kB/s."""
LONG_TIMEOUT_S = 3600.0
"""Seconds for listing, and for copying a complete file."""
ATTEMPTS = 7
"""Requests until one counts as failed for good: pauses of 0.2, 0.4, 0.8, ... s, 12.6 s in all."""
FIRST_PAUSE_S = 0.2
_REPEATED_STATUS = frozenset({408, 425, 429, *range(500, 600)})
"""HTTP: timeouts, throttling and faults of the server."""
_DENIED_STATUS = frozenset({401, 403})
_DENIED_TYPE = re.compile(r"Credential|TokenRetrieval|SSOToken|RefreshError|GatedRepo")
"""In names of errors of botocore, google-auth and huggingface_hub that were raised before any
request was sent."""
_DENIED_CODE = re.compile(
    r"\((ExpiredToken|TokenRefreshRequired|InvalidAccessKeyId|InvalidToken|SignatureDoesNotMatch"
    r"|400)\)"
)
"""Codes of S3 that come with status 400, as botocore's messages show them. 400 itself: the answer
to HEAD has no body that could hold the code."""
_NETWORK = frozenset({"aiohttp", "aiobotocore", "botocore", "httpx", "httpcore", "urllib3"})
"""Packages whose errors without an HTTP status are failed connections."""
_QUERY = re.compile(r"\?[^\s'\"]+")
"""The query of an address: signed ones hold a signature."""
_TAGS = (
    *("ETag", "etag", "md5Hash", "generation", "blob_id", "Content-MD5"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "created"),
)
"""Where file systems say which version of an object they have, the surest first."""
_repeated = 0


def remote_url(path: Path | str) -> str | None:
    """The address that a path was made from; None for a local path.

    `Path("s3://bucket/name")` is s3:/bucket/name: paths join two slashes.
    """
    scheme, colon, rest = str(path).partition(":")
    if not colon or not rest.startswith("/") or scheme not in CREDENTIALS:
        return None
    rest = rest.lstrip("/")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def require_local(path: Path, option: str) -> None:
    """InputError for an address where only a local path can be used; `option` is its name."""
    if (url := remote_url(path)) is not None:
        raise InputError(f"{option} {url} is in object storage; copy it to this machine first")


def stand_in(path: Path, size: int) -> None:
    """Replace a file by one of some size without content; file systems store no zeros."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.truncate(size)


def cache_folder() -> Path:
    """Where copies of indexes and of parts of objects are kept: ALLINONE_CACHE, else the user's."""
    given = os.environ.get("ALLINONE_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(user) / "allinone"


@dataclass(frozen=True)
class ObjectVersion:
    """What identifies the content of an object."""

    size: int
    """Bytes."""
    tag: str
    """ETag, checksum or time of the last change; empty where the server gives none."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> ObjectVersion:
        """From what a file system of fsspec says about an object."""
        tag = next((info[name] for name in _TAGS if info.get(name)), "")
        if isinstance(tag, datetime):  # in some listings as a number
            tag = tag.timestamp()
        return cls(int(info.get("size") or 0), str(tag).strip('"'))


class _ShortReadError(OSError):
    """A connection ended before the range did."""


class ObjectStore:
    """The objects below one address.

    Safe for several threads. A pickled copy, and a forked process, open connections of their own:
    the event loop of fsspec's file systems does not survive a fork.

    Args:
        url: The address, for example s3://bucket/prepared/webvid.

    Raises:
        InputError: The library for this scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = url.partition(":")[0]
        self._opened: tuple[int, Any] = (0, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": (0, None)}

    @property
    def _system(self) -> Any:
        """The file system of fsspec of this process."""
        pid, system = self._opened
        if pid != os.getpid():
            system = _file_system(self.scheme)
            self._opened = os.getpid(), system
        return system

    def address(self, name: str) -> str:
        """The complete address of an object."""
        return f"{self.url}/{name}" if name else self.url

    def list(self, folder: str = "") -> dict[str, ObjectVersion]:
        """All objects below a folder, by name relative to this store; empty if there is none.

        Web servers have no listing: the result is empty.
        """
        if self.scheme in ("http", "https"):
            return {}
        address = self.address(folder)
        try:
            found = self._ask(
                folder, lambda system: system.find(address, detail=True), LONG_TIMEOUT_S
            )
        except LostDataError:
            return {}
        base = self._system._strip_protocol(self.url).rstrip("/") + "/"
        return {
            name.removeprefix(base): ObjectVersion.of(info)
            for name, info in found.items()
            if info["type"] == "file"
        }

    def version(self, name: str) -> ObjectVersion:
        """Size and version of an object now; raises LostDataError if it does not exist."""
        address = self.address(name)

        def ask(system: Any) -> Any:
            system.invalidate_cache(address)
            return system.info(address)

        return ObjectVersion.of(self._ask(name, ask))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a range of an object.

        Args:
            name: The object.
            start: First byte.
            end: The byte after the last one, within the object; None: up to its end.

        Returns:
            Exactly the range.

        Raises:
            LostDataError: The object does not exist.
            DataError: It may not be read.
            StorageError: The storage failed repeatedly.
        """

        def ask(system: Any) -> bytes:
            content = system.cat_file(self.address(name), start=start, end=end)
            if end is not None and len(content) != end - start:
                raise _ShortReadError(
                    errno.EIO, f"{len(content):,} of {end - start:,} bytes arrived"
                )
            return content

        return self._ask(name, ask)

    def download(self, name: str, target: Path) -> None:
        """Copy an object to a local file, which exists completely or not at all."""
        size = self.version(name).size

        def ask(system: Any) -> None:
            with atomic_path(target) as temporary:
                system.get_file(self.address(name), str(temporary))
                if temporary.stat().st_size != size:
                    raise _ShortReadError(errno.EIO, f"not all of {size:,} bytes arrived")

        self._ask(name, ask, LONG_TIMEOUT_S)

    def upload(self, source: Path, name: str) -> ObjectVersion:
        """Copy a local file to an object. Readers see it completely or not at all."""
        # S3 and Google publish an object when its upload (in parts, if it is large) is complete
        size = source.stat().st_size

        def ask(system: Any) -> ObjectVersion:
            address = self.address(name)
            if self.scheme == "file":
                system.makedirs(system._parent(address), exist_ok=True)
            system.put_file(str(source), address)
            system.invalidate_cache(address)
            stored = ObjectVersion.of(system.info(address))
            if stored.size != size:
                raise _ShortReadError(errno.EIO, f"{stored.size:,} of {size:,} bytes were stored")
            return stored

        return self._ask(name, ask, LONG_TIMEOUT_S)

    def delete(self, name: str) -> None:
        """Delete an object, if it exists."""
        try:
            self._ask(name, lambda system: system.rm_file(self.address(name)))
        except LostDataError:
            return

    def _ask(self, name: str, ask: Callable[[Any], T], timeout_s: float = TIMEOUT_S) -> T:
        """Send a request, and repeat it while the failure may pass.

        Args:
            name: The object, for messages.
            ask: Sends the request to a file system of fsspec.
            timeout_s: Seconds after which it has failed.
        """
        global _repeated
        address = self.address(name)
        system = self._system
        for attempt in range(ATTEMPTS):
            try:
                return _within(timeout_s, functools.partial(ask, system))
            except (InputError, DataError):
                raise
            # each library has errors of its own, with no common base
            except Exception as error:
                reason = _reason(error)
                if _is_missing(error):
                    raise LostDataError(f"{address} does not exist ({reason})") from error
                if _is_denied(error):
                    raise DataError(
                        f"{address} may not be used: {reason}. Set {CREDENTIALS[self.scheme]}, or"
                        " renew them if they have expired; then the same command continues"
                    ) from None
                if not _may_pass(error) or attempt == ATTEMPTS - 1:
                    raise StorageError(
                        f"{address} cannot be reached after {attempt + 1} requests: {reason}. Once"
                        " the storage works again, the same command continues"
                    ) from None
            _repeated += 1
            if is_milestone(_repeated):
                log.warning("%s is requested again: %s (failed %d)", address, reason, _repeated)
            # jitter: all readers of all nodes see the same fault at the same time
            time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError


def _file_system(scheme: str) -> Any:
    """A file system of fsspec, which takes its credentials from the environment."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        # requests are repeated here; the libraries' own repetitions would multiply with ours
        options["config_kwargs"] = {
            "connect_timeout": 10,
            "read_timeout": TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        }
    try:
        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = f"allinone-pretrain[{INSTALL[scheme]}]" if scheme in INSTALL else "fsspec"
        raise InputError(f"{scheme}:// needs another package: pip install '{extra}'") from error
    if scheme == "s3":
        system.retries = 1
    return system


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Run a call in a thread; TimeoutError if it takes longer, and the thread is left behind.

    A server that accepts a request and never answers would otherwise stop a reader for good.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by the waiting thread
            future.set_exception(error)

    threading.Thread(target=run, name="object storage", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from: fsspec's libraries translate each other's errors."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of any of the libraries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for owner, name in ((error, "status"), (error, "code"), (response, "status_code")):
        value = getattr(owner, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or _status(error) == 404


def _is_denied(error: BaseException) -> bool:
    return any(
        isinstance(each, PermissionError)
        or _status(each) in _DENIED_STATUS
        or bool(_DENIED_TYPE.search(type(each).__name__) or _DENIED_CODE.search(str(each)))
        for each in _chain(error)
    )


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    for each in _chain(error):
        status = _status(each)
        if status is not None:
            return status in _REPEATED_STATUS
        # aiohttp says 400 in the cause of a connection that was cut: the first one decides
        if type(each).__module__.partition(".")[0] in _NETWORK:
            return True
    if isinstance(error, OSError):
        return isinstance(error, TimeoutError | ConnectionError) or error.errno not in LASTING
    return isinstance(error, EOFError)


def _reason(error: BaseException) -> str:
    """An error in one line, without credentials."""
    lines = _QUERY.sub("?***", redact(str(error))).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
