"""Checks of a node's memory, disk and data."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from allinone.common.errors import AllInOneError
from allinone.common.formatting import size
from allinone.common.object_storage import remote_url
from allinone.tools.cluster.node_result import NodeCheckOptions, NodeResult

GIB = 2**30


def check_memory(result: NodeResult, options: NodeCheckOptions) -> None:
    """Check that enough host memory is free."""
    import psutil

    free = psutil.virtual_memory().available / GIB
    result.facts["host_memory_gib"] = free
    if free < options.min_memory_gib:
        text = (
            f"{free:.1f} GiB of host memory are free, less than --min-memory-gib"
            f" {options.min_memory_gib:g}"
        )
        result.problems.append(("memory", text))


def check_disk(result: NodeResult, options: NodeCheckOptions) -> None:
    """Check that the run folder and the node's temporary folder have space and keep a file."""
    for name, folder, least in (
        ("run folder", options.folder, options.min_free_gib),
        ("temporary folder", Path(tempfile.gettempdir()), 0.1),
    ):
        free = shutil.disk_usage(folder).free
        if free < least * GIB:
            text = f"{size(free)} are free in the {name} {folder}, less than {least:g} GiB"
            result.problems.append(("disk", text))
            continue
        # 8 MiB of random bytes: a file system that compresses or deduplicates still writes 1 MiB
        content = os.urandom(2**20) * 8
        start = time.perf_counter()
        # an unnamed file: jobs that share a node check it at the same time, and a killed check
        # leaves nothing behind
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            # a full quota or a broken server shows at fsync; the read may come from the page cache
            os.fsync(file.fileno())
            file.seek(0)
            same = file.read() == content
        result.facts[f"{name.split()[0]}_disk_s"] = time.perf_counter() - start
        if not same:
            text = f"a file in the {name} {folder} was read back with different content"
            result.problems.append(("disk", text))


def check_data(result: NodeResult, options: NodeCheckOptions) -> None:
    """Check that the data named on the command line can be read.

    For prepared data: the index and the first and last shard. For folders of annotations and media:
    that they are not empty.
    """
    from allinone.data.config import DatasetSpec
    from allinone.pretrain.config import NO_VAL  # not needed by `judge`, see tools/node_check.py

    given = options_of(options.command)
    prepared = [text for name in ("data", "val", "images") for text in given.get(name, [])]
    if options.command and options.command[0].endswith("pretrain/train.py"):
        prepared += _data_of_recipe(options.command[1], given)
    start = time.perf_counter()
    # --val none evaluates nothing
    for folder in {DatasetSpec.parse(text).path for text in prepared if text != NO_VAL}:
        if remote_url(folder) is not None:
            _check_remote(result, folder)
            continue
        shards = sorted((folder / "shards").glob("*.tar"))
        if not (folder / "index.arrow").is_file() or not shards:
            text = f"{folder} holds no prepared data here: is it mounted?"
            result.problems.append(("data", text))
            continue
        # 1 MiB each: shows a mount that lists files but cannot read them, within seconds
        for path in {folder / "index.arrow", shards[0], shards[-1]}:
            with path.open("rb") as file:
                file.read(2**20)
    for path in (Path(text) for name in ("annotations", "media") for text in given.get(name, [])):
        if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            result.problems.append(("data", f"{path} is empty or absent here: is it mounted?"))
    result.facts["data_s"] = time.perf_counter() - start


def _check_remote(result: NodeResult, folder: Path) -> None:
    """Check that this node reaches a folder in object storage, and may read it."""
    from allinone.data.remote_index import local_index

    try:
        local_index(folder)
    except AllInOneError as error:
        result.problems.append(("data", str(error)))


def options_of(command: Sequence[str]) -> dict[str, list[str]]:
    """The options of a command line: --name A B and --name=A → {"name": ["A", ...]}."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = [value] if equals else []
        elif name:
            options[name].append(word)
    return options


def _data_of_recipe(name: str, given: Mapping[str, object]) -> list[str]:
    """The data sets of a pre-training recipe that the command does not override."""
    from allinone.pretrain.recipes import RECIPES

    if name not in RECIPES:
        return []  # the trainer reports it, with the valid names
    recipe = RECIPES[name][1]
    defaults = {"data": recipe.data, "val": recipe.val, "images": recipe.cotrain.images}
    return [text for option, texts in defaults.items() if option not in given for text in texts]
