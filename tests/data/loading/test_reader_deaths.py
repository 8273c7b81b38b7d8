"""A reader process that dies ends the run within seconds, and its clip is named."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from allinone.common.exit_codes import ExitCode
from allinone.data.config import DataConfig
from allinone.data.loading import prefetch as module
from allinone.data.loading.batch_maker import EvalBatchMaker
from allinone.data.loading.prefetch import prefetch
from allinone.data.loading.readers import ReaderContext, ReaderDiedError
from allinone.data.loading.samples import Sample

LIMIT_S = 60


class Rows:
    """Samples of 4 MB without media: most of a reader's time is spent on handing them over."""

    name = "rows"

    def __init__(self, deadly: int = -1, by: int = signal.SIGSEGV) -> None:
        self.deadly, self.by = deadly, by

    def __len__(self) -> int:
        return 10_000

    def key(self, row: int) -> str:
        return f"clip-{row}"

    def train_sample(self, row: int, random: np.random.Generator) -> Sample:
        return self.eval_sample(row)

    def eval_sample(self, row: int) -> Sample:
        if row == self.deadly:
            os.kill(os.getpid(), self.by)
            time.sleep(LIMIT_S)
        return Sample(row, self.key(row), [], {"x": np.full(1 << 19, float(row))}, row)


def _batches(rows: Rows) -> Iterator[Any]:
    maker = EvalBatchMaker(rows, [range(k, k + 2) for k in range(0, len(rows), 2)])
    config = DataConfig(workers=2, prefetch=2)
    return prefetch(maker, lambda micro_batch, _: micro_batch.digest, config, [None])  # type: ignore[list-item]


def _error(batches: Iterator[Any]) -> ReaderDiedError:
    """The error that ends the batches, of which each takes a moment to be used."""
    found: list[BaseException] = []

    def take() -> None:
        try:
            for _ in batches:
                time.sleep(0.02)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "training hangs"
    assert isinstance(found[0], ReaderDiedError), found
    return found[0]


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ReaderContext]:
    made: list[ReaderContext] = []

    def remember(workers: int) -> ReaderContext:
        made.append(ReaderContext(workers))
        return made[-1]

    monkeypatch.setattr(module, "ReaderContext", remember)
    return made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_reader_killed_at_any_moment_ends_the_run(
    contexts: list[ReaderContext], number: signal.Signals
) -> None:
    chance = random.Random(int(number))
    for _ in range(4):
        batches = _batches(Rows())
        assert next(batches)[1] == 1
        reader = contexts[-1]._readers[chance.randrange(2)]
        time.sleep(chance.random() * 0.2)
        assert reader.pid is not None
        os.kill(reader.pid, number)
        error = _error(batches)
        assert number.name in str(error)
        assert str(reader.pid) in str(error)
        assert error.exit_code == ExitCode.FAILURE
        for other in contexts[-1]._readers:
            other.join(10)
            assert other.exitcode, "the other reader would wait for good"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_the_clip_that_kills_its_reader_is_named(number: signal.Signals) -> None:
    error = _error(_batches(Rows(deadly=21, by=number)))
    assert f"({number.name}) while it read clip-21 of rows" in str(error)


def test_readers_that_finish_are_not_reported() -> None:
    rows = Rows()
    maker = EvalBatchMaker(rows, [[k] for k in range(12)])
    config = DataConfig(workers=3, prefetch=1)
    found = prefetch(maker, lambda micro_batch, _: micro_batch.digest, config, [None])  # type: ignore[list-item]
    assert [digest for _, digest in found] == list(range(12))
