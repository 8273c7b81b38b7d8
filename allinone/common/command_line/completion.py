"""Shell completion: instead of parsing, raise the words that may come next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from allinone.common.command_line.option_tree import Option

SPECIAL = ("help", "version", "config", "print-config")
"""Options of every command."""


class CompletionRequest(BaseException):
    """Raised instead of parsing while a shell asks for completions.

    A BaseException, like SystemExit, so that no command handles it as an error.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = list(words)


_completing = False


def is_completing() -> bool:
    """Whether `parse` and `pick` should raise CompletionRequest."""
    return _completing


@contextlib.contextmanager
def completing() -> Iterator[None]:
    """Make `parse` and `pick` raise CompletionRequest with the words that may come next."""
    global _completing
    _completing = True
    try:
        yield
    finally:
        _completing = False


def next_words(argv: Sequence[str], options: Sequence[Option]) -> list[str]:
    """What may follow `argv`: the values of its last flag, else all flags.

    Empty after a flag whose value is free: the shell then completes file names.
    """
    last = argv[-1] if argv else ""
    if last == "--config":
        return []
    for option in options:
        if last == f"--{option.flag}" and not option.positional and not option.is_switch:
            return literal_values(option.type)
    flags = [f"--{option.flag}" for option in options if not option.positional]
    negations = [f"--no-{option.flag}" for option in options if option.is_switch]
    return [*flags, *negations, *(f"--{name}" for name in SPECIAL)]


def literal_values(kind: Any) -> list[str]:
    """The values that an option of this type may have; empty if they are not listed."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [value for inner in get_args(kind) for value in literal_values(inner)]
