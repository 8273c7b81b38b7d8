"""A prepared folder: its bytes, its bad clips, and how it is continued."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from allinone.common.errors import DataError
from allinone.common.paths import ROOT
from allinone.data.index import Index
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from tests.data.helpers import DEMO, prepare_small_demo


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def own_csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "my.csv"
    path.write_text("path,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows))
    return path


def reasons(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "bad_clips.jsonl").read_text().splitlines()]
    return {row["source"]: row["reason"] for row in rows}


def test_index_gives_the_bytes_and_webdataset_reads_shards(prepared: Path) -> None:
    index = Index(prepared, "train")
    assert len(index) == 40
    by_caption = {}
    for item in range(40):
        row = index[item]
        shard = (prepared / row["shard"]).read_bytes()
        content = shard[row["offset"] : row["offset"] + row["size"]]
        assert content == (DEMO / "videos" / row["source"]).read_bytes()
        by_caption[row["key"]] = (row["captions"][0], content)
    shards = sorted(str(path) for path in (prepared / "shards").glob("*.tar"))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert {
        json.loads(s["json"])["key"]: (s["txt"].decode(), s["mp4"]) for s in samples
    } == by_caption


def test_shards_have_the_form_that_energon_documents(prepared: Path) -> None:
    """The members of a sample follow each other and share a name up to its first dot, which is
    unique in the data set (Megatron-Energon, "Step 1: Creating a WebDataset")."""
    keys = []
    for shard in sorted((prepared / "shards").glob("*.tar")):
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
        assert all(member.isreg() for member in members)
        samples = itertools.groupby(members, key=lambda member: member.name.split(".", 1)[0])
        for key, parts in samples:
            assert [part.name.removeprefix(key) for part in parts] == [".mp4", ".txt", ".json"]
            assert "/" not in key
            keys.append(key)
    assert len(keys) == len(set(keys)) == 40


def test_bad_rows_and_files_are_named_and_good_ones_kept(tmp_path: Path) -> None:
    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    source = tmp_path / "source"
    source.mkdir()
    files = {
        "good.mp4": good,
        "quoted.mp4": good,
        "empty.mp4": b"",
        "page.mp4": b"<!DOCTYPE html><html>403</html>",
        "noise.mp4": bytes(range(256)) * 40,
        "cut.mp4": good[: len(good) // 2],
        "silent.mp4": good,
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    rows = [(name, "a caption") for name in files if name != "silent.mp4"] + [
        ("silent.mp4", " "),
        ("gone.mp4", "x"),
        ("good.mp4", "another caption"),
        ("good.mp4", "a caption"),
    ]
    path = own_csv(source, rows)
    path.write_text(
        path.read_text().replace('quoted.mp4,"a caption"', 'quoted.mp4,"one, two ""three"""')
        + "short\n../../etc/passwd,evil\n"
    )
    prepare(PrepareOptions(path, tmp_path / "out", workers=2), progress=False)
    found = reasons(tmp_path / "out")
    assert found["empty.mp4"] == "empty_file"
    assert found["page.mp4"] == "not_a_video"
    assert found["noise.mp4"] == "undecodable"
    assert found["cut.mp4"] in ("undecodable", "truncated")
    assert found["silent.mp4"] == "no_caption"
    assert found["gone.mp4"] == "missing"
    assert found["good.mp4"] == "duplicate"
    assert found["my.csv:12"] == "bad_row"
    assert found["../../etc/passwd"] == "bad_row"
    index = Index(tmp_path / "out", "train")
    assert sorted(index[item]["captions"] for item in range(len(index))) == [
        ["a caption", "another caption"],
        ['one, two "three"'],
    ]


def test_errors_of_wrong_sources_state_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("file_name,words\na,b\n")
    with pytest.raises(
        DataError, match=r"path/video/file, name/caption/text is missing; found: file_name, words"
    ):
        prepare(PrepareOptions(tmp_path / "bad.csv", tmp_path / "out"), progress=False)
    with pytest.raises(DataError, match="no such source"):
        prepare(PrepareOptions(tmp_path / "nothing", tmp_path / "out2"), progress=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="webdataset"):
        prepare(PrepareOptions(tmp_path / "folder", tmp_path / "out3"), progress=False)
    (tmp_path / "folder" / "notes").write_text("mine")
    with pytest.raises(DataError, match="another --out"):
        prepare(PrepareOptions(DEMO, tmp_path / "folder"), progress=False)


def test_a_second_run_does_nothing_or_refuses_other_options(prepared: Path) -> None:
    source = prepared.parent / "source"
    assert prepare(PrepareOptions(source, prepared, shard_clips=15), progress=False).done_before
    with pytest.raises(DataError, match="shard_clips: 15 → 7"):
        prepare(PrepareOptions(source, prepared, shard_clips=7), progress=False)


def test_prepare_killed_at_any_moment_ends_with_the_same_bytes(
    prepared: Path, tmp_path: Path
) -> None:
    source = prepared.parent / "source"
    command = [
        sys.executable,
        "tools/prepare.py",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--shard-clips",
        "15",
        "--workers",
        "1",
    ]
    for delay in (0.6, 0.9, 1.2):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for path in sorted((prepared / "shards").glob("*.tar")):
        assert (tmp_path / "out" / "shards" / path.name).read_bytes() == path.read_bytes()
    index = (prepared / "index.arrow").read_bytes()
    assert (tmp_path / "out" / "index.arrow").read_bytes() == index
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_a_program_without_main_guard_gets_an_explanation(prepared: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    source, out = str(prepared.parent / "source"), str(tmp_path / "out")
    program.write_text(
        "from pathlib import Path\n"
        "from allinone.data.prepare.pipeline import PrepareOptions, prepare\n"
        f"options = PrepareOptions(Path({source!r}), Path({out!r}), workers=1)\n"
        "prepare(options, progress=False)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(program)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "DataError: a decoding process ended before it could work" in ended.stderr
    assert "if __name__ == '__main__':" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_member_names_of_webdataset_tars_are_keys_only(tmp_path: Path) -> None:

    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for name, content in (
            ("../../000.mp4", good),
            ("../../000.txt", b"from txt"),
            ("001.mp4", good),
            ("001.json", b'{"caption": "from json"}'),
            ("002.json", b'{"caption": "no media", "status": "failed_to_download"}'),
            ("a/1.mp4", good),
            ("a/1.txt", b"one of a"),
            ("./b/1.v2.mp4", good),
            ("b/1.mp4", good),
            ("b/1.txt", b"one of b"),
            ("b/1.txt", b"another one of b"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    summary = prepare(
        PrepareOptions(tmp_path / "00000.tar", tmp_path / "out", workers=1), progress=False
    )
    index = Index(tmp_path / "out", "train")
    assert [index[item]["captions"][0] for item in range(len(index))] == [
        "from txt",
        "from json",
        "one of a",
        "one of b",
    ]
    assert summary.bad == {"missing": 1, "duplicate": 1}


def test_a_summary_knows_its_share_of_bad_clips() -> None:
    assert PrepareSummary({"train": 3}, {"missing": 1}, 0.75, 0, 0.0).bad_share == 0.25
