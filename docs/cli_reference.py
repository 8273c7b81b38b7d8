"""A hook of mkdocs: writes reference/cli.md from the --help of every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ("train",),
    ("train", "webvid-howto"),
    ("finetune",),
    ("finetune", "msrvtt_retrieval"),
    ("finetune", "msrvtt_qa"),
    ("zero-shot",),
    ("prepare",),
    ("unpack",),
    ("check",),
    ("plan",),
    ("plan", "train"),
    ("plan", "data"),
    ("plan", "model"),
    ("convert",),
    ("predict",),
    ("index",),
    ("search",),
    ("app",),
    ("watch",),
    ("report",),
    ("demo",),
    ("train", "own"),
    ("finetune", "own"),
    ("env",),
    ("cloze",),
    ("clusters",),
    ("rolls",),
    ("drill",),
)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated page."""
    pages = ["# Commands\n"]
    for command in ((), *COMMANDS):
        line = [sys.executable, "-m", "allinone", *command, "--help"]
        done = subprocess.run(
            line,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)} failed: {done.stderr[-1000:]}")
        title = " ".join(("allinone", *command))
        pages.append(f"## `{title}`\n\n```text\n{done.stdout.rstrip()}\n```\n")
    files.append(File.generated(config, "reference/cli.md", content="\n".join(pages)))
    return files
