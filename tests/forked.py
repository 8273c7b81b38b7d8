"""A fork server as a test starts it: what stands for `python SCRIPT ARGUMENTS`, without the seconds
of imports (tests/fork_server.py)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "fork_server.py"


class ForkServer:
    """Imports `modules` at once, in the background; its socket and its log lie in `folder`."""

    def __init__(self, folder: Path, modules: Sequence[str], env: Mapping[str, str]) -> None:
        self._socket, self._log = folder / "ranks.sock", folder / "fork_server.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                # -P: in tests/, engine would be tests/engine
                [sys.executable, "-P", PROGRAM, "serve", self._socket, ",".join(modules)],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 180) -> None:
        """Ranks can be started from now on."""
        end = time.monotonic() + timeout_s
        while "READY" not in self._log.read_text():
            assert self._process.poll() is None, (
                f"the fork server has ended: {self._log.read_text()}"
            )
            assert time.monotonic() < end, (
                f"after {timeout_s:g} s the fork server is not ready: {self._log.read_text()}"
            )
            time.sleep(0.1)

    def command(self, *words: str) -> list[str]:
        """Stands for [python, *words], whose first is a script; the process ends as the rank does
        and passes signals on."""
        return [sys.executable, "-I", "-S", str(PROGRAM), "run", str(self._socket), *words]

    def close(self) -> None:
        """End the server, and ranks that a failed test has left."""
        with contextlib.suppress(
            ProcessLookupError
        ):  # it has ended, and been seen to: the group that it leads has gone with it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
