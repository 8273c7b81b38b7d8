"""Run a command: errors become one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from allinone.common.activation import activation_hint
from allinone.common.console import forgive_output, lost_output, setup_logging
from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.common.limits import explain
from allinone.common.surroundings import adapt, say

EXTRAS = {
    **dict.fromkeys(("deepspeed", "megatron", "tensorboard", "grain", "absl", "psutil"), "train"),
    **dict.fromkeys(("pyarrow", "tqdm", "rich"), "train"),
    **dict.fromkeys(("ftfy", "rapidfuzz"), "prepare"),
    **dict.fromkeys(("matplotlib", "jinja2"), "plots"),
    "nvidia": "dali",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Top-level modules that a base installation lacks → the extra that installs them."""


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    An AllInOneError is printed as one line; Ctrl-C gives 130; any other error keeps its traceback
    and gives 1. Output that nobody reads any more does not end the command. Output that could not
    be written, as on a full disk, makes the code of a command that prints its result 1.
    """
    forgive_output()
    setup_logging()
    try:
        say(adapt())
        return int(command() or 0) or _check_output()
    except SystemExit as ended:  # --help, --version, wrong options
        if ended.code or not (code := _check_output()):
            raise
        return code
    except AllInOneError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells report it
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        if limit := explain(error):
            print(f"error: {limit}", file=sys.stderr)
            return int(ExitCode.USAGE)
        if not isinstance(error, ModuleNotFoundError):
            traceback.print_exc()
            return int(ExitCode.FAILURE)
        package = (error.name or "").partition(".")[0]
        if hint := activation_hint():
            print(f"error: the package {package!r} is missing", file=sys.stderr)
            print(f"hint: {hint}", file=sys.stderr)
            return int(ExitCode.USAGE)
        if package not in EXTRAS:
            traceback.print_exc()
            return int(ExitCode.FAILURE)
        print(
            f"error: this command needs the package {package!r}, which is not installed; run: pip"
            f" install 'allinone-pretrain[{EXTRAS[package]}]'",
            file=sys.stderr,
        )
        return int(ExitCode.USAGE)
    except Exception:  # noqa: BLE001 - the last frame of the program
        traceback.print_exc()
        return int(ExitCode.FAILURE)


def _check_output() -> int:
    """The exit code of a command that succeeded but for its output."""
    error = lost_output()
    if error is None:
        return int(ExitCode.OK)
    print(f"error: the output could not be written: {error}", file=sys.stderr)
    return int(ExitCode.FAILURE)
