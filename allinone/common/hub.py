"""Folders of the model hub, kept in huggingface_hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from allinone.common.errors import InputError

MODEL_FILES = ("*.json", "*.safetensors")
"""What a model folder is read from. Never code: nothing of a repository is run."""
PROCESSOR_FILES = ("*.json",)


def is_hub_id(source: str | Path) -> bool:
    """Whether this can be the id of a repository, owner/name, and is nothing on this machine.

    runs/nmae is a wrong path, not a repository, where there is a folder runs.
    """
    text = str(source)
    owner = text.partition("/")[0]
    found = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return bool(found) and not Path(text).exists() and not Path(owner).exists()


def hub_folder(
    source: str, files: Sequence[str] = MODEL_FILES, revision: str | None = None
) -> Path:
    """The folder of a repository, fetched where it is not in the cache.

    Args:
        source: owner/name.
        files: Patterns of the files to fetch.
        revision: Branch, tag or commit; None: the default branch.

    Raises:
        InputError: The hub does not deliver it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(files), revision=revision))
    # the hub's errors are OSErrors and ValueErrors, those of its HTTP library neither
    except Exception as error:
        raise unreachable(source, error) from error


def unreachable(source: str, error: Exception) -> InputError:
    """What to raise when the hub did not deliver `source`, one line long."""
    lines = str(error).strip().splitlines()
    return InputError(
        f"{source} is not a file or folder here, and the model hub did not deliver it"
        f" ({type(error).__name__}: {lines[0][:160] if lines else ''}); without a network, download"
        " the weights elsewhere and give their folder"
    )
