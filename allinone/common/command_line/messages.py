"""What a wrong command line prints, and the names that it suggests."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

from allinone.common.exit_codes import ExitCode

SYNONYMS = {
    "learning-rate": "lr",
    "batch-size": "micro-batch",
    "per-device-train-batch-size": "micro-batch",
    "gradient-accumulation-steps": "global-batch",
    "max-steps": "steps",
    "num-workers": "workers",
    "output-dir": "out",
    "output": "out",
    "resume-from": "out",
    "load-path": "init-from",
    "max-grad-norm": "clip-grad",
    "gradient-clipping": "clip-grad",
    "gradient-checkpointing": "activation-checkpointing",
    "warmup-steps": "warmup",
    "deepspeed": "ds-config",
    "num-frames": "frames",
}
"""Names that other programs use → ours, for "did you mean"."""
_shown_as: dict[str, str] = {}


def show_program_as(script: str, shown: str) -> None:
    """Replace a script's name in usage and messages, for commands started by another program."""
    _shown_as[script] = shown


def shown_name(prog: str) -> str:
    """The name of a program in usage and messages; its first word is the script."""
    script, space, rest = prog.partition(" ")
    return f"{_shown_as.get(script, script)}{space}{rest}"


def fail(prog: str, message: str) -> NoReturn:
    """Print a fault of the command line as one line and exit with code 2."""
    print(f"error: {prog}: {message}", file=sys.stderr)
    raise SystemExit(ExitCode.USAGE)


def print_version() -> NoReturn:
    """Print the version and exit with code 0."""
    from allinone import __version__

    print(f"allinone {__version__}")
    raise SystemExit(0)


def suggestion(name: str, valid: Sequence[str], prefix: str = "") -> str:
    """Ask "did you mean … ? ".

    Args:
        name: The unknown name.
        valid: The valid names.
        prefix: Shown in front of each suggestion, such as "--".

    Returns:
        At most three suggestions as a question and a space; empty if no valid name is close.
    """
    synonyms = {word: ours for word, ours in SYNONYMS.items() if ours in valid}
    if name in synonyms:
        near = [synonyms[name]]
    else:  # also a misspelt synonym
        words = difflib.get_close_matches(name, [*valid, *synonyms], 3)
        near = list(dict.fromkeys(synonyms.get(word, word) for word in words))
    return f"did you mean {' or '.join(f'{prefix}{found}' for found in near)}? " if near else ""
