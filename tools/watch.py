#!/usr/bin/env python3
"""Show a training run in the terminal.

    python tools/watch.py RUN [--interval S] [--once] [--json]

Only the files of the run's folder are read, so this works over ssh, during the run and long after
it. Ctrl-C leaves. --once and --json print once, and so does an output that is not a terminal; they
exit with 0 if the run is starting, running or finished, and with 1 if it has stopped, failed, died
or stalled.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tyro.conf import Positional, arg

from allinone.common.command_line import parse, run_command
from allinone.common.console import terminal_codes
from allinone.common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from allinone.tools.cluster.run_state import History


@dataclass(frozen=True)
class WatchOptions:
    """Options of tools/watch.py."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run (the training's --out)."""
    interval: float = 5.0
    """Seconds between updates, at least 0.1."""
    once: bool = False
    """Print once and exit."""
    json: bool = False
    """Print everything once as one JSON object."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        if not (self.run / "run.json").is_file():
            inside = sorted(path.parent.name for path in self.run.glob("*/run.json"))
            hint = f"; inside it are the runs {', '.join(inside)}" if inside else ""
            raise InputError(
                f"{self.run} is not a run (it has no run.json); give the folder that training got"
                f" as --out{hint}"
            )
        if not 0.1 <= self.interval < math.inf:
            raise InputError(f"--interval is in seconds and at least 0.1, got {self.interval:g}")


def _run(argv: Sequence[str]) -> int:
    options = parse(WatchOptions, argv, prog="tools/watch.py", description=__doc__ or "")
    options.check()
    from rich.console import Console

    from allinone.tools.cluster.run_state import History, state

    history = History(options.run / "history.jsonl")
    console = Console()
    # Live needs cursor movement, which a dumb terminal (TERM=dumb) does not have
    if sys.stdout.isatty() and not (options.once or options.json or console.is_dumb_terminal):
        _follow(options, history, console)
        return 0
    facts = state(options.run, history, time.time())
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        from allinone.tools.cluster.dashboard import render

        colour = console.is_terminal and console.color_system is not None
        with terminal_codes():
            print(render(facts, console.width, colour))
    return int(facts["status"] not in ("running", "finished", "starting"))


def _follow(options: WatchOptions, history: History, console: Console) -> None:
    """Redraw until Ctrl-C; then leave the last state on the screen."""
    from rich.live import Live

    from allinone.tools.cluster.dashboard import Dashboard
    from allinone.tools.cluster.run_state import state

    def dashboard() -> Dashboard:
        """The run as it is now."""
        return Dashboard(state(options.run, history, time.time()), console.width)

    shown = dashboard()
    try:
        # the alternate screen crops what does not fit, also after the terminal has been resized
        live = Live(shown, console=console, screen=True, auto_refresh=False)
        with terminal_codes(), live:
            while True:
                time.sleep(options.interval)
                shown = dashboard()
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        pass
    with terminal_codes():
        console.print(shown, crop=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
