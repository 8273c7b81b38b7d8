"""Options as dataclass fields: what a resumed run may change, and options as JSON.

The resume policy is metadata of the field that holds an option. engine/resume.py compares the
options of a run folder with those of the command that resumes it, by these policies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

ResumePolicy = Literal["same", "may_change", "layout", "content"]
"""What a resumed run may do with an option.

same: the option changes what is computed, so it must keep its value. The default.
may_change: it changes speed, memory, output or evaluation, but not the weights beyond rounding.
layout: it changes where state is stored; the checkpoint is redistributed if the arithmetic is kept.
content: it says where something is; the place may change, its content (`RunInput`) may not.
"""
MAY_CHANGE: Mapping[str, ResumePolicy] = {"resume": "may_change"}
"""Metadata for a field without a default: `out: Path = field(metadata=MAY_CHANGE)`."""
CONTENT: Mapping[str, ResumePolicy] = {"resume": "content"}
"""Metadata for a field without a default that says where something is."""
RECORDED: Mapping[str, ResumePolicy] = {"resume": "same"}
"""Metadata for a field that holds a dataclass which differs between kinds of runs: its options must
all be recorded in the run folder, and no others."""


UNCHANGED: Any = object()
"""`earlier` of an option whose default never changed in a way that runs must survive."""


def option(
    default: Any,
    *,
    resume: ResumePolicy = "same",
    earlier: Any = UNCHANGED,
    recorded: bool = True,
) -> Any:
    """Define a dataclass field that holds an option.

    Args:
        default: Value of new runs.
        resume: What a resumed run may do with the option.
        earlier: Value in runs of earlier versions, by default, by recipe or because the option did
            not exist; they keep it (allinone/common/earlier_runs.py).
        recorded: False for an option of one start, which a run folder does not record.
    """
    metadata = {"resume": resume, "earlier": earlier, "recorded": recorded}
    return field(default=default, metadata=metadata)


INPUTS = "inputs"
"""Key of run.json with the fingerprints of what the run read."""


@dataclass(frozen=True)
class RunInput:
    """Something besides the options that a run depends on; its content must not change."""

    what: str
    """What messages call it."""
    digests: Callable[[], Mapping[str, str]]
    """Computes part → hash of the content; called once, on rank 0."""
    option: str = ""
    """Dotted name of the option that says where it is; empty: it is part of the program."""
    name: str = ""
    """Name that the run gave it, which keys random choices."""


@dataclass(frozen=True)
class OptionInfo:
    """What engine/resume.py needs to know about an option."""

    policy: ResumePolicy = "same"
    default: Any = None
    """The default as JSON; None if there is none."""
    strict: bool = False
    """The option belongs to a field with the metadata RECORDED."""
    earlier: Any = UNCHANGED
    """Value in runs of earlier versions; see `option`."""

    @property
    def missing(self) -> Any:
        """Value as JSON in runs that do not record the option."""
        return self.default if self.earlier is UNCHANGED else plain(self.earlier)


class RunOptions(dict[str, Any]):
    """The options of a run, nested as JSON, with the policy and default of each option."""

    def __init__(
        self,
        values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        known: Mapping[str, OptionInfo] | None = None,
        renamed: Mapping[str, str] | None = None,
        inputs: Mapping[str, RunInput] | None = None,
    ) -> None:
        super().__init__(values)
        self.known = dict(known or {})
        """Dotted name (`train.lr`) → information."""
        self.renamed = dict(renamed or {})
        """Flags of earlier versions → today's flags, without dashes in front."""
        self.inputs = dict(inputs or {})
        """Key → what else the run depends on."""

    @classmethod
    def of(cls, config: Any, inputs: Mapping[str, RunInput] | None = None) -> RunOptions:
        """From an instance of a (nested) dataclass.

        Args:
            config: The options.
            inputs: See `RunOptions.inputs`.
        """
        values = plain(asdict(config))
        for leaf in leaves(config):
            if not leaf.field.metadata.get("recorded", True):
                group = values
                for name in leaf.path[:-1]:
                    group = group[name]
                del group[leaf.path[-1]]
        return cls(values, option_infos(config), renamed_options(config), inputs)


@dataclass(frozen=True)
class Leaf:
    """One option of a (nested) dataclass."""

    path: tuple[str, ...]
    """Names of the fields that lead to it."""
    field: Field[Any]
    owners: tuple[type, ...]
    """The dataclasses around it, the outermost first."""
    strict: bool
    """See `OptionInfo`."""


def leaves(config: Any) -> Iterator[Leaf]:
    """Every option of a (nested) dataclass, or of an instance of one, in the order of the fields.

    Of an instance, the values are followed: a field may hold a subclass of its declared dataclass.
    """
    kind = config if isinstance(config, type) else type(config)
    for entry in fields(kind):
        inner = _inner(config, entry)
        if inner is None:
            yield Leaf((entry.name,), entry, (kind,), strict=False)
        else:
            recorded = "resume" in entry.metadata
            for leaf in leaves(inner):
                path, owners = (entry.name, *leaf.path), (kind, *leaf.owners)
                yield Leaf(path, leaf.field, owners, leaf.strict or recorded)


def _inner(config: Any, entry: Field[Any]) -> Any | None:
    """The nested dataclass in a field: an instance if there is one, else its class, else None."""
    value = None if isinstance(config, type) else getattr(config, entry.name)
    inner = entry.default_factory if value is None else value
    return inner if is_dataclass(inner) else None


def option_infos(config: Any, prefix: str = "") -> dict[str, OptionInfo]:
    """Dotted name → information on every option of a (nested) dataclass, or an instance of one."""
    found: dict[str, OptionInfo] = {}
    for leaf in leaves(config):
        entry = leaf.field
        default = None if entry.default is MISSING else entry.default
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        found[prefix + ".".join(leaf.path)] = OptionInfo(
            policy=entry.metadata.get("resume", "same"),
            default=plain(default),
            strict=leaf.strict,
            earlier=entry.metadata.get("earlier", UNCHANGED),
        )
    return found


def renamed_options(config: Any) -> dict[str, str]:
    """Old flag → new flag, from the dict RENAMED in the module of each dataclass of `config`."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kind for leaf in leaves(config) for kind in leaf.owners):
        for base in reversed(kind.__mro__):
            found |= getattr(sys.modules.get(base.__module__), "RENAMED", {})
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level: {"train": {"lr": 1}} → {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat.update(flatten(item, f"{name}.") if isinstance(item, Mapping) else {name: item})
    return flat


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a (nested) dataclass instance with options replaced, by dotted name."""
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(group, {})[rest] = value
        else:
            changes[name] = value
    for group, part in inner.items():
        changes[group] = with_values(getattr(config, group), part)
    return replace(config, **changes)


def plain(value: Any) -> Any:
    """Options as JSON values: paths become text, tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
