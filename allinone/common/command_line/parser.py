"""Read the options of a command with tyro."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allinone.common.command_line.completion import (
    CompletionRequest,
    is_completing,
    literal_values,
    next_words,
)
from allinone.common.command_line.config_file import config_from_file, to_yaml
from allinone.common.command_line.flags import check_flags
from allinone.common.command_line.messages import fail, print_version, shown_name, suggestion
from allinone.common.command_line.option_tree import Option, class_of, options_of
from allinone.common.console import terminal_codes
from allinone.common.exit_codes import exit_codes_help
from allinone.common.options import renamed_options

MIN_COLUMNS = 60
"""Narrower help takes tyro minutes to lay out, and nobody can read it."""


def parse(
    default: Any,
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """Read options; leaves with code 0 after --help, --version and --print-config, 2 after a fault.

    Args:
        default: A dataclass, or an instance whose values are the defaults.
        argv: The arguments, without the program's name.
        prog: Shown in usage and errors, for example "allinone train demo".
        description: Shown by --help.
        renamed: Flags of earlier versions → today's flags, without dashes; accepted with a
            warning. The dicts RENAMED in the modules of the dataclasses are added.

    Returns:
        An instance of the dataclass.

    Raises:
        SystemExit: After --help, --version, --print-config and after wrong options.
        InputError: --config names an unusable file.
    """
    options = options_of(default)
    if is_completing():
        raise CompletionRequest(next_words(argv, options))
    prog = shown_name(prog)
    renamed = {**renamed_options(default), **(renamed or {})}
    arguments, file, show = _special_arguments(list(argv), prog)
    arguments = check_flags(arguments, options, prog, renamed)
    if file is not None:
        default = config_from_file(file, default, renamed)
    parsed = _parse_with_tyro(default, arguments, prog, description)
    if show:
        print(to_yaml(parsed), end="")
        raise SystemExit(0)
    return parsed


def _parse_with_tyro(default: Any, arguments: list[str], prog: str, description: str) -> Any:
    import tyro

    def read() -> Any:
        """Parse, or exit as tyro does."""
        # OmitArgPrefixes: --lr, not --train.lr. A class has no values: MISSING_NONPROP makes its
        # fields without a default required, and lets the others keep theirs
        return tyro.cli(
            class_of(default),
            args=arguments,
            prog=prog,
            description=f"{description.strip()}\n\nExit codes:\n{exit_codes_help()}",
            default=tyro.MISSING_NONPROP if isinstance(default, type) else default,
            config=(tyro.conf.OmitArgPrefixes,),
        )

    if "-h" in arguments or "--help" in arguments:
        with _columns(max(shutil.get_terminal_size().columns, MIN_COLUMNS)), terminal_codes():
            return read()
    # tyro draws its errors as boxes: catch them and print one line, as for every other error;
    # 10,000 columns, so that no sentence is wrapped
    caught = io.StringIO()
    try:
        with (
            _columns(10_000),
            contextlib.redirect_stdout(caught),
            contextlib.redirect_stderr(caught),
        ):
            return read()
    except SystemExit as error:
        if not error.code:
            raise
    return fail(prog, f"{_message_of(caught.getvalue(), options_of(default))}; see {prog} --help")


@contextlib.contextmanager
def _columns(number: int) -> Iterator[None]:
    """Set the width of the terminal as tyro sees it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _message_of(box: str, options: Sequence[Option]) -> str:
    """The sentences of tyro's error box, without frame, help text and names of its internals."""
    sentences: list[str] = []
    for line in box.splitlines()[1:]:  # the first line is the title
        words = line.strip(" │╭╮╰╯")
        if set(words) <= set("-─"):
            if sentences:
                break  # help text follows
            continue
        sentences.append(words)
    text = " ".join(sentences) or box.strip()
    text = re.sub(r"^Error parsing ([\w.]+): (?=.*--)", "", text)  # the name of a nested dataclass
    text = re.sub(r"\S*__tyro\S*", "", text).removesuffix(".")
    text = re.sub(r"^Missing from [\w ./-]+: ", "missing: ", text)
    if found := re.search(r"invalid choice '(.*)' for argument '--(\S+)'", text):
        given, flag = found.groups()
        kind = next((option.type for option in options if option.flag == flag), None)
        values = literal_values(kind)  # tyro lists them in no order, with None
        near = suggestion(given, values)
        return f"--{flag}: invalid choice {given!r}; {near}choose from: {', '.join(values)}"
    if found := re.search(r"(--\S+): no type matching (.*) could be .* from \['(.*)'\]", text):
        flag, kinds, given = found.groups()
        return f"{flag} {given}: expected {kinds.replace('{None}|', '').replace('|', ' or ')}"
    return text


def _special_arguments(argv: list[str], prog: str) -> tuple[list[str], Path | None, bool]:
    """(arguments without --config and --print-config, the file, whether to print)."""
    if "--version" in argv:
        print_version()
    kept, file, show = [], None, False
    words = iter(argv)
    for word in words:
        if word == "--print-config":
            show = True
        elif word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] or next(words, "")
            if not name:
                fail(prog, "--config needs a file (YAML, JSON, or the run.json of a run)")
            file = Path(name)
        else:
            kept.append(word)
    return kept, file, show
