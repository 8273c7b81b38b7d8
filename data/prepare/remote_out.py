"""Preparing into object storage: shards are made in a local folder and uploaded one by one.

The local folder holds what a preparation needs in order to continue: the fragments of the index,
and in place of each uploaded tar an empty file of its size, which takes no room. It is rebuilt from
the storage, so that another machine can continue. dataset.json is uploaded last.
"""

from __future__ import annotations

import json
import os
import re

from allinone.common.atomic_io import content_hash, write_atomic
from allinone.common.errors import DataError
from allinone.common.object_storage import (
    ObjectStore,
    ObjectVersion,
    cache_folder,
    stand_in,
)
from allinone.data.index import FILES
from allinone.data.index_validation import SHARD
from allinone.data.prepare.listing import PLAN
from allinone.data.prepare.merge import fragment_paths

_STATE = re.compile(rf"{SHARD.pattern}|parts/[A-Za-z0-9_.-]+\.parquet|prepare\.json|{PLAN}")
"""Objects that a preparation continues from; names come from outside and become local paths."""


class RemoteOut:
    """A prepared folder in object storage, and the local folder that stands for it.

    Args:
        url: Its address.

    """

    def __init__(self, url: str) -> None:
        self._store = ObjectStore(url)
        self.local = cache_folder() / "prepare" / content_hash(url.encode())
        """The local folder."""
        # next to the folder: in it, it would count as a file of the preparation
        self._record = self.local.with_suffix(".json")
        self._versions: dict[str, ObjectVersion] = {}
        """Versions of the objects that the local folder agrees with."""

    def pull(self) -> None:
        """Make the local folder agree with the storage.

        Raises:
            DataError: The storage may not be read, or holds something else.
            StorageError: It failed.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        if self._record.exists():
            known = json.loads(self._record.read_text())
            self._versions = {name: ObjectVersion(*version) for name, version in known.items()}
        found = self._store.list()
        if found and "prepare.json" not in found:
            raise DataError(
                f"{self._store.url} is not empty and holds no prepared data; give another --out"
            )
        listed = {name: version for name, version in found.items() if _STATE.fullmatch(name)}
        for name in [*self._local_state() - listed.keys()]:
            # of a run that was killed before it had uploaded the shard, or of a deleted folder
            (self.local / name).unlink()
        for name, version in listed.items():
            path = self.local / name
            if self._versions.get(name) == version and path.exists():
                continue
            if SHARD.fullmatch(name):
                stand_in(path, version.size)
            else:
                self._store.download(name, path)
                # older than any retry: only what this folder's runs have made counts as retried
                os.utime(path, (0, 0))
            self._versions[name] = version
        self._versions = {name: v for name, v in self._versions.items() if name in listed}
        self._save()
        if "dataset.json" in found:
            self._store.download("dataset.json", self.local / "dataset.json")
        else:
            (self.local / "dataset.json").unlink(missing_ok=True)

    def _local_state(self) -> set[str]:
        files = (path for path in self.local.rglob("*") if path.is_file())
        names = {path.relative_to(self.local).as_posix() for path in files}
        return {name for name in names if _STATE.fullmatch(name)}

    def begin(self) -> None:
        """Delete dataset.json: loaders refuse the folder until its index agrees with its shards."""
        self._store.delete("dataset.json")
        self._upload("prepare.json")

    def push_shard(self, name: str) -> None:
        """Upload a shard that was made here, and free its room.

        Args:
            name: The shard; its tar and fragments are in the local folder.
        """
        videos, clips = (f"parts/{path.name}" for path in fragment_paths(self.local, name))
        # as in a local folder, a fragment must never exist with a tar that it does not describe
        self._store.delete(clips)
        tar = f"shards/{name}.tar"
        for part in (tar, videos, clips):
            self._upload(part)
        stand_in(self.local / tar, self._versions[tar].size)
        self._save()

    def push_plan(self) -> None:
        """Upload the counts of the listed rows, which other machines need for --merge."""
        self._upload(PLAN)
        self._save()

    def finish(self) -> None:
        """Upload the index, dataset.json last."""
        for name in (*FILES, "bad_clips.jsonl", "prepare.json", "dataset.json"):
            self._upload(name)
        self._save()

    def _upload(self, name: str) -> None:
        self._versions[name] = self._store.upload(self.local / name, name)

    def _save(self) -> None:
        known = {name: (v.size, v.tag) for name, v in self._versions.items()}
        write_atomic(self._record, json.dumps(known) + "\n")
