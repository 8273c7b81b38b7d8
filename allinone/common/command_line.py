"""One way to read a command line: dataclasses, tyro, and helpful errors.

Every command describes its options as a frozen dataclass, one docstring per field, and calls
`parse`. Precedence: the defaults of the dataclass (or of a recipe), then --config FILE, then the
flags. Only the standard library and tyro are imported here, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from allinone.common.console import forgive_output, setup_logging
from allinone.common.errors import AllInOneError, InputError
from allinone.common.exit_codes import ExitCode, exit_codes_help
from allinone.common.limits import explain
from allinone.common.options import INPUTS, leaves, plain, renamed_options
from allinone.common.surroundings import adapt, say

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
TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
SPECIAL = ("help", "version", "config", "print-config")
"""Options of every command."""
MIN_COLUMNS = 60
"""Narrower help takes tyro minutes to lay out, and nobody can read it."""
_shown_as: dict[str, str] = {}


EXTRAS = {
    **dict.fromkeys(("deepspeed", "megatron", "tensorboard", "grain", "absl", "psutil"), "train"),
    **dict.fromkeys(("pyarrow", "tqdm", "rich"), "train"),
    **dict.fromkeys(("ftfy", "rapidfuzz"), "prepare"),
    **dict.fromkeys(("matplotlib", "jinja2"), "plots"),
    "nvidia": "dali",
}
"""Top-level modules that a base installation lacks → the extra that installs them."""


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
    positional: bool = False

    @property
    def flag(self) -> str:
        return self.path[-1].replace("_", "-")


class CompletionRequest(BaseException):
    """Raised instead of parsing while a shell asks for completions.

    A BaseException, like SystemExit, so that no command handles it as an error.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = list(words)


_completing = False


@contextlib.contextmanager
def completing() -> Iterator[None]:
    """Make `parse` and `pick` raise CompletionRequest with the words that may come next."""
    global _completing
    _completing = True
    try:
        yield
    finally:
        _completing = False


def show_program_as(script: str, shown: str) -> None:
    """Replace a script's name in usage and messages, for commands started by another program."""
    _shown_as[script] = shown


def _shown(prog: str) -> str:
    script, space, rest = prog.partition(" ")
    return f"{_shown_as.get(script, script)}{space}{rest}"


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _option(path: tuple[str, ...], hint: Any) -> _Option:
    """An option; `tyro.conf.Positional[T]` is Annotated[T, marker]."""
    if get_origin(hint) is not Annotated:
        return _Option(path, hint)
    kind, *markers = get_args(hint)
    return _Option(path, kind, any("Positional" in repr(marker) for marker in markers))


def _class_of(default: Any) -> type:
    return default if isinstance(default, type) else type(default)


def options_of(default: Any) -> list[_Option]:
    """Every option of a dataclass, or of an instance of one, and of the dataclasses inside it."""
    return [_option(leaf.path, _hints(leaf.owners[-1])[leaf.path[-1]]) for leaf in leaves(default)]


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
    if _completing:
        raise CompletionRequest(_next_words(argv, options))
    prog = _shown(prog)
    renamed = {**renamed_options(default), **(renamed or {})}
    arguments, file, show = _special_arguments(list(argv), prog)
    arguments = _check_flags(arguments, options, prog, renamed)
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
        return tyro.cli(
            _class_of(default),
            args=arguments,
            prog=prog,
            description=f"{description.strip()}\n\nExit codes:\n{exit_codes_help()}",
            default=tyro.MISSING_NONPROP if isinstance(default, type) else default,
            config=(tyro.conf.OmitArgPrefixes,),
        )

    if "-h" in arguments or "--help" in arguments:
        with _columns(max(shutil.get_terminal_size().columns, MIN_COLUMNS)):
            return read()
    # tyro draws its errors as boxes: catch them and print one line, as for every other error
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
    return _fail(prog, f"{_message_of(caught.getvalue())}; see {prog} --help")


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


def _message_of(box: str) -> str:
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
    text = re.sub(r"\S*__tyro\S*", "", text)
    return text.removesuffix(".")


def _next_words(argv: Sequence[str], options: Sequence[_Option]) -> list[str]:
    """What may follow `argv`: the values of a choice, else all flags."""
    last = argv[-1].removeprefix("--") if argv else ""
    for option in options:
        if option.flag == last and not option.positional:
            values = _literal_values(option.type)
            if values:
                return values
    flags = [f"--{option.flag}" for option in options if not option.positional]
    negations = [f"--no-{option.flag}" for option in options if option.type is bool]
    return [*flags, *negations, *(f"--{name}" for name in SPECIAL)]


def _literal_values(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [value for inner in get_args(kind) for value in _literal_values(inner)]


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
    if _completing and not argv:
        raise CompletionRequest([*choices, "--help", "--version"])
    prog = _shown(prog)
    first = argv[0] if argv else "--help"
    if first in choices:
        return first
    if _completing:
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
        _print_version()
    if first.startswith("-"):
        _fail(prog, f"the first argument must be a {kind}, got {first}; {kind}s: {_names(choices)}")
    hint = _suggestion(first, list(choices))
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
    by_flag = {option.flag: option for option in options if not option.positional}
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
            if equals:
                _fail(prog, f"--{flag}={value}: --{flag} takes no value")
            result.append(f"--{flag}")
        elif by_flag[flag].type is bool:
            if not equals and index < len(argv) and argv[index].lower() in (*TRUE, *FALSE):
                value = argv[index]
                index += 1
            if (value or equals) and value.lower() not in (*TRUE, *FALSE):
                _fail(prog, f"--{flag} {value}: give --{flag} or --no-{flag}")
            result.append(f"--no-{flag}" if value.lower() in FALSE else f"--{flag}")
        else:
            result.append(f"--{flag}")
            if equals:
                result.append(value)
    return result


def _refuse_unknown(flag: str, valid: Sequence[str], prog: str) -> NoReturn:
    hint = _suggestion(flag, valid, "--")
    shown = ", ".join(f"--{name}" for name in sorted(valid) if not name.startswith("no-"))
    _fail(prog, f"unknown option --{flag}; {hint}valid options: {shown}")


def _suggestion(name: str, valid: Sequence[str], prefix: str = "") -> str:
    """ "did you mean … ? ", or nothing where no valid name is close."""
    synonym = SYNONYMS.get(name)
    near = [synonym] if synonym in valid else difflib.get_close_matches(name, valid, 3)
    return f"did you mean {' or '.join(f'{prefix}{found}' for found in near)}? " if near else ""


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
    # run.json of a run also has the fingerprints of its data, which are no options
    content = {name: value for name, value in content.items() if name != INPUTS}
    by_path = {option.path: option for option in options_of(default)}
    by_flag = {option.flag: option for option in by_path.values()}
    changes: dict[tuple[str, ...], Any] = {}
    for names, value in _leaves(content, set(by_path)):
        flag = names[-1].replace("_", "-")
        flag = (renamed or {}).get(flag, flag)
        option = by_path.get(names) or (by_flag.get(flag) if flag in by_flag else None)
        if option is None:
            hint = _suggestion(flag, list(by_flag)).strip()
            raise InputError(
                f"--config {path}: unknown option {'.'.join(names)}; {hint}".rstrip("; ")
            )
        changes[option.path] = _converted(value, option, path)
    try:
        return _changed(default, changes)
    except (TypeError, ValueError) as error:  # options are missing, or out of their range
        raise InputError(f"--config {path}: {error}") from error


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

    if isinstance(value, str) and get_origin(option.type) is tuple:
        value = [value]
    try:
        # not strict: YAML reads 1e-4 as text
        return msgspec.convert(
            value, option.type, strict=False, dec_hook=lambda kind, given: kind(given)
        )
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

    return yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True)


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    An AllInOneError is printed as one line; Ctrl-C gives 130; any other error keeps its traceback
    and gives 1. Output that nobody reads any more does not end the command.
    """
    forgive_output()
    setup_logging()
    try:
        say(adapt())
        return int(command() or 0)
    except AllInOneError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ImportError) as error:
        if limit := explain(error):
            print(f"error: {limit}", file=sys.stderr)
            return int(ExitCode.USAGE)
        if not isinstance(error, ModuleNotFoundError):
            traceback.print_exc()
            return int(ExitCode.FAILURE)
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            traceback.print_exc()
            return int(ExitCode.FAILURE)
        print(
            f"error: this command needs the package {package!r}, which is not installed; run: pip"
            f" install 'allinone-pretrain[{EXTRAS[package]}]'",
            file=sys.stderr,
        )
        return int(ExitCode.USAGE)
    except Exception:  # noqa: BLE001 - the last frame of the program
        traceback.print_exc()
        return int(ExitCode.FAILURE)
