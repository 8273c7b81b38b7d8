"""What the command lines of runs share: their options by name, and a helpful word about one that
does not exist."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from allinone.engine.distributed import launch


def option_names(config: Any) -> list[str]:
    """Every option of a run's dataclass (the class, or the default run) and of the dataclasses
    inside it, as written on the command line."""
    names = []
    for entry in fields(config):
        given = None if isinstance(config, type) else getattr(config, entry.name)
        made = entry.default_factory if entry.default_factory is not MISSING else None
        inner = given if is_dataclass(given) else made
        if inner is not None and is_dataclass(inner):
            names += option_names(inner)
        else:
            names.append("--" + entry.name.replace("_", "-"))
    return sorted(names)


def refuse_unknown(argv: Sequence[str], config: Any, prog: str) -> None:
    """Leave with 2 and the valid names where an argument is no option of the run."""
    valid = option_names(config)
    given = [
        word.partition("=")[0].replace("_", "-") for word in argv if re.match(r"--[a-z]", word)
    ]
    unknown = [word for word in given if word not in (*valid, "--help")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], valid, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        print(
            f"error: {prog}: unknown option {', '.join(unknown)}; {hint}valid options:"
            f" {', '.join(valid)}",
            file=sys.stderr,
        )
        raise SystemExit(launch.EXIT_USER)
