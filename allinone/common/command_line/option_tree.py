"""The options of a (nested) dataclass."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from allinone.common.options import leaves


@dataclass(frozen=True)
class Option:
    """One leaf of a (nested) dataclass."""

    path: tuple[str, ...]
    """Names of the fields, outermost first: ("train", "lr")."""
    type: Any
    """Its type hint."""
    positional: bool = False
    """It is given by its position and has no flag."""

    @property
    def is_switch(self) -> bool:
        """Whether `--x` and `--no-x` are valid: a bool, also one that may have other values."""
        return self.type is bool or bool in get_args(self.type)

    @property
    def flag(self) -> str:
        """Its flag without dashes in front: "lr"."""
        return self.path[-1].replace("_", "-")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _option(path: tuple[str, ...], hint: Any) -> Option:
    """An option from its type hint."""
    # tyro.conf.Positional[T] is Annotated[T, marker]; the marker is known by its repr, so that tyro
    # need not be imported here
    if get_origin(hint) is not Annotated:
        return Option(path, hint)
    kind, *markers = get_args(hint)
    return Option(path, kind, any("Positional" in repr(marker) for marker in markers))


def class_of(default: Any) -> type:
    """The dataclass itself, or that of an instance."""
    return default if isinstance(default, type) else type(default)


def options_of(default: Any) -> list[Option]:
    """Every option of a dataclass, or of an instance of one, and of the dataclasses inside it."""
    return [_option(leaf.path, _hints(leaf.owners[-1])[leaf.path[-1]]) for leaf in leaves(default)]
