"""One way to read a command line: dataclasses, tyro, and helpful errors.

Every command describes its options as a frozen dataclass, one docstring per field, and calls
`parse`. Precedence: the defaults of the dataclass (or of a recipe), then --config FILE, then the
flags. Only the standard library and tyro are imported here, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from allinone.common.console import forgive_output, setup_logging
from allinone.common.errors import AllInOneError, InputError
from allinone.common.exit_codes import ExitCode, exit_codes_help

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
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Choice:
    """One sub-command, recipe or benchmark: what it is, and its options."""

    help: str
    """One line."""
    default: Any
    """A dataclass, or an instance of one that holds this choice's defaults."""


@dataclass(frozen=True)
class _Option:
    """One leaf of a (nested) dataclass."""

    path: tuple[str, ...]
    type: Any

    @property
    def flag(self) -> str:
        return self.path[-1].replace("_", "-")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _class_of(default: Any) -> type:
    return default if isinstance(default, type) else type(default)


def options_of(default: Any, prefix: tuple[str, ...] = ()) -> list[_Option]:
    """Every option of a dataclass, or of an instance of one, and of the dataclasses inside it."""
    found = []
    kind = _class_of(default)
    for entry in fields(kind):
        value = None if isinstance(default, type) else getattr(default, entry.name)
        inner = value if value is not None else entry.default_factory
        if inner is not MISSING and is_dataclass(inner):
            found += options_of(inner, (*prefix, entry.name))
        else:
            found.append(_Option((*prefix, entry.name), _hints(kind)[entry.name]))
    return found


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
        renamed: Flags of earlier versions → today's names; they are accepted with a warning.

    Returns:
        An instance of the dataclass.

    Raises:
        SystemExit: After --help, --version, --print-config and after wrong options.
    """
    import tyro

    options = options_of(default)
    arguments, file, show = _special_arguments(list(argv), prog)
    arguments = _check_flags(arguments, options, prog, renamed or {})
    if file is not None:
        default = config_from_file(file, default, renamed or {})
    parsed = tyro.cli(
        _class_of(default),
        args=arguments,
        prog=prog,
        description=f"{description}\n\nExit codes:\n{exit_codes_help()}",
        default=tyro.MISSING_NONPROP if isinstance(default, type) else default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if show:
        print(to_yaml(parsed), end="")
        raise SystemExit(0)
    return parsed


def choose(
    choices: Mapping[str, Choice],
    argv: Sequence[str],
    *,
    prog: str,
    kind: str,
    description: str = "",
    renamed: Mapping[str, str] | None = None,
) -> tuple[str, Any]:
    """Read a choice and its options: (name, options). Exits as `parse` does.

    `kind` is what a choice is called in messages: "recipe", "benchmark", "command".
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
    """The name of the choice that the first argument makes; exits as `parse` does."""
    first = argv[0] if argv else "--help"
    if first in choices:
        return first
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
        _print_version()
    if first.startswith("-"):
        _fail(prog, f"the first argument must be a {kind}, got {first}; {kind}s: {_names(choices)}")
    near = difflib.get_close_matches(first, list(choices), 3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return _fail(prog, f"unknown {kind} {first!r}; {hint}{kind}s: {_names(choices)}")


def _names(choices: Mapping[str, Any]) -> str:
    return ", ".join(choices)


def _fail(prog: str, message: str) -> NoReturn:
    print(f"error: {prog}: {message}", file=sys.stderr)
    raise SystemExit(ExitCode.USAGE)


def _print_version() -> NoReturn:
    from allinone import __version__

    print(f"allinone {__version__}")
    raise SystemExit(0)


def _special_arguments(argv: list[str], prog: str) -> tuple[list[str], Path | None, bool]:
    """(arguments without --config and --print-config, the file, whether to print)."""
    if "--version" in argv:
        _print_version()
    kept, file, show = [], None, False
    words = iter(argv)
    for word in words:
        if word == "--print-config":
            show = True
        elif word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] or next(words, "")
            if not name:
                _fail(prog, "--config needs a file (YAML, JSON, or the run.json of a run)")
            file = Path(name)
        else:
            kept.append(word)
    return kept, file, show


def _check_flags(
    argv: list[str], options: Sequence[_Option], prog: str, renamed: Mapping[str, str]
) -> list[str]:
    """Accept `--x True` and renamed flags; refuse unknown ones with a suggestion."""
    by_flag = {option.flag: option for option in options}
    positives = {f"no-{flag}": flag for flag, o in by_flag.items() if o.type is bool}
    result: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
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
            result.append(f"--{flag}")
        elif by_flag[flag].type is bool:
            if not equals and index < len(argv) and argv[index].lower() in (*TRUE, *FALSE):
                value = argv[index]
                index += 1
            if value and value.lower() not in (*TRUE, *FALSE):
                _fail(prog, f"--{flag} {value}: give --{flag} or --no-{flag}")
            result.append(f"--no-{flag}" if value.lower() in FALSE else f"--{flag}")
        else:
            result.append(f"--{flag}")
            if equals:
                result.append(value)
    return result


def _refuse_unknown(flag: str, valid: Sequence[str], prog: str) -> None:
    known = SYNONYMS.get(flag)
    near = [known] if known in valid else difflib.get_close_matches(flag, valid, 3)
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}? " if near else ""
    shown = ", ".join(f"--{name}" for name in sorted(valid) if not name.startswith("no-"))
    _fail(prog, f"unknown option --{flag}; {hint}valid options: {shown}")


def config_from_file(path: Path, default: Any, renamed: Mapping[str, str] | None = None) -> Any:
    """The defaults changed by a YAML or JSON file.

    The file nests like the dataclass (as run.json and --print-config write it), or names options at
    its top level as the flags do. `run.json` inside a checkpoint keeps the options below "run".

    Raises:
        InputError: The file cannot be read, or holds an unknown option or a value of a wrong type.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold options, `name: value` on each line")
    if isinstance(content.get("run"), dict):
        content = content["run"]
    by_path = {option.path: option for option in options_of(default)}
    by_flag = {option.flag: option for option in by_path.values()}
    changes: dict[tuple[str, ...], Any] = {}
    for names, value in _leaves(content, set(by_path)):
        flag = names[-1].replace("_", "-")
        flag = (renamed or {}).get(flag, flag)
        option = by_path.get(names) or (by_flag.get(flag) if flag in by_flag else None)
        if option is None:
            near = difflib.get_close_matches(flag, by_flag, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"--config {path}: unknown option {'.'.join(names)}{hint}")
        changes[option.path] = _converted(value, option, path)
    return _changed(default, changes)


def _leaves(
    content: Mapping[str, Any], known: set[tuple[str, ...]], prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for key, value in content.items():
        names = (*prefix, str(key).replace("-", "_"))
        if isinstance(value, dict) and names not in known:
            found += _leaves(value, known, names)
        else:
            found.append((names, value))
    return found


def _converted(value: Any, option: _Option, path: Path) -> Any:
    import msgspec

    if isinstance(value, str) and option.type is float:  # YAML reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    try:
        return msgspec.convert(value, option.type, dec_hook=lambda kind, given: kind(given))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise InputError(f"--config {path}: {'.'.join(option.path)} = {value!r}: {error}") from None


def _changed(default: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """A copy of a dataclass instance (or a new instance of a dataclass) with values replaced."""
    here = {path[0]: value for path, value in changes.items() if len(path) == 1}
    for name in dict.fromkeys(path[0] for path in changes if len(path) > 1):
        inner = {path[1:]: value for path, value in changes.items() if path[0] == name}
        if isinstance(default, type):
            entry = next(entry for entry in fields(default) if entry.name == name)
            assert entry.default_factory is not MISSING
            here[name] = _changed(entry.default_factory(), inner)
        else:
            here[name] = _changed(getattr(default, name), inner)
    return default(**here) if isinstance(default, type) else replace(default, **here)


def to_yaml(config: Any) -> str:
    """Options as YAML, nested as the dataclass; --config reads it back."""
    from dataclasses import asdict

    import yaml

    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    An AllInOneError is printed as one line; Ctrl-C gives 130; any other error keeps its traceback
    and gives 1. Output that nobody reads any more does not end the command.
    """
    forgive_output()
    setup_logging()
    try:
        return int(command() or 0)
    except AllInOneError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - the last frame of the program
        traceback.print_exc()
        return int(ExitCode.FAILURE)
