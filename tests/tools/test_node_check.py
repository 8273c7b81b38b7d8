"""The verdict over nodes on made-up measurements; the complete check runs in tests/cluster."""

from __future__ import annotations

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
from allinone.tools.cluster.exchange import edges
from allinone.tools.cluster.gpu_checks import read_clocks
from allinone.tools.cluster.host_checks import check_data, check_disk, options_of
from allinone.tools.cluster.node_result import NodeCheckOptions, NodeResult
from allinone.tools.cluster.node_verdict import judge, suspicious_pairs, verdict
from allinone.tools.node_check import parse

ROOT = Path(__file__).parents[2]
GOOD = 100e9
LIMITS = {"slow": 0.7, "max_clock_s": 5.0}


def ring(
    number: int,
    *,
    rates: Mapping[frozenset[int], float] | None = None,
    facts: Mapping[int, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, object] | None]:
    """Results of `number` healthy nodes, except for the given rates (0: failed) and facts."""
    results = {}
    for me in range(number):
        result = NodeResult(
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


def test_jobs_on_one_node_check_its_disk_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = NodeCheckOptions("run", folder=tmp_path, nodes=tmp_path, min_free_gib=0.0)
    results = [NodeResult("n0") for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_disk, results, [options] * len(results)))
    assert [result.problems for result in results] == [[] for _ in results]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7, 16])
def test_a_node_has_one_partner_per_round_and_two_in_total(nodes: int) -> None:
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


def test_rates_and_clocks_are_compared_with_the_median() -> None:
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


def test_a_node_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    """It starts later than an exchange may take, so its neighbours must wait for it."""
    names = [f"n{number}" for number in range(3)]
    (tmp_path / "nodes").write_text("".join(f"{name} 127.0.0.1\n" for name in names))
    folders = ["--folder", tmp_path, "--nodes", tmp_path / "nodes"]
    limits = f"--port {free_port()} --min-free-gib 0 --min-memory-gib 0 --timeout-s 3".split()
    command = [sys.executable, ROOT / "tools/node_check.py", "run", *folders, *limits]
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
def test_a_node_with_a_bad_link_is_bad_its_neighbours_are_not(rate: float) -> None:
    results = ring(6, rates={frozenset((2, 3)): rate, frozenset((3, 4)): rate})
    assert bad(results) == {"n3": ["all-reduce"]}


def test_one_failed_exchange_names_both_nodes_and_excludes_none() -> None:
    for number in (2, 6):
        results = ring(number, rates={frozenset((0, 1)): 0.0})
        problems = verdict(results, **LIMITS)
        assert not any(problems.values())
        assert suspicious_pairs(problems, results) == {"n0 and n1": "time-out"}


def test_a_silent_or_interrupted_node_is_bad() -> None:
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


def test_judge_writes_good_and_bad_nodes_with_reasons(
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


def test_an_exchange_that_was_cut_off_counts_as_failed(tmp_path: Path) -> None:
    """On a dead link, NCCL or the check's own time limit ends both nodes of an exchange."""
    results = ring(8, rates={frozenset((3, 2)): 0, frozenset((3, 4)): 0})
    for node, partner in ((3, 2), (2, 3)):
        results[f"n{node}"]["doing"] = f"the all-reduce with n{partner}"  # type: ignore[index]
        del results[f"n{node}"]["neighbours"][f"n{partner}"]  # type: ignore[index]
        del results[f"n{node}"]["facts"]["seconds"]  # type: ignore[index]
    assert judge(tmp_path, write(tmp_path, results), **LIMITS) == 0
    assert (tmp_path / "bad").read_text().split() == ["n3"]


def test_a_check_that_starts_nowhere_excludes_no_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for nodes in (1, 4):
        assert judge(tmp_path, [f"n{number}" for number in range(nodes)], **LIMITS) == 1
        assert "the check started on no node" in capsys.readouterr().out
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("check", "code"), [("data", 2), ("disk", 3), ("memory", 1)])
def test_a_problem_of_every_node_excludes_none(tmp_path: Path, check: str, code: int) -> None:
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


def test_data_folders_are_read_from_the_training_command() -> None:
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


def test_a_bucket_that_a_node_cannot_read_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLINONE_CACHE", str(tmp_path))
    command = ("pretrain/train.py", "demo", "--data", "memory://bucket/a:train", "--val", "none")
    options = NodeCheckOptions("run", folder=tmp_path, nodes=tmp_path / "nodes", command=command)
    result = NodeResult("n0")
    check_data(result, options)
    ((check, problem),) = result.problems
    assert check == "data"
    assert problem.startswith("memory://bucket/a is not a finished prepared data set")


@pytest.mark.parametrize(("accelerator", "slow"), [("cpu", 0.1), ("cuda", 0.7)])
def test_options_are_read_up_to_the_training_command(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, slow: float
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    words = "judge --folder f --nodes n --gpus 4 --limit-s 9 -- pretrain/train.py demo --gpus 2"
    assert parse(words.split()) == NodeCheckOptions(
        "judge",
        folder=Path("f"),
        nodes=Path("n"),
        gpus=4,
        slow=slow,
        limit_s=9.0,
        command=("pretrain/train.py", "demo", "--gpus", "2"),
    )


def test_judge_needs_no_third_party_package(tmp_path: Path) -> None:
    """-S leaves site-packages out: the host's Python has none of the project's dependencies."""
    names = write(tmp_path, ring(3))
    (tmp_path / "nodes").write_text("".join(f"{name} 127.0.0.1\n" for name in names))
    tool = str(ROOT / "tools/node_check.py")
    options = ["judge", "--folder", str(tmp_path), "--nodes", str(tmp_path / "nodes")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", tool, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good").read_text().split() == names
