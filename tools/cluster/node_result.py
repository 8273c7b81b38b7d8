"""Options and results of the node check (tools/node_check.py). Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic


@dataclass(frozen=True)
class NodeCheckOptions:
    """Options of tools/node_check.py; both actions take the same."""

    action: str
    """run: check this node; judge: read all results and name the bad nodes."""
    folder: Path
    """Where the nodes write their results, on a shared file system."""
    nodes: Path
    """File with one line NAME ADDRESS per node."""
    gpus: int = 8
    """GPUs that a node must have."""
    port: int = 18000
    """First of several TCP ports, one per node and one more."""
    min_free_gib: float = 10.0
    """Free disk space that the run folder needs, GiB."""
    min_memory_gib: float = 2.0
    """Free host memory that a node needs, GiB."""
    slow: float = 0.7
    """Share of the median rate below which a node is bad; 0.1 on CPUs, which other jobs share."""
    max_clock_s: float = 5.0
    """Largest difference of two clocks, seconds."""
    timeout_s: float = 30.0
    """Time limit of one exchange, seconds."""
    limit_s: float = 180.0
    """Time limit of the complete check, seconds."""
    command: tuple[str, ...] = ()
    """The program that will run, with its options."""


@dataclass
class NodeResult:
    """The results of one node, written after every check: a node that hangs or dies leaves what it
    was doing."""

    node: str
    doing: str = "start"
    facts: dict[str, float] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(check, problem)"""
    neighbours: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → {"rate": bytes/s, "clock_s": difference of the clocks} or {"error": text}."""

    def write(self, folder: Path) -> None:
        """Publish what is known so far."""
        # atomic: a node that is killed while it writes leaves its previous result
        write_atomic(folder / f"{self.node}.json", json.dumps(asdict(self), indent=1) + "\n")


def read_nodes(path: Path) -> list[tuple[str, str]]:
    """(name, address) of every node of the allocation."""
    return [(name, address) for name, address in map(str.split, path.read_text().splitlines())]


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")
