"""A source is counted while the work on it proceeds."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.prepare.listing import SourceListing
from allinone.data.sources import SourceRow
from tests.cluster.cluster import wait_for


def listed(number: int, fault: str | None = None, hold: Path | None = None) -> Iterator[SourceRow]:
    """Alternating rows of two splits; then wait while `hold` exists, and raise `fault` if given."""
    for k in range(number):
        split, path = ("train", "val")[k % 2], Path("video.mp4")
        yield SourceRow(split, str(k), ("a caption",), path, path.name, extension="mp4")
    while hold is not None and hold.exists():
        time.sleep(0.01)
    if fault is not None:
        raise DataError(fault)


def test_the_work_does_not_wait_for_the_count(tmp_path: Path) -> None:
    hold, plan = tmp_path / "hold", tmp_path / "plan.json"
    hold.touch()
    with contextlib.closing(
        SourceListing(tmp_path, partial(listed, 5, hold=hold), plan)
    ) as listing:
        listing.start_counting()
        rows = listing.rows()
        assert [next(rows).id for _ in range(5)] == list("01234")
        assert listing.poll() is None
        hold.unlink()
        wait_for("the count", lambda: listing.poll() == {"train": 3, "val": 2}, 60)
        assert json.loads(plan.read_text()) == {"train": 3, "val": 2}
        assert list(rows) == []
    assert SourceListing(tmp_path, partial(listed, 5), plan).count() == {"train": 3, "val": 2}
    with pytest.raises(DataError, match=r"'val': 3} now, and listed .*'val': 2} when"):
        list(SourceListing(tmp_path, partial(listed, 6), plan).rows())


def test_a_damaged_row_is_reported_before_it_is_reached(tmp_path: Path) -> None:
    with contextlib.closing(
        SourceListing(
            tmp_path, partial(listed, 5, fault="line 6 is no row"), tmp_path / "plan.json"
        )
    ) as listing:
        listing.start_counting()
        rows = listing.rows()
        next(rows)

        def reported() -> bool:
            try:
                return listing.poll() is not None
            except DataError as error:
                return "line 6 is no row" in str(error)

        wait_for("the fault", reported, 60)
    assert not (tmp_path / "plan.json").exists()


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists no clips"):
        list(SourceListing(tmp_path, partial(listed, 0), tmp_path / "plan.json").rows())
