"""A lying or damaged index is refused when it is opened."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from allinone.common.errors import AllInOneError, DataError, LostDataError
from allinone.common.paths import ROOT
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import (
    CLIPS_PER_BATCH,
    LOADER_SCHEMA,
    VIDEO_SCHEMA,
    VIDEOS_PER_BATCH,
    Index,
    write_mapped,
)
from allinone.data.loading.loader import ClipSource
from allinone.data.prepare.verify import check
from allinone.tools import check_data
from tests.data.helpers import howto, prepare_small_demo, prepare_source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def out(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "out")
    return tmp_path / "out"


def _rewrite(out: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    schema, rows = (
        (VIDEO_SCHEMA, VIDEOS_PER_BATCH) if name == "videos" else (LOADER_SCHEMA, CLIPS_PER_BATCH)
    )
    with pa.memory_map(str(out / f"{name}.arrow")) as source:
        content = pa.ipc.open_file(source).read_all().to_pylist()
    change(content)
    write_mapped(
        out / f"{name}.arrow", schema, [pa.Table.from_pylist(content, schema=schema)], rows
    )


LIES = [
    ("videos", "shard", "../../etc/passwd"),
    ("videos", "shard", "/dev/zero"),
    ("videos", "shard", "shards/../../x.tar"),
    ("videos", "shard", "shards/train-00000.tar\0x"),
    ("videos", "shard", ""),
    ("videos", "shard", None),
    ("videos", "offset", -512),
    ("videos", "offset", None),
    ("videos", "size", 0),
    ("videos", "size", 1 << 40),
    ("videos", "frames", 0),
    ("videos", "frames", 2_000_000_000),
    ("videos", "width", 0),
    ("videos", "height", 1 << 30),
    ("videos", "rotation", 45),
    ("videos", "frame_rate", float("nan")),
    ("videos", "duration_s", float("inf")),
    ("videos", "media", "program"),
    ("videos", "codec", None),
    ("videos", "keyframes", []),
    ("videos", "keyframes", [0, 100_000]),
    ("videos", "keyframes", [-1]),
    ("videos", "keyframes", [None]),
    ("videos", "frame_times", [0.0]),
    ("index", "key", None),
    ("index", "captions", []),
    ("index", "captions", None),
    ("index", "captions", [None]),
    ("index", "video", 40),
    ("index", "video", -1),
    ("index", "video", None),
    ("index", "first_frame", 3),
    ("index", "last_frame", 3),
]


@pytest.mark.parametrize(("table", "column", "value"), LIES)
def test_a_lie_in_any_column_is_refused(out: Path, table: str, column: str, value: object) -> None:
    _rewrite(out, table, lambda rows: rows[7].__setitem__(column, value))
    with pytest.raises(DataError, match=r"--merge"):
        Index(out, "train")
    assert check_data.main([str(out), "--decodes", "0", "--quick"]) == 1


def test_windows_and_times_of_long_videos_are_checked(tmp_path: Path) -> None:
    prepare_source(howto(tmp_path / "source"), tmp_path / "out")
    (split,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["clips"]
    assert len(Index(tmp_path / "out", split)) > 0
    _rewrite(tmp_path / "out", "index", lambda rows: rows[0].update(last_frame=100_000))
    with pytest.raises(DataError, match="window beyond its file"):
        Index(tmp_path / "out", split)


@pytest.mark.parametrize("name", ["index.arrow", "videos.arrow"])
def test_an_index_that_is_no_regular_file_is_refused(out: Path, name: str) -> None:
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(DataError, match="regular file"):
        Index(out, "train")
    (out / name).unlink()
    (out / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="regular file"):
        Index(out, "train")


def test_a_shard_that_is_a_fifo_ends_reading_at_once(out: Path) -> None:
    source = ClipSource(DatasetSpec(out), ClipConfig(3, 32, 12), DataConfig(workers=0))
    shard = out / source.index[0]["shard"]
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(LostDataError, match="regular file"):
        source.eval_sample(0)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "\udcff",
        '{"layout": 2}',
        '{"layout": 2, "clips": {"train": "40"}, "bad": {}, "files": [1, 1], "captions": [1, 1]}',
        '{"layout": 2, "clips": {"train": -1}, "bad": {}, "files": [1, 1], "captions": [1, 1]}',
        '{"layout": 2, "clips": [40], "bad": {}, "files": [1, 1], "captions": [1, 1]}',
        "[" * 200_000,
        '{"layout": 2, "clips": {"train": ' + "9" * 5000 + "}}",
    ],
    ids=range(9),
)
def test_a_damaged_dataset_json_is_one_error(out: Path, text: str) -> None:
    (out / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        Index(out, "train")
    assert check_data.main([str(out), "--decodes", "0"]) == 2


def test_flipped_bits_end_in_an_error_or_in_valid_rows(out: Path) -> None:
    """In a process of its own, since what is tested is that it does not crash."""
    script = """
import random, sys
from pathlib import Path
from allinone.common.errors import AllInOneError
from allinone.data.index import Index
out, chance, refused = Path(sys.argv[1]), random.Random(4), 0
for name in ("index.arrow", "videos.arrow"):
    path = out / name
    good = path.read_bytes()
    for _ in range(400):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        path.unlink()
        path.write_bytes(damaged)
        try:
            index = Index(out, "train")
            rows = [index[item] for item in range(len(index))]
            assert all(row["shard"].startswith("shards/") and row["captions"] for row in rows)
        except AllInOneError:
            refused += 1
    path.write_bytes(good)
print("refused", refused)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout.split()[1]) > 20


def test_an_index_is_validated_once_per_process(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Index(out, "train")
    from allinone.data import index_validation

    monkeypatch.setattr(index_validation, "_validate_videos", None)
    Index(out, "train")


def _rotate(rows: list[dict[str, Any]]) -> None:
    captions = [row["captions"] for row in rows]
    for row, caption in zip(rows, captions[1:] + captions[:1], strict=True):
        row["captions"] = caption


def test_captions_rotated_in_the_arrow_file_are_found(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _rewrite(out, "index", _rotate)
    assert check_data.main([str(out), "--decodes", "0", "--quick"]) == 1
    shown = capsys.readouterr().out
    assert "index.arrow, which training reads, and index.parquet differ" in shown
    assert "index.arrow does not have the content that was written" in shown


@pytest.mark.parametrize("name", ["index.arrow", "videos.arrow", "index.parquet", "videos.parquet"])
def test_any_flipped_bit_of_the_index_is_found(out: Path, name: str) -> None:
    good, chance = (out / name).read_bytes(), random.Random(name)
    for _ in range(4):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        (out / name).unlink()
        (out / name).write_bytes(damaged)
        try:
            code = check_data.main([str(out), "--decodes", "0", "--quick", "--samples", "1"])
        except AllInOneError:
            code = 1
        assert code == 1


def test_folders_of_earlier_versions_have_no_hashes(out: Path) -> None:
    facts = json.loads((out / "dataset.json").read_text())
    del facts["hashes"]
    (out / "dataset.json").write_text(json.dumps(facts))
    assert len(Index(out, "train")) == 40
    assert check_data.main([str(out), "--decodes", "0", "--quick", "--samples", "1"]) == 0


@pytest.mark.parametrize("hashes", [7, "x", [], None, True, ["index.arrow"], {"index.arrow": 7}])
def test_hashes_of_another_type_are_damage(out: Path, hashes: object) -> None:
    facts = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**facts, "hashes": hashes}))
    problems = check(out, hashes=False, decodes=0, seed=0, workers=1)
    assert problems
    named = ("dataset.json", "content that was written")
    assert all(any(part in problem for part in named) for problem in problems)
