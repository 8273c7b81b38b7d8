"""Options in files: --config reads YAML, JSON or a run.json; --print-config writes YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, get_origin

from allinone.common.command_line.messages import suggestion
from allinone.common.command_line.option_tree import Option, options_of
from allinone.common.errors import InputError
from allinone.common.options import INPUTS, plain, renamed_options


def config_from_file(path: Path, default: Any, renamed: Mapping[str, str] | None = None) -> Any:
    """The defaults changed by a YAML or JSON file.

    The file nests like the dataclass (as run.json and --print-config write it), or names options at
    its top level as the flags do. `run.json` inside a checkpoint keeps the options below "run", a
    results file below "settings".

    Args:
        path: The file.
        default: A dataclass, or an instance whose values are the defaults.
        renamed: Flags of earlier versions → today's flags, without dashes; those of the dicts
            RENAMED in the modules of the dataclasses are added.

    Returns:
        An instance of the dataclass.

    Raises:
        InputError: The file cannot be read, or holds an unknown option or a value of a wrong type.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a name that is given twice; PyYAML silently takes the last value."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise InputError(
                        f"--config {path}, line {node.value[number][0].start_mark.line + 1}:"
                        f" {name} is given twice; keep one of them"
                    )
            return super().construct_mapping(node, deep)

    # the JSON of run.json is YAML too
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold options, `name: value` on each line")
    for key in ("run", "settings"):
        if isinstance(content.get(key), dict):
            content = content[key]
    # run.json of a run also has the fingerprints of its data, which are no options
    content = {name: value for name, value in content.items() if name != INPUTS}
    by_path = {option.path: option for option in options_of(default)}
    by_flag = {option.flag: option for option in by_path.values()}
    renamed = {**renamed_options(default), **(renamed or {})}
    changes: dict[tuple[str, ...], Any] = {}
    for names, value in _leaves(content, set(by_path)):
        flag = names[-1].replace("_", "-")
        flag = renamed.get(flag, flag)
        option = by_path.get(names) or by_flag.get(flag)
        if option is None:
            hint = suggestion(flag, list(by_flag)).strip()
            raise InputError(
                f"--config {path}: unknown option {'.'.join(names)}; {hint}".rstrip("; ")
            )
        changes[option.path] = _converted(value, option, path)
    try:
        return _changed(default, changes)
    except (TypeError, ValueError) as error:  # out of their range
        raise InputError(f"--config {path}: {error}") from error


def _leaves(
    content: Mapping[str, Any], known: set[tuple[str, ...]], prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    """(path, value) of every option; a dict that is the value of a known option is not entered."""
    found = []
    for key, value in content.items():
        names = (*prefix, str(key).replace("-", "_"))
        if isinstance(value, dict) and names not in known:
            found += _leaves(value, known, names)
        else:
            found.append((names, value))
    return found


def _converted(value: Any, option: Option, path: Path) -> Any:
    """A value of a file as the type of its option."""
    import msgspec

    if isinstance(value, str) and get_origin(option.type) is tuple:
        value = [value]
    try:
        # not strict: YAML 1.1 reads 1e-4, which has no point, as text
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
    if not isinstance(default, type):
        return replace(default, **here)
    missing = [
        entry.name
        for entry in fields(default)
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in here
    ]
    return _without(default, missing, here) if missing else default(**here)


def _without(kind: type, missing: Sequence[str], values: Mapping[str, Any]) -> Any:
    """An instance that lacks required fields, for tyro only: it reads them from the flags.

    `__post_init__` does not run: it would check fields that have no value yet.
    """
    from tyro import MISSING_NONPROP

    instance: Any = object.__new__(kind)
    for entry in fields(kind):
        if entry.name in missing:
            value: Any = MISSING_NONPROP
        elif entry.name in values:
            value = values[entry.name]
        elif entry.default_factory is not MISSING:
            value = entry.default_factory()
        else:
            value = entry.default
        object.__setattr__(instance, entry.name, value)
    return instance


def to_yaml(config: Any) -> str:
    """Options as YAML, nested as the dataclass; --config reads it back."""
    import yaml

    return yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True)
