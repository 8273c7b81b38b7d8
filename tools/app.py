#!/usr/bin/env python3
"""Open a page that searches an index of videos: playing clips, questions, masked words.

    allinone app --index index
    allinone app --index index-a index-b        # compare the models of two indexes

The page is for this machine alone. With --host 0.0.0.0 others reach it, with the token that is
printed; the connection is not encrypted. Only clips of the index are served.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import parse, run_command
from allinone.common.errors import ConfigError, InputError
from allinone.common.validation import Bounds, require
from allinone.tools.inspection.options import Device

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of the command."""

    index: tuple[Path, ...]
    """Folders that `allinone index` wrote; results of several are shown one below the other."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback address needs the token that is printed."""
    port: int = 7860
    """Port to listen on."""
    device: Device = "auto"
    """auto takes the GPU if torch finds one."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require(self, Bounds(1, 65535), ("port",))
        if not self.index:
            raise InputError("--index needs at least one folder")


def _run(argv: Sequence[str]) -> int:
    options = parse(AppOptions, argv, prog="tools/app.py", description=__doc__)
    options.check()
    try:
        import gradio  # noqa: F401 - an extra
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; install the extra:"
            " pip install 'allinone-pretrain[app]'"
        ) from error
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.video_index.app import build_app
    from allinone.tools.video_index.search import Searcher
    from allinone.tools.video_index.store import VideoIndex

    searchers = []
    for folder in options.index:
        index = VideoIndex(folder)
        loaded = load_checkpoint(Path(index.manifest.checkpoint), options.device)
        searchers.append(Searcher(loaded, index))
    token = None if options.host in LOOPBACK else secrets.token_urlsafe(16)
    suffix = "" if token is None else f"?token={token}"
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{shown}:{options.port}/{suffix}  (Ctrl-C ends it)", flush=True)
    application = build_app(searchers, token)
    uvicorn.run(application, host=options.host, port=options.port, log_level="warning")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
