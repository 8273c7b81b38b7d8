"""The GPU check on a CPU: every stage runs, and faults of a stage stay in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from allinone.tools import report as report_command
from allinone.tools.reporting import gpu_report
from tests.benchmarks.step_trace import covered, kind_of
from tests.gpu.check import STAGES, CheckOptions, run
from tests.gpu.stage import StageSpec
from tests.gpu.sync import GraphScan

pytestmark = pytest.mark.slow
FAULTY = StageSpec("faulty", "faulty", "tests.gpu.faulty", 60, 5)
MISSING = StageSpec("missing", "missing", "tests.gpu.no_such_module", 30, 30)


def test_every_stage_runs_on_a_cpu_and_faults_stay_in_theirs(tmp_path: Path) -> None:
    options = CheckOptions(
        device="cpu", size="nano", micro_batch=2, steps=3, time_scale=3.0, out=tmp_path / "out"
    )
    # faults first: all other stages run after them; their limits are not scaled for the hang
    faulty = replace(FAULTY, limit_s=FAULTY.limit_s / 3, check_s=FAULTY.check_s / 3)
    run(options, [MISSING, faulty, *STAGES])
    report = gpu_report.read(tmp_path / "out" / gpu_report.REPORT)
    stages = {stage.name: stage for stage in report.stages}
    assert list(stages) == ["missing", "faulty", *(spec.name for spec in STAGES)]
    assert not report.passed
    assert stages["missing"].state == "crashed"
    assert "no_such_module" in stages["missing"].log
    states = {check.name: check.state for check in stages["faulty"].checks}
    assert states == {
        "first": "passed", "crash": "crashed", "hang": "timed out", "fail": "failed",
        "absent": "skipped", "last": "measured",
    }  # fmt: skip
    assert stages["faulty"].state == "crashed"
    assert "SIGKILL" in stages["faulty"].reason
    assert "faulty.py" in stages["faulty"].log, "the log says where the check hung"
    for spec in STAGES:
        stage = stages[spec.name]
        assert stage.state == "passed", (stage.reason, stage.checks, stage.log)
        assert stage.limit_s == 3 * spec.limit_s
        assert all(check.summary for check in stage.checks)
    speed = next(check for check in stages["speed"].checks if check.name == "eager")
    assert speed.values["trace"]["kinds"].keys() >= {"GEMM", "attention", "memory-bound"}
    graphs = next(c for c in stages["sync"].checks if c.name == "operators that wait, compiled")
    # four blocks, forward and backward
    assert graphs.values["runs_per_step"] == 2 * 4
    assert report.versions["torch"]
    page = (tmp_path / "out" / gpu_report.PAGE).read_text()
    assert "&lt;b&gt;1 &amp; 2" in page
    assert "<b>1" not in page
    assert not (tmp_path / "out" / "work").exists()


def test_a_wait_in_a_compiled_graph_is_counted() -> None:
    scan, x = GraphScan(), torch.ones(3)
    graph = make_fx(lambda x: torch.nonzero(x * 2))(x)
    run = scan._compile(graph, (x,))
    assert scan.counts == {"nonzero() in a graph": 1}
    assert run([x]).shape == (3, 1)
    assert scan.runs == 1


def gpu(name: str, summary: str) -> gpu_report.GpuReport:
    check = gpu_report.Check("eager", "measured", summary)
    stage = gpu_report.Stage("speed", "(d) speed", "passed", 1.0, 9.0, [check])
    return gpu_report.GpuReport(
        gpu_report.FORMAT, "2026-01-02T03:04:05+00:00", 1.0, {}, name, {"torch": "2"}, [stage]
    )


def test_a_report_replaces_the_rows_of_its_gpu_only(tmp_path: Path) -> None:
    page = tmp_path / "status.md"
    page.write_text(Path("docs/status.md").read_text())
    outside = page.read_text().split(gpu_report.BEGIN)[0]
    for number, (name, summary) in enumerate(
        [("NVIDIA H100", "old"), ("NVIDIA A100", "a | <b>"), ("NVIDIA H100", "new")]
    ):
        gpu_report.write(gpu(name, summary), tmp_path / str(number))
        file = str(tmp_path / str(number) / gpu_report.REPORT)
        assert report_command.main(["status", file, "--page", str(page)]) == 0
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| NVIDIA")]
    assert [row.split(" (")[0] for row in rows] == ["| NVIDIA A100", "| NVIDIA H100"]
    assert "a \\| &lt;b>" in rows[0]
    assert "new" in rows[1]
    assert "eager old" not in text
    assert gpu_report.NOTHING not in text
    assert text.startswith(outside)
    assert report_command.main(["status", file, "--page", str(page)]) == 0
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{}", "is not a report"), (b"[", "is not a report"), (None, "cannot read")],
)
def test_status_refuses_files_that_are_no_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert report_command.main(["status", str(path), "--page", str(tmp_path / "p")]) == 2
    assert reason in capsys.readouterr().err


def test_status_refuses_the_report_of_a_cpu(tmp_path: Path) -> None:
    gpu_report.write(gpu("CPU", "x"), tmp_path)
    path = tmp_path / gpu_report.REPORT
    assert json.loads(path.read_text())["device"] == "CPU"
    assert report_command.main(["status", str(path), "--page", "docs/status.md"]) == 2


def test_idle_time_is_what_no_kernel_covers() -> None:
    assert covered([(0, 4), (2, 5), (3, 4), (7, 9)]) == 7


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(...)", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_TNN", "GEMM"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "GEMM"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "communication"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_layer_norm_kernel<...>", "memory-bound"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
    ],
)
def test_kernels_are_sorted_by_kind(name: str, kind: str) -> None:
    assert kind_of(name, on_gpu=True) == kind
