"""Requests to object storage: what is repeated, what is reported at once, and in which words."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.common import object_storage
from allinone.common.errors import DataError, InputError, LostDataError, StorageError
from allinone.common.object_storage import ATTEMPTS, ObjectStore, ObjectVersion, remote_url
from tests.data.object_faults import (
    BUCKET,
    ClientError,
    FaultyStorage,
    HttpError,
    cut,
    failing,
    faulty_storage,
    slow,
)

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStorage]]:
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 1e-4)
    with faulty_storage() as found:
        FaultyStorage().pipe_file(f"{BUCKET}/a/x", CONTENT)
        yield found


@pytest.fixture
def store(storage: type[FaultyStorage]) -> ObjectStore:
    return ObjectStore(f"{BUCKET}/a")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("hf://datasets/me/clips", "hf://datasets/me/clips"),
        ("https://host:8080/a", "https://host:8080/a"),
        ("file:///scratch/a", "file:///scratch/a"),
        ("prepared/webvid", None),
        ("/data/s3:/webvid", None),
        ("ftp://host/a", None),
        ("s3:bucket", None),
    ],
)
def test_addresses_survive_a_path(given: str, url: str | None) -> None:
    assert remote_url(given) == url
    assert remote_url(Path(given)) == url


def test_local_paths_do_not_import_fsspec() -> None:
    code = (
        "import sys, allinone.data.remote_index as r; from pathlib import Path;"
        " r.local_index(Path('here')); sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_range_is_exactly_that_range(store: ObjectStore) -> None:
    assert store.read("x", 100, 300) == CONTENT[100:300]
    assert store.read("x") == CONTENT
    assert store.version("x").size == len(CONTENT)
    assert store.list() == {"x": store.version("x")}
    assert store.list("absent") == {}


class ClientPayloadError(Exception):
    """aiohttp's error of a connection that was cut, and its cause, which claims status 400."""

    __module__ = "aiohttp.client_exceptions"

    def __init__(self) -> None:
        super().__init__("Response payload is not completed")
        self.__cause__ = type("ContentLengthError", (Exception,), {"code": 400})()


@pytest.mark.parametrize(
    "fault",
    [
        failing(ClientPayloadError()),
        failing(HttpError(500)),
        failing(HttpError(503)),
        failing(HttpError(429)),
        failing(ClientError(500, "InternalError")),
        failing(ConnectionResetError("cut")),
        failing(TimeoutError("slow")),
        failing(OSError(5, "Input/output error")),
        cut,
        slow,
    ],
)
def test_passing_faults_are_repeated(
    storage: type[FaultyStorage], store: ObjectStore, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is slow:
        monkeypatch.setattr(object_storage, "TIMEOUT_S", 0.2)
        monkeypatch.setattr(ObjectStore._ask, "__defaults__", (0.2,))
    storage.faults = [fault, fault]  # type: ignore[list-item]
    assert store.read("x", 0, 1000) == CONTENT[:1000]
    assert len(storage.requests) == 3


def test_a_lasting_outage_ends_after_some_requests(
    storage: type[FaultyStorage], store: ObjectStore
) -> None:
    storage.faults = [failing(HttpError(503, "Slow Down"))] * 50
    with pytest.raises(StorageError, match=f"bucket/a/x cannot be reached after {ATTEMPTS} "):
        store.read("x", 0, 10)
    assert len(storage.requests) == ATTEMPTS


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HttpError(400), StorageError),
        (OSError(22, "Invalid argument"), StorageError),
        (ValueError("a mistake of a library"), StorageError),
        (FileNotFoundError("x"), LostDataError),
        (HttpError(404), LostDataError),
        (PermissionError("AccessDenied"), DataError),
        (HttpError(401), DataError),
        (HttpError(403), DataError),
        (ClientError(400, "ExpiredToken", "The provided token has expired."), DataError),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), DataError),
    ],
)
def test_lasting_faults_are_reported_at_once(
    storage: type[FaultyStorage], store: ObjectStore, error: Exception, kind: type[Exception]
) -> None:
    storage.faults = [failing(error)]
    with pytest.raises(DataError) as caught:
        store.read("x", 0, 10)
    assert type(caught.value) is kind
    assert "bucket/a/x" in str(caught.value)
    assert len(storage.requests) == 1


def test_expired_credentials_name_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore("s3://bucket/a")
    with faulty_storage() as storage:
        monkeypatch.setattr(object_storage, "_file_system", lambda scheme: storage())
        storage().pipe_file("s3://bucket/a/x", CONTENT)
        storage.faults = [failing(ClientError(400, "ExpiredToken"))]
        with pytest.raises(DataError, match=r"AWS_SESSION_TOKEN.*renew them if they have expired"):
            store.read("x", 0, 10)


def test_credentials_are_in_no_message(
    storage: type[FaultyStorage],
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(object_storage, "_repeated", 0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = "GET https://me:pw@host/x?X-Amz-Signature=a1b2c3 with wJalrXUtnFEMI failed"
    storage.faults = [failing(HttpError(500, text)), failing(HttpError(403, text))]
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as caught:
        store.read("x", 0, 10)
    for secret in ("wJalrXUtnFEMI", "a1b2c3", "me:pw"):
        assert secret not in caplog.text
        assert secret not in str(caught.value)
    assert "requested again" in caplog.text
    assert caught.value.__cause__ is None  # a traceback would show it


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs:// needs .*allinone-pretrain\[gs\]"):
        ObjectStore("gs://bucket/a").read("x")


def test_an_interrupted_download_leaves_nothing(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: object, source: str, target: str, **_: object) -> None:
        Path(target).write_bytes(CONTENT[:100])

    monkeypatch.setattr(FaultyStorage, "get_file", half)
    with pytest.raises(StorageError):
        store.download("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_in_another_process_connects_itself(store: ObjectStore) -> None:
    assert store.read("x", 0, 1) == CONTENT[:1]
    copy = pickle.loads(pickle.dumps(store))
    assert copy._opened == (0, None)
    assert copy.read("x", 0, 1) == CONTENT[:1]


def test_versions_tell_objects_of_equal_size_apart() -> None:
    old = ObjectVersion.of({"size": 3, "ETag": '"a"', "LastModified": "today"})
    assert old == ObjectVersion(3, "a")
    assert old != ObjectVersion.of({"size": 3, "ETag": '"b"', "LastModified": "today"})
