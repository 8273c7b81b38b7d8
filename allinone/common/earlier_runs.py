"""Runs that an earlier version started keep that version's values.

A recipe or a default may change between versions. The field of such an option states the value that
earlier versions had (`option(..., earlier=...)`). If a run folder records that value, or records
none because the option did not exist yet, it replaces the recipe's value. Flags still override it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allinone.common.options import (
    INPUTS,
    UNCHANGED,
    RunOptions,
    flatten,
    option_infos,
    plain,
    with_values,
)

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Record of a run's options in its folder."""


def parse_for_run(
    parse: Callable[[Any], Any], default: Any, *, parts: str = ""
) -> tuple[Any, list[str]]:
    """Parse the options of a run whose folder may hold a run of an earlier version.

    Args:
        parse: Reads the command line over the defaults that it is given; returns a dataclass with
            a field `out`.
        default: Defaults of the command, for example a recipe; a class if all options come from a
            file.
        parts: Pattern of sub-folders that hold the runs of a folder without a record of its own
            (folds); the first one counts.

    Returns:
        The options, and `name value` for each option that keeps an earlier version's value.
    """
    config = parse(default)
    recorded = _recorded(config.out)
    if recorded is None and parts:
        recorded = next(filter(None, map(_recorded, sorted(config.out.glob(parts)))), None)
    if recorded is None:
        return config, []
    kept = _earlier_values(config if isinstance(default, type) else default, recorded)
    if isinstance(default, type):
        # what the file gives was chosen; only an option that it lacks has its default
        config = with_values(config, {n: v for n, v in kept.items() if n not in recorded})
    elif kept:
        # parsed again, so that an option given as a flag still wins
        config = parse(with_values(default, kept))
    now = flatten(RunOptions.of(config))
    return config, [f"{name} {value}" for name, value in kept.items() if now[name] == plain(value)]


def log_kept(out: Path, kept: list[str]) -> None:
    """Log the options that `parse_for_run` kept."""
    if kept:
        log.info(
            "%s holds a run of an earlier version, which keeps its values: %s", out, ", ".join(kept)
        )


def recorded_names(out: Path) -> dict[str, str]:
    """Key of an input → the name under which the run in `out` started with it; {} without a run."""
    recorded = _recorded(out) or {}
    prefix, suffix = f"{INPUTS}.", ".name"
    return {
        key.removeprefix(prefix).removesuffix(suffix): name
        for key, name in recorded.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }


def recorded_options(out: Path) -> dict[str, Any]:
    """Options of the run in a folder by dotted name; {} without a run."""
    return _recorded(out) or {}


def _recorded(out: Path) -> dict[str, Any] | None:
    """Options of the run in a folder by dotted name; None without a readable record."""
    try:
        content = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # engine/resume.py decides about it and names what is wrong
    return flatten(content) if isinstance(content, dict) else None


def _earlier_values(config: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose value differs from the one that an earlier version used for this run."""
    now = flatten(RunOptions.of(config))
    groups = {name.rpartition(".")[0] for name in recorded}
    kept: dict[str, Any] = {}
    for name, info in option_infos(config).items():
        if info.earlier is UNCHANGED or name.rpartition(".")[0] not in groups:
            continue
        earlier = plain(info.earlier)
        if recorded.get(name, earlier) == earlier and now[name] != earlier:
            kept[name] = info.earlier
    return kept
