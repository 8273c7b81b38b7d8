"""The first word of a command line: a sub-command, recipe or benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allinone.common.command_line.completion import CompletionRequest, is_completing
from allinone.common.command_line.messages import fail, print_version, shown_name, suggestion
from allinone.common.command_line.parser import parse
from allinone.common.exit_codes import ExitCode, exit_codes_help


@dataclass(frozen=True)
class Choice:
    """One sub-command, recipe or benchmark: what it is, and its options."""

    help: str
    """One line."""
    default: Any
    """A dataclass, or an instance of one that holds this choice's defaults."""


def choose(
    choices: Mapping[str, Choice],
    argv: Sequence[str],
    *,
    prog: str,
    kind: str,
    description: str = "",
    renamed: Mapping[str, str] | None = None,
) -> tuple[str, Any]:
    """Read a choice and its options.

    Args:
        choices: By name.
        argv: The arguments, without the program's name.
        prog: Shown in usage and errors, for example "allinone train".
        kind: What a choice is called in messages: "recipe", "benchmark", "command".
        description: Shown by --help above the choices.
        renamed: As in `parse`.

    Returns:
        (name of the choice, its options).

    Raises:
        SystemExit: As in `parse` and `pick`.
        InputError: --config names an unusable file.
    """
    name = pick(choices, argv, prog=prog, kind=kind, description=description)
    choice = choices[name]
    return name, parse(
        choice.default,
        list(argv)[1:],
        prog=f"{prog} {name}",
        description=choice.help,
        renamed=renamed,
    )


def pick(
    choices: Mapping[str, Choice] | Mapping[str, str],
    argv: Sequence[str],
    *,
    prog: str,
    kind: str,
    description: str = "",
) -> str:
    """Read the first argument only.

    Args:
        choices: Choices, or their one-line descriptions, by name.
        argv: The arguments, without the program's name.
        prog: Shown in usage and errors.
        kind: What a choice is called in messages.
        description: Shown by --help above the choices.

    Returns:
        The name of the choice.

    Raises:
        SystemExit: With code 0 after --help and --version; with code 2 after an unknown choice, and
            without arguments, after the help.
    """
    if is_completing() and not argv:
        raise CompletionRequest([*choices, "--help", "--version"])
    prog = shown_name(prog)
    names = ", ".join(choices)
    first = argv[0] if argv else "--help"
    if first in choices:
        return first
    if is_completing():
        raise CompletionRequest([])
    listing = "\n".join(
        f"  {name:<24}{entry.help if isinstance(entry, Choice) else entry}"
        for name, entry in choices.items()
    )
    if first in ("-h", "--help"):
        print(f"usage: {prog} {kind.upper()} [options]\n")
        if description:
            print(f"{description}\n")
        print(f"{kind}s:\n{listing}\n\n`{prog} {kind.upper()} --help` lists the options of one.")
        print(f"\nExit codes:\n{exit_codes_help()}")
        raise SystemExit(0 if argv else ExitCode.USAGE)
    if first == "--version":
        print_version()
    if first.startswith("-"):
        fail(prog, f"the first argument must be a {kind}, got {first}; {kind}s: {names}")
    hint = suggestion(first, list(choices))
    return fail(prog, f"unknown {kind} {first!r}; {hint}{kind}s: {names}")
