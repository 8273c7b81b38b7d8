"""Check the flags of a command line before tyro reads them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from allinone.common.command_line.completion import literal_values
from allinone.common.command_line.messages import fail, suggestion
from allinone.common.command_line.option_tree import Option

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")


def check_flags(
    argv: list[str], options: Sequence[Option], prog: str, renamed: Mapping[str, str]
) -> list[str]:
    """Accept `--x True` and renamed flags; refuse unknown ones with a suggestion.

    Args:
        argv: The arguments, without the program's name.
        options: What may be given.
        prog: Shown in errors.
        renamed: Flags of earlier versions → today's flags, without dashes.

    Returns:
        The arguments in the only spelling that tyro reads: `--x` or `--no-x` for booleans, name and
        value as two words for others, also for a boolean that may have other values.

    Raises:
        SystemExit: With code 2, after one line about the first flag that is wrong.
    """
    by_flag = {option.flag: option for option in options if not option.positional}
    positives = {f"no-{flag}": flag for flag, o in by_flag.items() if o.is_switch}
    result: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        # values, positional arguments, -h, and negative numbers
        if not re.match(r"--[A-Za-z]", word):
            result.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        flag = flag.replace("_", "-")
        if flag in renamed:
            print(f"warning: --{flag} is now called --{renamed[flag]}", file=sys.stderr)
            flag = renamed[flag]
        if flag == "help":
            result.append(word)
        elif flag in positives or flag not in by_flag:
            if flag not in positives:
                _refuse_unknown(flag, [*by_flag, *positives], prog)
            if equals:
                fail(prog, f"--{flag}={value}: --{flag} takes no value")
            result += _switched(by_flag[positives[flag]], on=False)
        elif by_flag[flag].is_switch:
            option = by_flag[flag]
            others = literal_values(option.type)
            words = [*TRUE, *FALSE, *others]
            # `--x True` is the spelling of versions before 0.2; another next word is no value
            if not equals and index < len(argv) and argv[index].lower() in words:
                value = argv[index]
                index += 1
            if (value or equals) and value.lower() not in words:
                valid = [f"--{flag}", f"--no-{flag}", *(f"--{flag} {word}" for word in others)]
                fail(prog, f"--{flag} {value}: give {' or '.join(valid)}")
            if value.lower() in others:
                result += [f"--{flag}", value.lower()]
            else:
                result += _switched(option, on=value.lower() not in FALSE)
        else:
            result.append(f"--{flag}")
            if equals:
                result.append(value)
    return result


def _switched(option: Option, *, on: bool) -> list[str]:
    """A switch as tyro reads it: a bool is a flag, and one with other values takes a value."""
    if option.type is bool:
        return [f"--{option.flag}" if on else f"--no-{option.flag}"]
    return [f"--{option.flag}", str(on)]


def _refuse_unknown(flag: str, valid: Sequence[str], prog: str) -> NoReturn:
    hint = suggestion(flag, valid, "--")
    shown = ", ".join(f"--{name}" for name in sorted(valid) if not name.startswith("no-"))
    fail(prog, f"unknown option --{flag}; {hint}valid options: {shown}")
