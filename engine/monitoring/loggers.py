"""Where curves and pictures of a run go: the protocol of a logger, Weights & Biases, MLflow.

OUT/loggers.json holds, per logger, the run's id there and the last step that was sent of each kind
of points. A resumed run repeats steps with the same numbers; they are not sent a second time.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import re
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import ConfigError
from allinone.common.options import flatten
from allinone.common.redaction import redact

log = logging.getLogger(__name__)

LOGGERS = "loggers.json"
INIT_TIMEOUT_S = 60.0
"""How long Weights & Biases may take to answer, while the other ranks wait."""
PROJECT = "allinone"
"""Project of Weights & Biases and experiment of MLflow, unless the environment names another."""


class RunLogger(Protocol):
    """Receives the curves and pictures of a run, on rank 0."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Extend curves.

        Args:
            step: To which the values belong.
            values: Tag → value; tags as in engine/monitoring/scalars.py.
        """
        ...

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Add pictures.

        Args:
            step: To which they belong.
            pictures: Name → uint8 [H, W, 3].
        """
        ...

    def close(self, failed: bool) -> None:
        """Send what is left; `failed` says that an error ended the run."""
        ...


def require_installed(names: Iterable[str]) -> None:
    """ConfigError if a logger's package is missing; imports nothing."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"--log-to {name} needs a package that is not installed; install the extra:"
                f" pip install 'allinone-pretrain[{name}]', or choose another --log-to"
            )


class LoggerState:
    """What OUT/loggers.json holds of one logger.

    Args:
        out: The run's folder.
        name: Of the logger.
    """

    def __init__(self, out: Path, name: str) -> None:
        self._path, self._name = out / LOGGERS, name
        known = self._read().get(name, {})
        self._id: str | None = known.get("id")
        self._steps: dict[str, int] = known.get("steps", {})

    def _read(self) -> dict[str, Any]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def _write(self, run_id: str | None, steps: dict[str, int]) -> None:
        # read again: several loggers share the file
        content = self._read() | {self._name: {"id": run_id, "steps": steps}}
        write_atomic(self._path, json.dumps(content, indent=1) + "\n")
        self._id, self._steps = run_id, steps

    @property
    def id(self) -> str | None:
        """The run's id there; None before its first start."""
        return self._id

    def set_id(self, run_id: str) -> None:
        """Remember the run's id."""
        if run_id != self._id:
            self._write(run_id, self._steps)

    def claim(self, kind: str, step: int) -> bool:
        """Whether a step of a kind of points is new; it is remembered before it is sent.

        A kill between the two loses one point; the other order would double it.

        Args:
            kind: Such as "metrics"; kinds are counted apart, because some share steps.
            step: Of the points.
        """
        if step <= self._steps.get(kind, -1):
            return False
        self._write(self._id, self._steps | {kind: step})
        return True


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: redact(value) if isinstance(value, str) else value
        for name, value in flatten(options).items()
    }


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Neither of the two draws NaN; an MLflow database stores infinity as the largest float."""
    return {tag: float(value) for tag, value in values.items() if math.isfinite(value)}


class WandbLogger:
    """A run of Weights & Biases; its files are in OUT/wandb.

    Offline if there is no key for the server (WANDB_API_KEY, ~/.netrc) or if the server does not
    answer; WANDB_MODE decides where it is set.

    Args:
        out: The run's folder.
        run_id: The run's id there.
        options: The run's options, nested.
    """

    def __init__(self, out: Path, run_id: str, options: Mapping[str, Any]) -> None:
        import wandb

        given = os.environ.get("WANDB_MODE")
        mode = given or ("online" if _has_wandb_key(wandb.setup().settings.base_url) else "offline")
        try:
            self._run = self._init(out, run_id, mode)
        except wandb.Error as error:
            if given:
                raise
            log.warning(
                "Weights & Biases does not answer (%s); this launch is stored in %s and can be sent"
                " by `wandb sync`",
                redact(str(error)),
                out / "wandb",
            )
            wandb.teardown()  # its service refuses an id whose first start failed
            self._run = self._init(out, run_id, "offline")
        self._image = wandb.Image
        self._run.config.update(_options(options), allow_val_change=True)
        # wandb's own step only grows, and two calls of one step are two rows
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        where = out / "wandb" if self._run.settings.mode == "offline" else self._run.url
        log.info("Weights & Biases: run %s, %s", run_id, where)

    @staticmethod
    def _init(out: Path, run_id: str, mode: Any) -> Any:
        import wandb

        return wandb.init(
            dir=str(out),
            id=run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", out.resolve().name),
            mode=mode,
            reinit="create_new",  # a user's own run in this process stays as it is
            settings=wandb.Settings(
                console="off",  # the terminal's lines are in OUT/logs
                silent=True,
                disable_code=True,
                # the address of a git remote and Slurm's variables may hold tokens
                disable_git=True,
                x_disable_meta=True,
                login_timeout=30,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=300,  # what is not sent by then stays in OUT/wandb
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See RunLogger."""
        self._run.log({"step": step, **_finite(values)})

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """See RunLogger."""
        # from Pillow: of an array, wandb guesses the range
        images = {name: self._image(Image.fromarray(one)) for name, one in pictures.items()}
        self._run.log({"step": step, **images})

    def close(self, failed: bool) -> None:
        """See RunLogger."""
        self._run.finish(exit_code=int(failed))


def _has_wandb_key(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return urlsplit(server).hostname in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


_READABLE = {"@": "_at_", "%": "_pct_", "+": "_plus_", "&": "_and_"}


def mlflow_key(tag: str) -> str:
    """A tag as MLflow's key, which may hold letters, digits and _ - . : / and space only.

    R@1 becomes R_at_1; other characters become their Unicode number, so that two tags stay two.
    """
    key = re.sub(
        r"[^A-Za-z0-9_\-. :/]",
        lambda found: _READABLE.get(found[0], f"_u{ord(found[0]):04x}_"),
        tag,
    )
    # MLflow's local store keeps a file per key: refuses empty parts, "." and ".."
    parts = (part if part.strip(".") else "_" * (len(part) or 1) for part in key.split("/"))
    return "/".join(parts)


class MlflowLogger:
    """A run of MLflow, in OUT/mlflow unless MLFLOW_TRACKING_URI is set.

    Args:
        out: The run's folder.
        run_id: The run's id there; None makes one.
        options: The run's options, nested; become parameters of a new run.
    """

    def __init__(self, out: Path, run_id: str | None, options: Mapping[str, Any]) -> None:
        # MLflow's own values let a server that is gone block each call for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (out / "mlflow").resolve()
        if local is not None:
            # files and no database: SQLite's locks fail on network disks, and mlflow-skinny has
            # none. MLflow asks for this switch, because its file store gets no new features
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=local and local.as_uri())
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(name)
            )
            run_id = self._client.create_run(number, run_name=out.resolve().name).info.run_id
            params = [
                Param(mlflow_key(name), str(value)) for name, value in _options(options).items()
            ]
            for first in range(0, len(params), 100):  # MLflow's limit per call
                self._client.log_batch(run_id, params=params[first : first + 100])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.id: str = run_id
        artifacts = self._client.get_run(run_id).info.artifact_uri
        # the local store keeps absolute paths: pictures would go to where the folder was
        self._moved = local is not None and not artifacts.startswith(local.as_uri())
        if self._moved:
            log.warning("%s was moved: MLflow gets no more pictures of this run", out)
        log.info("MLflow: run %s, %s", run_id, local or "at MLFLOW_TRACKING_URI")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See RunLogger."""
        now = int(1000 * time.time())
        metrics = [
            self._metric(mlflow_key(tag), value, now, step)
            for tag, value in _finite(values).items()
        ]
        for first in range(0, len(metrics), 1000):  # MLflow's limit per call
            self._client.log_batch(self.id, metrics=metrics[first : first + 1000])

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """See RunLogger."""
        for name, picture in pictures.items():
            if not self._moved:
                self._client.log_image(self.id, picture, key=mlflow_key(name), step=step)

    def close(self, failed: bool) -> None:
        """See RunLogger."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
