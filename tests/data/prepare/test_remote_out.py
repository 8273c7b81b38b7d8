"""Preparing into object storage: equal objects, interruptions, several machines."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allinone.common import object_storage
from allinone.common.errors import DataError
from allinone.data.index import FILES
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data.helpers import contents, prepare_small_demo
from tests.data.loading.streams import assert_same, stream, take
from tests.data.object_faults import BUCKET, FaultyStorage, failing, faulty_storage

OUT = Path(f"{BUCKET}/out")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def source(local: Path) -> Path:
    return local.parent / "source"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStorage]]:
    monkeypatch.setenv("ALLINONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 1e-4)
    with faulty_storage() as found:
        yield found


def options(source: Path, **given: Any) -> PrepareOptions:
    return PrepareOptions(source, OUT, shard_clips=15, workers=2, **given)


def objects() -> dict[str, bytes]:
    return {
        name.removeprefix("/bucket/out/"): file.getvalue()
        for name, file in FaultyStorage.store.items()
    }


def assert_equal_to(local: Path) -> None:
    found = objects()
    assert {name: found.get(name) for name in contents(local)} == contents(local)
    facts = json.loads((local / "dataset.json").read_text())
    assert json.loads(found["dataset.json"])["hashes"] == facts["hashes"]


def test_objects_equal_the_files_of_a_local_folder(
    local: Path, source: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    summary = prepare(options(source), progress=False)
    assert summary.clips == {"train": 40}
    assert_equal_to(local)
    # the room of the tars is free again
    tars = [*(tmp_path / "cache" / "prepare").rglob("*.tar")]
    assert len(tars) == 3
    assert sum(tar.stat().st_blocks for tar in tars) == 0
    for old, new in zip(take(stream(local), 3), take(stream(OUT), 3), strict=True):
        assert_same(old, new)
    assert prepare(options(source), progress=False).done_before


def test_dataset_json_is_written_last(
    source: Path, storage: type[FaultyStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    put = FaultyStorage.put_file

    def noted(self: FaultyStorage, source: str, target: str, **kwargs: Any) -> None:
        order.append(target.removeprefix(f"{BUCKET}/out/"))
        put(self, source, target, **kwargs)

    monkeypatch.setattr(FaultyStorage, "put_file", noted)
    prepare(options(source), progress=False)
    assert order[0] == "prepare.json"
    assert order[-1] == "dataset.json"
    assert set(order[-7:]) == {*FILES, "bad_clips.jsonl", "prepare.json", "dataset.json"}


def stop_after(uploads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage goes away after some uploads."""
    put = FaultyStorage.put_file

    def counted(self: FaultyStorage, source: str, target: str, **kwargs: Any) -> None:
        nonlocal uploads
        uploads -= 1
        if uploads < 0:
            raise PermissionError("the credentials have expired")
        put(self, source, target, **kwargs)

    monkeypatch.setattr(FaultyStorage, "put_file", counted)


@pytest.mark.parametrize(
    ("uploads", "machine"), [(1, "same"), (4, "same"), (9, "another"), (16, "same")]
)
def test_an_interrupted_preparation_continues(
    local: Path,
    source: Path,
    storage: type[FaultyStorage],
    tmp_path: Path,
    uploads: int,
    machine: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(uploads, patch)
        with pytest.raises(DataError, match="may not be used"):
            prepare(options(source), progress=False)
    assert "dataset.json" not in objects()
    made = {name for name in objects() if name.endswith(".parquet")}
    if machine == "another":
        shutil.rmtree(tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        repeated = []
        put = FaultyStorage.put_file

        def noted(self: FaultyStorage, source: str, target: str, **kwargs: Any) -> None:
            repeated.append(target)
            put(self, source, target, **kwargs)

        patch.setattr(FaultyStorage, "put_file", noted)
        prepare(options(source), progress=False)
    complete = {name for name in made if re.fullmatch(r"parts/train-\d+\.parquet", name)}
    assert not complete & {name.removeprefix(f"{BUCKET}/out/") for name in repeated}
    assert_equal_to(local)


def test_machines_share_the_work(
    local: Path, source: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    for turn in (1, 2):
        prepare(options(source, part=(turn, 2)), progress=False)
        shutil.rmtree(tmp_path / "cache")  # the next one runs on another machine
    assert "dataset.json" not in objects()
    prepare(options(source, merge=True), progress=False)
    assert_equal_to(local)


def test_a_lost_object_is_made_again(
    local: Path, source: Path, storage: type[FaultyStorage]
) -> None:
    prepare(options(source), progress=False)
    storage().rm_file(f"{BUCKET}/out/shards/train-00001.tar")
    assert not prepare(options(source), progress=False).done_before
    assert_equal_to(local)


def test_other_objects_are_not_mixed_with(source: Path, storage: type[FaultyStorage]) -> None:
    storage().pipe_file(f"{BUCKET}/out/thesis.pdf", b"%PDF")
    with pytest.raises(DataError, match="memory://bucket/out is not empty"):
        prepare(options(source), progress=False)
    assert set(objects()) == {"thesis.pdf"}


def test_other_options_are_refused(source: Path, storage: type[FaultyStorage]) -> None:
    prepare(options(source), progress=False)
    with pytest.raises(DataError, match="prepared with other options"):
        prepare(options(source, min_frames=5), progress=False)


def test_names_of_objects_do_not_leave_the_local_folder(
    source: Path, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    prepare(options(source), progress=False)
    storage().store["/bucket/out/parts/../../../x.parquet"] = storage().store[
        "/bucket/out/parts/train-00000.parquet"
    ]
    shutil.rmtree(tmp_path / "cache")
    prepare(options(source, merge=True), progress=False)
    assert not [*tmp_path.rglob("x.parquet")]


def test_a_failing_upload_is_repeated(
    local: Path, source: Path, storage: type[FaultyStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = FaultyStorage.put_file, iter([failing(ConnectionResetError())] * 3)

    def failing_put(self: FaultyStorage, source: str, target: str, **kwargs: Any) -> None:
        put(self, source, target, **kwargs)
        for fail in failures:
            fail(b"")

    monkeypatch.setattr(FaultyStorage, "put_file", failing_put)
    prepare(options(source), progress=False)
    assert_equal_to(local)
