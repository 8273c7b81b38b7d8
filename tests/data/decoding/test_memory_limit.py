"""Too little memory is no fault of a clip."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from allinone.common.command_line import run_command
from allinone.common.limits import explain
from allinone.data.decoding import frames
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.prepare import probe as probing
from allinone.data.prepare.probe import Limits, probe
from tests.data.media import write_video

ERRORS = [
    lambda: MemoryError("Unable to allocate 7.8 MiB"),
    lambda: av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_video(tmp_path / "a.mp4", frames=12).read_bytes()


@pytest.mark.parametrize("make", ERRORS)
def test_no_memory_condemns_no_clip(
    content: bytes, monkeypatch: pytest.MonkeyPatch, make: Callable[[], MemoryError]
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise make()

    with monkeypatch.context() as patch:
        patch.setattr(frames, "open_media", fail)
        with pytest.raises(MemoryError):
            decode_frames(content, [3], Timeline(rate=12.0))
    with monkeypatch.context() as patch:
        patch.setattr(probing, "open_media", fail)
        with pytest.raises(MemoryError):
            probe(content, "mp4", Limits())
    assert decode_frames(content, [3], Timeline(rate=12.0)).shape[0] == 1
    assert "--workers" in explain(make())


@pytest.mark.parametrize("make", ERRORS)
def test_no_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], make: Callable[[], MemoryError]
) -> None:
    def command() -> int:
        raise make()

    assert run_command(command) == 2
    printed = capsys.readouterr().err
    assert "no memory is left" in printed
    assert "Traceback" not in printed
