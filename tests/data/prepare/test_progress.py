"""Progress without a terminal: a log message with totals, rates and bad clips."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from allinone.data.prepare import shards
from allinone.data.prepare.shards import Progress


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    handler = _Messages()
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    shards.log.setLevel(logging.INFO)
    shards.log.addHandler(handler)
    yield handler.texts
    shards.log.removeHandler(handler)
    shards.log.setLevel(logging.NOTSET)


def test_progress_is_logged_with_the_share_of_the_part(messages: list[str]) -> None:
    progress = Progress(39, parts=2, enabled=True)
    progress.skip(10)
    progress.add(files=3, bad=1, clips=2)
    assert messages == [], "at most one message in 10 s"
    progress._shown -= 11
    progress.add(files=1, clips=1)
    assert "14/20" in messages[0]
    assert "bad 1" in messages[0]
    progress.close()


def test_progress_may_be_disabled(messages: list[str]) -> None:
    progress = Progress(10, parts=1, enabled=False)
    progress._shown -= 11
    progress.add(files=1)
    progress.close()
    assert messages == []
