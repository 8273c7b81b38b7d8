"""Starts a fork server (tests/fork_server.py) for a test.

Its command replaces `python SCRIPT ARGUMENTS` without the seconds of imports.
"""

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


def rank_env(rank: int = 0, world: int = 1, port: str = "") -> dict[str, str]:
    """Environment of a rank on this machine's CPU; without `port` it is a run of one process.

    Args:
        rank: This rank.
        world: Number of ranks.
        port: Where they meet.
    """
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    if port:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return env


class ForkServer:
    """A server that starts to import `modules` in the background.

    Args:
        folder: Where its socket and its log are written.
        modules: Modules that ranks need.
        env: Its environment.
    """

    def __init__(self, folder: Path, modules: Sequence[str], env: Mapping[str, str]) -> None:
        self._socket = folder / "ranks.sock"
        self._log = folder / "fork_server.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                # -P: otherwise the folder tests/ comes first, and `engine` would be tests/engine
                [sys.executable, "-P", PROGRAM, "serve", self._socket, ",".join(modules)],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 180) -> None:
        """Wait until ranks can be started."""
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
        """The command to use instead of [python, *words], where the first word is a script.

        Its process forwards signals to the rank and ends with the rank's exit code.
        """
        assert self._process.poll() is None, f"the fork server has ended: {self._log.read_text()}"
        return [sys.executable, "-I", "-S", str(PROGRAM), "run", str(self._socket), *words]

    def close(self) -> None:
        """End the server, and ranks that a failed test has left running."""
        with contextlib.suppress(ProcessLookupError):  # the process group has already ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
