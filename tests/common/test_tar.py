"""A damaged or cut tar is never taken for a shorter one."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from allinone.common.tar import LARGEST_HEADER, list_members

LONG = "a" * 150 + ".txt"


def archive(kind: int = tarfile.USTAR_FORMAT, names: tuple[str, ...] = ("0.mp4", "0.txt")) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(range(100)) * 7))
    return target.getvalue()


def listed(content: bytes) -> tuple[list[tuple[str, int, int]], str]:
    members, problem = list_members(io.BytesIO(content))
    return [(member.name, member.offset_data, member.size) for member in members], problem


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_complete_archive_has_no_problem(kind: int) -> None:
    names = ("0.mp4", "0.txt") if kind == tarfile.USTAR_FORMAT else ("0.mp4", LONG)
    content = archive(kind, names)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert listed(content) == (expected, "")
    assert listed(archive(kind, ())) == ([], "")


def test_archives_of_gnu_tar_have_no_problem(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name * 300)
    command = ["tar", "--format=gnu", "-C", str(tmp_path), "-cf", str(tmp_path / "x.tar")]
    subprocess.run([*command, "a.txt", "b.txt"], check=True)
    found, problem = listed((tmp_path / "x.tar").read_bytes())
    assert [name for name, _, _ in found] == ["a.txt", "b.txt"]
    assert problem == ""


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    content = archive()
    good, _ = listed(content)
    headers = [offset - 512 for _, offset, _ in good]
    for header in headers:
        for byte in range(header, header + 512):
            for bit in (0, 5, 7):
                damaged = bytearray(content)
                damaged[byte] ^= 1 << bit
                found, problem = listed(bytes(damaged))
                assert problem or found == good, (byte, bit)


def test_an_archive_cut_anywhere_is_noticed() -> None:
    content = archive()
    end = content.rstrip(b"\0")
    last = -(-len(end) // 512) * 512  # a content may end in zeros: not in this archive
    for size in (*range(0, last + 1, 512), 100, 700, last + 511):
        assert listed(content[:size])[1], size
    assert listed(content[: last + 512])[1] == ""


def test_joined_archives_and_zeroed_headers_are_noticed() -> None:
    content = archive()
    assert "data follows" in listed(content + content)[1]
    second = listed(content)[0][1][1] - 512
    erased = content[:second] + bytes(512) + content[second + 512 :]
    assert "data follows" in listed(erased)[1]


def _header(kind: bytes, size: bytes, name: bytes = b"x") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_of_gigabytes_is_not_read(kind: bytes) -> None:
    class Endless(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            Endless.largest = max(
                Endless.largest, size if size is not None and size >= 0 else 1 << 62
            )
            return super().read(size)

    file = Endless(_header(kind, b"30000000000\0") + bytes(10_000))  # 3 GiB
    tracemalloc.start()
    _, problem = list_members(file)
    assert problem
    assert Endless.largest <= LARGEST_HEADER
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_hostile_sizes_end_with_a_problem() -> None:
    negative = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    huge = b"\x80" + b"\x7f" * 11
    chain = _header(b"x", b"00000000020\0") + b"16 path=aaaaaaa\n".ljust(512, b"\0")
    good = archive()
    for hostile in (
        _header(b"0", negative) + good,
        _header(b"x", negative) + good,
        _header(b"0", huge) + good,
        _header(b"S", b"00000001000\0") + good,
        chain * 3000 + good,
        b"<html>not found</html>" * 100,
        b"\x1f\x8b" + good,
    ):
        assert list_members(io.BytesIO(hostile))[1]
