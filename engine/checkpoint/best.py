"""Which evaluation of a run was the best one, and when there is nothing more to wait for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import ConfigError
from allinone.engine.distributed.collectives import run_on_rank0


@dataclass(frozen=True)
class Selection:
    """How the best weights are chosen: by one number of the evaluation, the higher the better."""

    metric: str
    patience: int = 0
    """Evaluations in a row without a better value after which training stops; 0 never stops
    early."""


@dataclass
class _State:
    step: int = 0
    value: float | None = None
    worse: int = 0
    """Evaluations since the best one."""
    evaluated: int = 0
    """Step of the last evaluation."""


class BestCheckpoint:
    """The best evaluation so far. Its state is saved with every checkpoint, and in OUT/best.json
    after every evaluation (OUT/evaluated.json where nothing is selected): a run that was killed
    between a checkpoint and the evaluation of the same step makes up for it.
    """

    def __init__(self, selection: Selection | None, out: Path) -> None:
        self._selection, self._file = (
            selection,
            out / ("best.json" if selection else "evaluated.json"),
        )
        self._state = _State()

    def restore(self, saved: Mapping[str, Any] | None, step: int) -> None:
        """Take the state of the checkpoint of this step, or that of a later evaluation of the very
        same step. Collective."""
        if self._selection and saved:
            self._state = _State(**saved)
        self._state = run_on_rank0(lambda: self._later(step)) or self._state

    def _later(self, step: int) -> _State | None:
        if not self._file.is_file():
            return None
        state = _State(**json.loads(self._file.read_text()))
        return state if state.evaluated == step else None

    def state(self) -> dict[str, Any] | None:
        """For the checkpoint; None where nothing is selected."""
        return asdict(self._state) if self._selection else None

    def lacks(self, step: int) -> bool:
        """Whether the evaluation of this step would be news."""
        return 0 < step != self._state.evaluated

    @property
    def exhausted(self) -> bool:
        """Whether to stop early."""
        patience = self._selection.patience if self._selection else 0
        return 0 < patience <= self._state.worse

    def judge(self, step: int, results: Mapping[str, float]) -> bool:
        """Whether these results are the best so far. ConfigError where the metric is not among
        them."""
        if self._selection is None:
            self._state.evaluated = step
            return False
        if self._selection.metric not in results:
            raise ConfigError(
                f"the evaluation gives no {self._selection.metric!r} to select by; it gives:"
                f" {', '.join(results)}"
            )
        state, value = self._state, float(results[self._selection.metric])
        state.evaluated = step
        better = value == value and (state.value is None or value > state.value)
        if better:
            state.step, state.value, state.worse = step, value, 0
        else:
            state.worse += 1
        return better

    def remember(self) -> None:
        """Rank 0, after the best weights are written: the state as of now."""
        write_atomic(self._file, json.dumps(asdict(self._state)) + "\n")

    def __str__(self) -> str:
        if self._selection is None or self._state.value is None:
            return ""
        return f"best {self._selection.metric} {self._state.value:.2f} at step {self._state.step}"
