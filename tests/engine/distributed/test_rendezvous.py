"""Ranks that cannot meet end at once, or within a stated time, in one line and with code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from allinone.engine.distributed.launch import free_port
from tests.forked import ROOT

PROGRAM = """
import sys
from allinone.engine.distributed import launch, rendezvous
rendezvous.JOIN_LOCAL_S = 4.0
rendezvous.JOIN_S = 4.0
rendezvous.REMIND_S = 1.0
def run():
    launch.start("cpu", 60.0)
    import psutil, torch
    torch.distributed.all_reduce(torch.ones(1))
    open_ports = [found.laddr.ip for found in psutil.Process().net_connections()
                  if found.status == "LISTEN"]
    print("LISTENING", set(open_ports) <= {"127.0.0.1", "::1"})
sys.exit(launch.main(run))
"""
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")


def start(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**plain, "DS_ACCELERATOR": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def error_of(ended: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    return next(line for line in ended.stderr.splitlines() if line.startswith("error: "))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "would wait for 1 others, but MASTER_ADDR"),
        ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "there is no such rank"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, it is 'two'"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "tcp://10.0.0.1:80"},
            "MASTER_PORT must be a number",
        ),
    ],
)
def test_leftover_variables_are_refused_at_once(env: dict[str, str], said: str) -> None:
    assert said in error_of(start(env))


def test_one_process_needs_no_port() -> None:
    taken = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for env in ({}, taken):
        ended = start(env)
        assert ended.returncode == 0, ended.stderr
        assert "LISTENING True" in ended.stdout  # on the loopback interface at most


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_waits_alone_says_for_whom_and_ends(rank: str) -> None:
    port = str(free_port())
    env = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = start(env)
    assert f"at 127.0.0.1:{port}" in error_of(ended)
    other = "1 other rank" if rank == "0" else "rank 0"
    assert f"waits for {other} at 127.0.0.1:{port}, at most 4 s" in ended.stdout + ended.stderr


def test_a_missing_rank_of_a_launcher_may_be_a_broken_node() -> None:
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "CROSS_RANK": "0"}
    error_of(start({**env, "MASTER_PORT": str(free_port())}), code=1)


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket(socket.AF_INET6) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        server.listen()
        yield str(server.getsockname()[1])


def test_a_port_in_use_is_named(taken_port: str) -> None:
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken_port}
    said = error_of(start(env))
    assert f"cannot listen at 127.0.0.1:{taken_port}" in said
    assert "MASTER_PORT" in said
