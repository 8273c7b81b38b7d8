"""The verdict over nodes, on made-up measurements; the check itself runs in tests/cluster."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from allinone.engine.distributed.launch import free_port
from allinone.tools.cluster.node_verdict import judge, suspicious_pairs, verdict
from allinone.tools.node_check import Result, check_disk, edges, options_of, read_clocks

ROOT = Path(__file__).parents[2]
GOOD = 100e9
LIMITS = {"slow": 0.7, "max_clock_s": 5.0}


def ring(
    number: int,
    *,
    rates: Mapping[frozenset[int], float] | None = None,
    facts: Mapping[int, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, object] | None]:
    """What `number` healthy nodes find, but for the rates (0: failed) and facts that are given."""
    results = {}
    for me in range(number):
        result = Result(
            f"n{me}", doing="", facts={"matmul": 1e14, "seconds": 2.0, **(facts or {}).get(me, {})}
        )
        for _, a, b in edges(number):
            if me in (a, b):
                other = b if me == a else a
                rate = (rates or {}).get(frozenset((me, other)), GOOD)
                result.neighbours[f"n{other}"] = (
                    {"rate": rate, "clock_s": 0.0} if rate else {"error": "time-out"}
                )
        results[result.node] = json.loads(json.dumps(asdict(result)))
    return results


def bad(results: dict[str, dict[str, object] | None]) -> dict[str, list[str]]:
    """Bad node → the checks that it failed."""
    found = verdict(results, **LIMITS)
    return {name: [check for check, _ in problems] for name, problems in found.items() if problems}


def test_jobs_that_share_a_node_check_its_disk_at_the_same_time_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    args = argparse.Namespace(folder=tmp_path, min_free_gib=0.0)
    results = [Result("n0") for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_disk, results, [args] * len(results)))
    assert [result.problems for result in results] == [[] for _ in results]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7, 16])
def test_in_every_round_of_the_ring_a_node_has_one_partner_and_two_in_all(nodes: int) -> None:
    partners: dict[int, list[int]] = {node: [] for node in range(nodes)}
    rounds: dict[tuple[int, int], int] = {}
    for number, a, b in edges(nodes):
        for node in (a, b):
            rounds[number, node] = rounds.get((number, node), 0) + 1
        partners[a].append(b)
        partners[b].append(a)
    assert set(rounds.values()) <= {1}
    assert all(len(set(others)) == min(2, nodes - 1) for others in partners.values())


def test_healthy_nodes_are_good() -> None:
    assert bad(ring(16)) == {}


def test_slow_gpus_a_braked_clock_and_a_slow_inner_all_reduce_are_compared_with_the_median() -> (
    None
):
    healthy = {"inner_all_reduce": 2e11, "sm_clock_mhz": 1400.0}
    facts = {node: dict(healthy) for node in range(5)}
    facts[1]["matmul"] = 0.6e14
    facts[2]["sm_clock_mhz"] = 345.0
    facts[3]["inner_all_reduce"] = 1e11
    facts[4]["matmul"] = 0.8e14
    assert bad(ring(5, facts=facts)) == {
        "n1": ["matmul"],
        "n2": ["sm_clock_mhz"],
        "n3": ["inner_all_reduce"],
    }


def test_a_node_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """By longer than an exchange may take: without that, it would find its neighbours gone."""
    names = [f"n{number}" for number in range(3)]
    (tmp_path / "nodes").write_text("".join(f"{name} 127.0.0.1\n" for name in names))
    command = [
        sys.executable,
        ROOT / "tools/node_check.py",
        "run",
        "--folder",
        tmp_path,
        "--nodes",
        tmp_path / "nodes",
    ]
    command += [
        "--port",
        str(free_port()),
        "--min-free-gib",
        "0",
        "--min-memory-gib",
        "0",
        "--timeout-s",
        "3",
    ]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = []
    for name in names:
        nodes.append(subprocess.Popen([*map(str, command)], env={**env, "SLURMD_NODENAME": name}))
        time.sleep(10 if name == "n1" else 0)
    assert [node.wait(60) for node in nodes] == [0, 0, 0]
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert all(
        "rate" in found for result in results.values() for found in result["neighbours"].values()
    ), results
    assert all(len(result["neighbours"]) == 2 for result in results.values())


@pytest.mark.parametrize("rate", [0.0, 0.1 * GOOD])
def test_a_node_whose_link_is_dead_or_slow_is_bad_and_its_neighbours_are_not(rate: float) -> None:
    results = ring(6, rates={frozenset((2, 3)): rate, frozenset((3, 4)): rate})
    assert bad(results) == {"n3": ["all-reduce"]}


def test_of_one_failed_exchange_neither_side_is_bad_but_both_are_named() -> None:
    for number in (2, 6):
        results = ring(number, rates={frozenset((0, 1)): 0.0})
        problems = verdict(results, **LIMITS)
        assert not any(problems.values())
        assert suspicious_pairs(problems, results) == {"n0 and n1": "time-out"}


def test_a_node_that_said_nothing_or_stopped_in_a_check_is_bad() -> None:
    results = ring(5, rates={frozenset((0, 1)): 0.0, frozenset((1, 2)): 0.0})
    results["n1"] = None
    results["n3"]["doing"] = "the check of disk"  # type: ignore[index]
    assert bad(results) == {"n1": ["start", "all-reduce"], "n3": ["hang"]}


def test_a_node_whose_clock_differs_from_both_neighbours_is_bad() -> None:
    results = ring(5)
    for node, other, differs in (
        ("n2", "n1", 60),
        ("n2", "n3", 60),
        ("n1", "n2", -60),
        ("n3", "n2", -60),
    ):
        results[node]["neighbours"][other]["clock_s"] = differs  # type: ignore[index]
    assert bad(results) == {"n2": ["all-reduce"]}


def write(folder: Path, results: dict[str, dict[str, object] | None]) -> list[str]:
    for name, result in results.items():
        if result is not None:
            (folder / f"{name}.json").write_text(json.dumps(result))
    return list(results)


def test_the_judge_writes_who_is_good_and_says_why_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ring(4)
    results["n1"]["problems"] = [("gpus", "7 of 8 GPUs are visible")]  # type: ignore[index]
    (tmp_path / "node-1.log").write_text("NVRM: Xid 79\n")
    assert judge(tmp_path, write(tmp_path, results), **LIMITS) == 0
    assert (tmp_path / "good").read_text().split() == ["n0", "n2", "n3"]
    assert (tmp_path / "bad").read_text().split() == ["n1"]
    assert (
        "n1  bad: 7 of 8 GPUs are visible (its last words: NVRM: Xid 79)" in capsys.readouterr().out
    )


def test_nodes_that_were_cut_off_in_an_exchange_are_judged_by_it(tmp_path: Path) -> None:
    """A dead link: NCCL, or the check's own time limit, ends both ends of an exchange."""
    results = ring(8, rates={frozenset((3, 2)): 0, frozenset((3, 4)): 0})
    for node, partner in ((3, 2), (2, 3)):
        results[f"n{node}"]["doing"] = f"the all-reduce with n{partner}"  # type: ignore[index]
        del results[f"n{node}"]["neighbours"][f"n{partner}"]  # type: ignore[index]
        del results[f"n{node}"]["facts"]["seconds"]  # type: ignore[index]
    assert judge(tmp_path, write(tmp_path, results), **LIMITS) == 0
    assert (tmp_path / "bad").read_text().split() == ["n3"]


def test_a_check_that_starts_nowhere_leaves_no_node_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for nodes in (1, 4):
        assert judge(tmp_path, [f"n{number}" for number in range(nodes)], **LIMITS) == 1
        assert "the check started on no node" in capsys.readouterr().out
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("check", "code"), [("data", 2), ("disk", 3), ("memory", 1)])
def test_what_is_wrong_on_every_node_is_no_nodes_fault(
    tmp_path: Path, check: str, code: int
) -> None:
    results = ring(3)
    for result in results.values():
        result["problems"] = [(check, "is wrong")]  # type: ignore[index]
    assert judge(tmp_path, write(tmp_path, results), **LIMITS) == code
    assert not (tmp_path / "bad").exists()


def test_clocks_and_brakes_are_read_from_nvidia_smi() -> None:
    shown = (
        "0, 1410, 0x0000000000000004, 0\n1, 345, 0x0000000000000048, 0\n2, 1400, [N/A], 3\n3,"
        " [N/A], Not Active, [N/A]\n"
    )
    clocks, problems = read_clocks(shown)
    assert clocks == [1410.0, 345.0, 1400.0]
    assert problems == [
        "GPU 1: hardware slowdown, 345 MHz",
        "GPU 1: too hot (hardware), 345 MHz",
        "GPU 2: 3 uncorrected memory errors",
    ]


def test_data_folders_are_read_from_the_command_as_the_trainer_reads_it() -> None:
    command = [
        "pretrain/train.py",
        "webvid-howto",
        "--data",
        "a",
        "b:train=2",
        "--val",
        "--out=run",
        "--steps",
        "3",
    ]
    assert options_of(command) == {
        "data": ["a", "b:train=2"],
        "val": [],
        "out": ["run"],
        "steps": ["3"],
    }
