"""Reader processes that die are replaced within seconds, without another batch; a clip that kills
them twice ends the run, and is named."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

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


def _taken(batches: Iterator[Any], number: int = 10_000) -> tuple[list[int], list[BaseException]]:
    """The next batches, of which each takes a moment to be used, and the error that ends them."""
    found: list[int] = []
    errors: list[BaseException] = []

    def take() -> None:
        try:
            for _, digest in islice(batches, number):
                found.append(digest)
                time.sleep(0.02)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "training hangs"
    return found, errors


def _error(batches: Iterator[Any]) -> ReaderDiedError:
    """The error that ends the batches."""
    _, errors = _taken(batches)
    assert isinstance(errors[0], ReaderDiedError), errors
    return errors[0]


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ReaderContext]:
    made: list[ReaderContext] = []

    def remember(workers: int) -> ReaderContext:
        made.append(ReaderContext(workers))
        return made[-1]

    monkeypatch.setattr(module, "ReaderContext", remember)
    return made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_reader_killed_at_any_moment_is_replaced(
    contexts: list[ReaderContext], number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("allinone").propagate = True
    chance = random.Random(int(number))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    batches = _batches(Rows())
    expected = [4 * k + 1 for k in range(40)]
    found = [next(batches)[1]]
    for death in range(1, 4):
        readers = contexts[-1]._readers
        reader = readers[chance.randrange(2)]
        time.sleep(chance.random() * 0.2)
        assert reader.pid is not None
        os.kill(reader.pid, number)
        digests, errors = _taken(batches, 12)
        assert errors == []
        found += digests
        assert found == expected[: len(found)], "the data must not change"
        for other in readers:
            other.join(10)
            assert other.exitcode, "the other reader would wait for good"
        # the death may be noticed while batches that were made before it are used
        deadline = time.monotonic() + LIMIT_S
        while len(contexts) <= death and time.monotonic() < deadline:
            time.sleep(0.05)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == death, "one line each"
        assert number.name in messages[-1]
        assert str(reader.pid) in messages[-1]
        assert f"replaced ({death} of at most 8 times)" in messages[-1]
    assert torch.equal(torch.random.get_rng_state(), before), "training's random numbers"


def test_readers_that_always_die_end_the_run(
    contexts: list[ReaderContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLACEMENTS", 2)
    batches = _batches(Rows())
    next(batches)
    for number in range(1, 4):
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            started = [reader for reader in contexts[-1]._readers if reader.pid]
            if len(contexts) == number and len(started) == 2:
                break
            time.sleep(0.05)
        os.kill(started[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
    error = _error(batches)
    assert error.exit_code == ExitCode.FAILURE
    assert len(contexts) == 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_the_clip_that_kills_its_reader_is_named(number: signal.Signals) -> None:
    found, errors = _taken(_batches(Rows(deadly=21, by=number)))
    assert f"({number.name}) while it read clip-21 of rows" in str(errors[0])
    # those that the dead readers had made, but not handed over, are lost
    assert found == [4 * k + 1 for k in range(len(found))]
    assert len(found) <= 10


def test_readers_that_finish_are_not_reported() -> None:
    rows = Rows()
    maker = EvalBatchMaker(rows, [[k] for k in range(12)])
    config = DataConfig(workers=3, prefetch=1)
    found = prefetch(maker, lambda micro_batch, _: micro_batch.digest, config, [None])  # type: ignore[list-item]
    assert [digest for _, digest in found] == list(range(12))
