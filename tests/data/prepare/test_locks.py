"""Two preparations never make the same shard of a folder at the same time."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.common.paths import ROOT
from allinone.data.index import Index
from allinone.data.prepare.locks import share_shards
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data.helpers import small_demo

HOLD = """
import sys, time
from pathlib import Path
from allinone.data.prepare.locks import claim_part
from allinone.data.prepare.options import PrepareOptions
part = tuple(map(int, sys.argv[2].split("/"))) if sys.argv[2] != "-" else None
with claim_part(PrepareOptions(Path("x"), Path(sys.argv[1]), part=part)):
    print("held", flush=True)
    time.sleep(100)
"""


def hold(out: Path, part: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), part], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_parts_share_shards_if_their_series_meet() -> None:
    parts = [(i, n) for n in range(1, 9) for i in range(1, n + 1)]
    for (i, n), (j, m) in itertools.product(parts, parts):
        shards = set(range(i - 1, 200, n)) & set(range(j - 1, 200, m))
        assert share_shards((i, n), (j, m)) == bool(shards)


@pytest.mark.parametrize(
    ("held", "second", "refused"),
    [
        ("-", None, True),
        ("-", (1, 2), True),
        ("1/2", None, True),
        ("1/2", (1, 2), True),
        ("1/2", (2, 2), False),
        ("1/2", (3, 4), True),
        ("1/2", (2, 4), False),
    ],
)
def test_a_second_preparation_of_the_same_shards_is_refused(
    tmp_path: Path, held: str, second: tuple[int, int] | None, refused: bool
) -> None:
    source, out = small_demo(tmp_path / "source", 8), tmp_path / "out"
    options = PrepareOptions(source, out, shard_clips=2, workers=1, part=second)
    prepare(PrepareOptions(source, out, shard_clips=2, workers=1, part=(4, 4)), progress=False)
    holder = hold(out, held)
    try:
        if refused:
            with pytest.raises(DataError, match=f"being prepared: .* pid {holder.pid} on"):
                prepare(options, progress=False)
        else:
            prepare(options, progress=False)
        with pytest.raises(DataError, match="being prepared"):
            prepare(PrepareOptions(source, out, shard_clips=2, merge=True), progress=False)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    prepare(PrepareOptions(source, out, shard_clips=2, workers=1), progress=False)
    assert len(Index(out, "train")) == 8
    assert not (out / "listing.arrow").exists()
    assert not list(out.rglob("*.lock"))
