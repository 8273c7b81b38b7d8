"""Training from object storage: equal batches, a cache of bounded size, changed objects."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allinone.common import object_storage
from allinone.common.errors import DataError, LostDataError
from allinone.common.object_storage import ObjectStore
from allinone.data import EvalSet
from allinone.data.config import DataConfig, DatasetSpec
from allinone.data.decoding.frames import DecodeError
from allinone.data.fingerprint import clips_fingerprint
from allinone.data.index import Index
from allinone.data.loading import remote_files
from allinone.data.loading.block_cache import USED, BlockCache, _locked
from allinone.data.loading.open_files import OpenFiles
from allinone.data.loading.remote_files import RemoteFile, RemoteFiles, open_shards
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data.helpers import howto, prepare_small_demo
from tests.data.loading.streams import CLIP, CPU, assert_same, stream, take
from tests.data.object_faults import BUCKET, FaultyStorage, copy_of, faulty_storage, upload


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("howto")
    prepare(PrepareOptions(howto(folder / "source"), folder / "out", workers=2), progress=False)
    return folder / "out"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStorage]]:
    monkeypatch.setenv("ALLINONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 1e-4)
    with faulty_storage() as found:
        yield found


@pytest.mark.parametrize("cache_gb", [32.0, 0.0])
def test_batches_equal_those_of_local_files(
    prepared: Path, storage: type[FaultyStorage], cache_gb: float
) -> None:
    remote = upload(prepared, f"{BUCKET}/out")
    local = take(stream(prepared), 12)
    for old, new in zip(local, take(stream(remote, cache_gb=cache_gb), 12), strict=True):
        assert_same(old, new)


def test_windows_equal_those_of_local_files(
    long_videos: Path, storage: type[FaultyStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    # smaller than the videos, so that parts of them are read
    monkeypatch.setattr(remote_files, "BLOCK", 1000)
    remote = upload(long_videos, f"{BUCKET}/out")
    for old, new in zip(take(stream(long_videos), 3), take(stream(remote), 3), strict=True):
        assert_same(old, new)


def test_reader_processes_read_the_storage(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    remote = Path(copy_of(prepared, tmp_path / "bucket" / "out"))
    local = take(stream(prepared), 6)
    for old, new in zip(local, take(stream(remote, workers=2), 6), strict=True):
        assert_same(old, new)
    assert any((tmp_path / "cache" / "allinone-blocks").rglob("*"))


def test_evaluation_reads_every_clip(prepared: Path, storage: type[FaultyStorage]) -> None:
    config = DataConfig(workers=0)
    digests = []
    for folder in (prepared, upload(prepared, f"{BUCKET}/out")):
        split = EvalSet(DatasetSpec(folder), CLIP, config)
        batches = [*split.batches(rank=0, world=1, batch_size=16, device=CPU)]
        digests.append([(batch.digest, batch.clips) for batch in batches])
    assert sum(len(clips) for _, clips in digests[0]) == 40
    assert digests[0] == digests[1]


def test_content_is_what_a_resumed_run_compares(
    prepared: Path, storage: type[FaultyStorage]
) -> None:
    remote = upload(prepared, f"{BUCKET}/out")
    assert clips_fingerprint(remote, "train") == clips_fingerprint(prepared, "train")


@pytest.mark.parametrize(
    ("text", "path", "split", "weight"),
    [
        ("s3://bucket/webvid", "s3://bucket/webvid", "train", 1.0),
        ("s3://bucket/webvid:val", "s3://bucket/webvid", "val", 1.0),
        ("gs://b/a/webvid:train=2.5", "gs://b/a/webvid", "train", 2.5),
        ("https://host:8443/webvid=2", "https://host:8443/webvid", "train", 2.0),
        (
            "hf://datasets/me/clips@main/webvid:test",
            "hf://datasets/me/clips@main/webvid",
            "test",
            1,
        ),
    ],
)
def test_addresses_with_split_and_weight(text: str, path: str, split: str, weight: float) -> None:
    spec = DatasetSpec.parse(text)
    assert object_storage.remote_url(spec.path) == path
    assert (spec.split, spec.weight) == (split, weight)
    assert DatasetSpec.parse(f"{spec.path}:{split}={weight}") == spec  # as runs record it
    assert spec.name == f"{path.rpartition('/')[2]}/{split}"


def test_a_local_folder_needs_no_cache(prepared: Path) -> None:
    assert isinstance(open_shards(prepared, DataConfig()), OpenFiles)


def opened(remote: Path, tmp_path: Path, limit: int = 1 << 30) -> tuple[RemoteFiles, Index]:
    cache = BlockCache(tmp_path / "blocks", limit)
    return RemoteFiles(ObjectStore(str(object_storage.remote_url(remote))), cache), Index(
        remote, "train"
    )


def read(files: RemoteFiles, row: dict[str, object]) -> bytes:
    shard: RemoteFile = files[str(row["shard"])]
    return shard.member(row["offset"], row["size"], row["hash"])  # type: ignore[arg-type]


def test_a_second_reading_needs_no_request(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
    first = [read(files, index[k]) for k in range(len(index))]
    before = len(storage.requests)
    again = pickle.loads(pickle.dumps(files))  # another process of the node
    assert [read(again, index[k]) for k in range(len(index))] == first
    assert len(storage.requests) == before
    assert again.cache.misses == 0


def test_missing_blocks_in_a_row_are_one_request(
    storage: type[FaultyStorage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "BLOCK", 100)
    content = os.urandom(1050)
    FaultyStorage().pipe_file(f"{BUCKET}/out/shards/a.tar", content)
    files = RemoteFiles(ObjectStore(f"{BUCKET}/out"), BlockCache(tmp_path / "blocks", 10_000))
    assert files["shards/a.tar"].read(430, 20) == content[430:450]
    assert files["shards/a.tar"].read(250, 900) == content[250:]
    ranges = [(start, end) for _, start, end in storage.requests]
    assert ranges == [(400, 500), (200, 400), (500, 1050)]


def test_a_damaged_block_is_read_again(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
    good = read(files, index[0])
    for path in (tmp_path / "blocks").glob("??/*"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])  # what a power cut may leave
    assert read(files, index[0]) == good


def test_foreign_bytes_in_the_cache_are_replaced(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
    row = index[0]
    good, shard = read(files, row), files[row["shard"]]
    files.cache.put(f"{shard._key}0", bytes(remote_files.BLOCK))
    assert read(files, row) == good


def test_a_changed_object_is_refused(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
    name = index[0]["shard"]
    size = len(storage().cat_file(f"{BUCKET}/out/{name}"))
    storage().pipe_file(f"{BUCKET}/out/{name}", bytes(size))  # of equal size
    with pytest.raises(DataError, match=f"{name} has changed since it was opened"):
        read(files, index[0])


def test_windows_notice_a_changed_object(
    long_videos: Path,
    storage: type[FaultyStorage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, index = opened(upload(long_videos, f"{BUCKET}/out"), tmp_path)
    row = index[0]
    shard = files[row["shard"]]
    shard.range(row["offset"], row["size"]).read(100)
    storage().pipe_file(f"{BUCKET}/out/{row['shard']}", b"new")
    monkeypatch.setattr(remote_files, "CHECK_S", 0.0)
    with pytest.raises(DataError, match="has changed since it was opened"):
        shard.range(row["offset"], row["size"])


def test_a_stored_file_of_other_bytes_is_a_bad_clip(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    remote = upload(prepared, f"{BUCKET}/out")
    name = Index(remote, "train")[0]["shard"]
    size = len(storage().cat_file(f"{BUCKET}/out/{name}"))
    storage().pipe_file(f"{BUCKET}/out/{name}", bytes(size))
    files, index = opened(remote, tmp_path)
    with pytest.raises(DecodeError, match="are not those that the index describes"):
        read(files, index[0])


def test_a_lost_shard_is_named(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
    storage().rm_file(f"{BUCKET}/out/{index[0]['shard']}")
    with pytest.raises(LostDataError, match=index[0]["shard"]):
        read(files, index[0])


def test_an_unfinished_folder_is_refused(prepared: Path, storage: type[FaultyStorage]) -> None:
    remote = upload(prepared, f"{BUCKET}/out")
    storage().rm_file(f"{BUCKET}/out/dataset.json")
    with pytest.raises(DataError, match="memory://bucket/out is not a finished prepared data set"):
        Index(remote, "train")


def test_an_index_of_another_version_is_refused(
    prepared: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    remote = upload(prepared, f"{BUCKET}/out")
    storage().pipe_file(f"{BUCKET}/out/index.arrow", b"of a preparation that still runs")
    with pytest.raises(DataError, match=r"index\.arrow is not the file that dataset\.json"):
        Index(remote, "train")
    assert not [*(tmp_path / "cache").rglob("index.arrow")]


FILL = """
import sys
from pathlib import Path
from allinone.data.loading.block_cache import USED, BlockCache, _locked
cache = BlockCache(Path(sys.argv[1]), 100_000)
for number in range(200):
    cache.put(sys.argv[2] + str(number), bytes(1000))
"""


def _stored(folder: Path) -> int:
    total = 0
    folder.mkdir(exist_ok=True)
    with _locked(folder / USED):  # nothing is removed between two of the sizes
        for path in folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # renamed from its temporary name
                total += path.stat().st_size
    return total


def test_processes_share_the_limit_of_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    writers = [subprocess.Popen([sys.executable, "-c", FILL, str(folder), name]) for name in "abc"]
    while any(process.poll() is None for process in writers):
        assert _stored(folder) <= 100_000
    assert [process.returncode for process in writers] == [0, 0, 0]
    assert 50_000 < _stored(folder) <= 100_000
    for path in folder.glob("??/*"):  # no block is half written
        assert len(path.read_bytes()) == 1016


def test_the_least_recently_used_block_goes_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10_000)
    for number in range(9):
        cache.put(str(number), bytes(1000))
        os.utime(cache._path(str(number)), (number, number))
    assert cache.get("0") is not None  # used now
    cache.put("9", bytes(1000))
    assert cache.get("0") is not None
    assert cache.get("1") is None


def test_a_cache_without_a_disk_costs_requests_only(
    prepared: Path,
    storage: type[FaultyStorage],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "blocks").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        files, index = opened(upload(prepared, f"{BUCKET}/out"), tmp_path)
        assert len(read(files, index[0])) == index[0]["size"]
    assert "--cache-dir" in caplog.text
