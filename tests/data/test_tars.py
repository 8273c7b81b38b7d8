"""Tars of video2dataset and img2dataset that are damaged, cut or hostile."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from allinone.data.prepare.probe import Limits, ProbeError
from allinone.data.prepare.worker import ClipTask, examine
from allinone.data.sources import ReadOptions, read
from tests.data.helpers import DEMO, prepare_source
from tests.data.media import write_video


def _tar(path: Path, samples: int) -> Path:
    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    with tarfile.open(path, "w") as archive:
        for number in range(samples):
            for extension, content in (("mp4", good), ("txt", f"caption {number}".encode())):
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_samples_lost_in_damaged_tars_are_reported(tmp_path: Path) -> None:
    """One complete tar, one with a flipped bit, one cut between members, one that is no tar."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        _tar(source / f"{number}.tar", 3)
    with tarfile.open(source / "1.tar") as archive:
        second, third = (member.offset for member in archive.getmembers()[2::2])
    damaged = bytearray((source / "1.tar").read_bytes())
    damaged[second + 3] ^= 1
    (source / "1.tar").write_bytes(damaged)
    (source / "2.tar").write_bytes((source / "2.tar").read_bytes()[:third])
    (source / "3.tar").write_bytes(b"<html>404</html>" * 100)
    summary, good, bad = prepare_source(source, tmp_path / "out")
    assert len(good) == 3 + 1 + 2
    assert summary.bad == {"damaged_tar": 3}
    assert "header at byte" in bad["train/1.tar"][1]
    assert "cut off" in bad["train/2.tar"][1]
    assert "train/3.tar" in bad
    assert summary.kept_share < 1


def test_one_bad_text_in_a_tar_is_one_bad_row(tmp_path: Path) -> None:
    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    texts = {
        "deep.json": b"[" * 100_000,
        "digits.json": b'{"caption": ' + b"9" * 5000 + b"}",
        "large.txt": b"x" * (2 << 20),
        "good.json": b'{"caption": "a cat"}',
    }
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, text in texts.items():
            for member, content in ((name.split(".")[0] + ".mp4", good), (name, text)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    summary, kept, _ = prepare_source(tmp_path / "0.tar", tmp_path / "out")
    assert [row["captions"] for row in kept.values()] == [["a cat"]]
    assert sum(summary.bad.values()) == 3


def test_a_stored_file_shorter_than_listed_is_truncated(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.ts", frames=48)
    size = video.stat().st_size
    with pytest.raises(ProbeError, match="ends after") as error:
        examine(ClipTask((video,), 0, size + 188, "ts"), Limits())
    assert error.value.reason == "truncated"


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "000.mp4"),
        (tarfile.LNKTYPE, "../../etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_not_followed(
    tmp_path: Path, kind: bytes, target: str
) -> None:
    path = _tar(tmp_path / "0.tar", 1)
    with tarfile.open(path, "a") as archive:
        for name in ("001.mp4", "002.txt"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name, content in (("001.txt", b"a dog"), ("002.mp4", b"video")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    rows = {row.id.rpartition("/")[2]: row for row in read(path, "webdataset", ReadOptions())}
    assert rows["000"].captions == ("caption 0",)
    assert (rows["001"].reason, rows["001"].captions) == ("missing", ())
    assert (rows["002"].reason, rows["002"].captions) == ("no_caption", ())
