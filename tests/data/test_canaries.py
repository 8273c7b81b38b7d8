"""No file of a prepared folder, finished or not, runs what a pickle in it names.

Each file is replaced by each kind of payload; every reader then works without it or refuses it with
a message.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import AllInOneError, DataError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.fingerprint import clips_fingerprint
from allinone.data.index import dataset_facts
from allinone.data.loading.loader import ClipSource
from allinone.data.prepare.existing import record_retry
from allinone.data.prepare.listing import LISTING, PLAN, open_listing
from allinone.data.prepare.options import PrepareOptions
from allinone.data.prepare.pipeline import prepare
from allinone.data.prepare.verify import check
from tests.canary import HARMS, Canary, assert_the_canary_works
from tests.data.helpers import small_demo

Harm = Callable[[Path, Canary], None]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of two shards, and its source beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    small_demo(folder / "source", 4)
    _prepare(folder / "out")
    return folder / "out"


def _train(out: Path) -> None:
    source = ClipSource(DatasetSpec(out, "train"), ClipConfig(3, 32), DataConfig(workers=0))
    for row in (0, len(source) - 1):
        source.eval_sample(row)


def _check(out: Path) -> None:
    check(out, hashes=True, decodes=0, seed=0, workers=1)


def _prepare(out: Path, **changes: object) -> None:
    given = {"shard_clips": 2, "workers": 1} | changes
    prepare(PrepareOptions(out.parent / "source", out, **given), progress=False)  # type: ignore[arg-type]


READERS: dict[str, Callable[[Path], object]] = {
    "training": _train,
    "check": _check,
    "fingerprint": lambda out: clips_fingerprint(out, "train"),
    "prepare": _prepare,
    "merge": lambda out: _prepare(out, merge=True),
    "retry": lambda out: _prepare(out, retry=("missing",)),
}


def copied(prepared: Path, target: Path) -> Path:
    """A copy of the prepared folder and its source."""
    (target).mkdir()
    (target / "source").symlink_to(prepared.parent / "source")
    shutil.copytree(prepared, target / "out")
    return target / "out"


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_file_of_a_prepared_folder_runs(prepared: Path, tmp_path: Path, harm: Harm) -> None:
    canary = tmp_path / "canary"
    names = [path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file()]
    kinds = {"dataset.json", "index.arrow", "videos.parquet", "prepare.json"}
    assert kinds <= {name.name for name in names}
    assert {".tar", ".parquet", ".arrow"} <= {name.suffix for name in names}
    seen = set()
    for number, name in enumerate(names):
        if (kind := (name.parent, name.suffix)) in seen and len(name.parts) > 1:
            continue  # one shard of several
        seen.add(kind)
        for title, reader in READERS.items():
            out = copied(prepared, tmp_path / f"{number}-{title}")
            harm(out / name, Canary(canary))
            with contextlib.suppress(AllInOneError):
                reader(out)
            assert not canary.exists(), f"{title} ran {name}"
            shutil.rmtree(out.parent)
    assert_the_canary_works(canary)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", [LISTING, PLAN, "retry.json"])
def test_no_cache_of_an_unfinished_preparation_runs(
    prepared: Path, tmp_path: Path, harm: Harm, name: str
) -> None:
    out, canary = tmp_path / "out", tmp_path / "canary"
    (tmp_path / "source").symlink_to(prepared.parent / "source")
    (out / "parts").mkdir(parents=True)
    options = PrepareOptions(
        tmp_path / "source", out, shard_clips=2, workers=1, retry=("missing",)
    ).resolved()
    write_atomic(out / "prepare.json", json.dumps(options.fingerprint()))
    record_retry(options)
    assert open_listing(options).counts == {"train": 4}
    harm(out / name, Canary(canary))
    if name == PLAN:  # how many rows there were is unknown
        with pytest.raises(DataError, match=r"plan\.json is damaged"):
            _prepare(out, retry=("missing",))
    else:
        _prepare(out, retry=("missing",))
        assert dataset_facts(out)["clips"] == {"train": 4}
    assert not canary.exists()
