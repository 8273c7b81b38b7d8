"""`allinone env`: versions of everything that a bug report needs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from allinone.common.command_line import parse, run_command

PACKAGES = (
    "torch",
    "deepspeed",
    "megatron-core",
    "transformers",
    "safetensors",
    "nvidia-dali-cuda130",
    "av",
    "numpy",
    "pyarrow",
    "tyro",
)
TIMEOUT_S = 20
"""Seconds that a program may take to print its version."""


@dataclass(frozen=True)
class EnvOptions:
    """Options of `allinone env`."""

    torch: bool = True
    """Import torch to ask for CUDA and GPUs, which takes seconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    options = parse(
        EnvOptions, argv, prog="allinone env", description="Print versions for a bug report."
    )
    for name, value in versions(ask_torch=options.torch).items():
        print(f"{name:<20} {value}")


def versions(*, ask_torch: bool = True) -> dict[str, str]:
    """Name → version, or why it is unknown. Nothing here may fail."""
    from allinone import __version__

    found = {
        "allinone": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "os": _os_name(),
    }
    found |= {name: _package(name) for name in PACKAGES}
    found["apex"] = _apex()
    found["ffmpeg"] = _first_line("ffmpeg", "-version")
    found["nvidia driver"] = _first_line(
        "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
    )
    return found | (_torch_facts() if ask_torch else {})


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    return f"{name or platform.system()}, kernel {platform.release()}, {os.cpu_count()} cores"


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _apex() -> str:
    """NVIDIA's apex ships FusedAdam in `apex/optimizers`; PyPI's package of that name does not."""
    version = _package("apex")
    if version == "not installed":
        return version
    # from the list of installed files: importing it would load CUDA extensions
    files = [str(file) for file in metadata.files("apex") or ()]
    real = any(file.startswith("apex/optimizers/") for file in files)
    return f"{version} ({'NVIDIA apex' if real else 'not NVIDIA apex: the PyPI package'})"


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not found"
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed ({error})"
    # some programs print their version to stderr
    return (ended.stdout.strip() or ended.stderr.strip() or "no output").splitlines()[0]


def _torch_facts() -> dict[str, str]:
    """CUDA and GPUs as torch sees them."""
    try:
        import torch

        cuda = torch.version.cuda or "CPU build"
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # noqa: BLE001 - a broken installation is what this command reports
        return {"cuda": f"torch cannot be imported ({type(error).__name__}: {error})"}
    return {"cuda": cuda, "gpus": ", ".join(gpus) or "none"}


if __name__ == "__main__":
    sys.exit(main())
