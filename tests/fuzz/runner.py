"""Runs mutated inputs in a child process, counts what happens, and keeps what fails."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from allinone.common.errors import AllInOneError
from allinone.common.tables import plain_table

SPECIAL = (
    b"",
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b'"',
    b"\n",
    b"\r",
    b"\t",
    b",",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\\ud83d",
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"[" * 3000,
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"../../x",
    b"x" * 70_000,
)
"""Texts and numbers that parsers stumble over."""
STARTING_S = 300.0


@dataclass(frozen=True)
class Fuzzer:
    """What one program feeds to which reader."""

    name: str
    make_seeds: Callable[[Path], Sequence[Path]]
    """Writes small good inputs below a folder; returns the files that are mutated in turn."""
    check: Callable[[Path, Path, bytes, int], str]
    """(folder of the seeds, the seed, mutated content, number) → "accepted" or "refused". An
    AllInOneError is a refusal too. It may change only what it restores."""
    timeout_s: float = 60.0
    memory_mib: int = 2048


VALUES = (None, True, -1, 0, 10**30, float("nan"), float("inf"), "", "\ud83d", [], {}, [[]], "x")
"""What a value of JSON is replaced by."""


def mutate_json(content: bytes, random: np.random.Generator) -> bytes:
    """Replace, remove or repeat a value of a JSON text; other texts come back unchanged."""
    try:
        root = [json.loads(content)]
    except ValueError:
        return content
    parents: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        parents += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    node, key = parents[int(random.integers(len(parents)))]
    kind = int(random.integers(4))
    if kind == 0 and isinstance(node, dict):
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.append(node[key])
    elif kind == 2:
        node[key] = [node[key]]
    else:
        node[key] = VALUES[int(random.integers(len(VALUES)))]
    return json.dumps(root[0]).encode()


def mutate(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Change a file as damage and attackers do.

    Args:
        content: A good file.
        other: Another good file, of which a piece may be inserted.
        random: Decides everything.
    """
    if random.random() < 0.5 and content[:1] in (b"{", b"["):
        changed = mutate_json(content, random)
        if changed == content:  # JSON lines
            lines = content.split(b"\n")
            place = int(random.integers(len(lines)))
            lines[place] = mutate_json(lines[place], random)
            changed = b"\n".join(lines)
        return changed
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        size = len(data) + 1
        place, length = int(random.integers(size)), int(random.integers(1, 64))
        kind = int(random.integers(8))
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[place : place + length] = random.bytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length] * int(random.integers(1, 40))
        elif kind == 4:
            data[place : place + int(random.integers(8))] = SPECIAL[
                int(random.integers(len(SPECIAL)))
            ]
        elif kind == 5:
            del data[place:]
        elif kind == 6:
            start = int(random.integers(len(other) + 1))
            data[place : place + length] = other[start : start + 4 * length]
        else:
            data[place : place + 4] = int(random.integers(2**32)).to_bytes(4, "big")
    return bytes(data)


def _child(pipe: Connection, fuzzer: Fuzzer, folder: Path) -> None:
    import av

    from allinone.common.processes import live_and_die_with_parent

    live_and_die_with_parent()
    av.logging.set_level(av.logging.PANIC)
    originals = {path: path.read_bytes() for path in fuzzer.make_seeds(folder)}
    pipe.send(originals)
    while True:
        number, path, content = pipe.recv()
        try:
            result = fuzzer.check(folder, path, content, number)
        except AllInOneError:
            result = "refused"
        except Exception:
            result = "traceback\n" + traceback.format_exc()
        path.write_bytes(originals[path])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        pipe.send((result, peak))


class _Child:
    """The child process, started again after it was lost."""

    def __init__(self, fuzzer: Fuzzer, folder: Path) -> None:
        # spawned: a fork of a process with threads of FFmpeg or DALI may hang by itself
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, fuzzer, folder))
        self._process.start()
        theirs.close()
        if not self.pipe.poll(STARTING_S):
            raise SystemExit("the child process did not start")
        self.originals: dict[Path, bytes] = self.pipe.recv()

    def input(self, seed: int, number: int) -> tuple[Path, bytes]:
        """(the file that is replaced, its mutated content)."""
        random = np.random.default_rng([seed, number])
        paths = list(self.originals)
        path, other = paths[number % len(paths)], paths[int(random.integers(len(paths)))]
        return path, mutate(self.originals[path], self.originals[other], random)

    def run(self, number: int, path: Path, content: bytes, timeout_s: float) -> tuple[str, int]:
        """(what happened, peak memory in MiB)."""
        try:
            self.pipe.send((number, path, content))
            if not self.pipe.poll(timeout_s):
                return f"hang\nno answer within {timeout_s:g} s", 0
            answer: tuple[str, int] = self.pipe.recv()
            return answer
        except (EOFError, ConnectionError):
            self._process.join(10)
            return f"crash\nexit code {self._process.exitcode}", 0

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def main(fuzzer: Fuzzer, arguments: Sequence[str] | None = None) -> int:
    """Run a program; the exit code is 1 if an input failed.

    Args:
        fuzzer: What is fed to which reader.
        arguments: Of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{fuzzer.name}")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    counts: Counter[str] = Counter()
    highest, start = 0, time.monotonic()
    child = _Child(fuzzer, folder)
    try:
        for number in range(options.first, options.first + options.inputs):
            path, content = child.input(options.seed, number)
            result, peak = child.run(number, path, content, fuzzer.timeout_s)
            kind = result.partition("\n")[0]
            highest = max(highest, peak)
            if kind in ("accepted", "refused") and peak > fuzzer.memory_mib:
                kind = "memory"
                result = f"memory\n{peak} MiB"
            counts[kind] += 1
            if kind in ("accepted", "refused"):
                continue
            kept = options.keep / f"{fuzzer.name}-{options.seed}-{number}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / path.name).write_bytes(content)
            again = f"--seed {options.seed} --first {number} --inputs 1"
            (kept / "result.txt").write_text(f"{again}\n{result}\n", encoding="utf-8")
            print(f"input {number}, {path.name}: {result.strip()}", flush=True)
            if kind != "traceback":
                child.end()
                shutil.rmtree(folder)
                folder.mkdir()
                child = _Child(fuzzer, folder)
    finally:
        child.end()
        shutil.rmtree(folder, ignore_errors=True)
    kinds = ("accepted", "refused", "traceback", "hang", "crash", "memory")
    rows = [[fuzzer.name, *(f"{counts[kind]:,}" for kind in kinds), f"{highest:,}"]]
    print(plain_table([["program", *kinds, "peak MiB"], *rows]))
    print(f"{options.inputs:,} inputs of seed {options.seed}, {time.monotonic() - start:.0f} s")
    return int(sum(counts.values()) > counts["accepted"] + counts["refused"])
