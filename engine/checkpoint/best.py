"""Selection of the best evaluation of a run, and early stopping."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import ConfigError
from allinone.common.write_guard import WriteGuard
from allinone.engine.distributed.collectives import run_on_rank0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """How the best weights are chosen: by one number of the evaluation, higher is better."""

    metric: str
    """Name of the number among the evaluation's results."""
    patience: int = 0
    """Consecutive evaluations without a better value after which training stops; 0 never stops
    early."""


@dataclass
class _State:
    step: int = 0
    """Step of the best evaluation."""
    value: float | None = None
    """Its value."""
    worse: int = 0
    """Evaluations since the best one."""
    evaluated: int = 0
    """Step of the last evaluation."""


class BestCheckpoint:
    """The best evaluation so far.

    Its state is saved with every checkpoint, and after every evaluation in OUT/best.json
    (OUT/evaluated.json without a selection). From that file, a run that was killed between a
    checkpoint and the evaluation of the same step knows that the evaluation is missing.
    """

    def __init__(self, selection: Selection | None, out: Path) -> None:
        self._selection = selection
        self._file = out / ("best.json" if selection else "evaluated.json")
        self._state = _State()
        self._guard = WriteGuard(self._file)

    def restore(self, saved: Mapping[str, Any] | None, step: int) -> None:
        """Restore the state when a run resumes. Collective.

        Args:
            saved: State in the checkpoint, if any.
            step: Step of the checkpoint. An evaluation of the same step, done after the checkpoint
                was written, takes precedence.
        """
        if self._selection and saved:
            self._state = _State(**saved)
        # one rank reads: a network disk may show the file on one node and not yet on another, and
        # ranks that disagree would not all enter the missing evaluation
        self._state = run_on_rank0(lambda: self._evaluated_after(step)) or self._state

    def _evaluated_after(self, step: int) -> _State | None:
        if not self._file.is_file():
            return None
        try:
            state = _State(**json.loads(self._file.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            log.warning("%s cannot be read (%s): its evaluation is repeated", self._file, error)
            return None
        return state if state.evaluated == step else None

    def state(self) -> dict[str, Any] | None:
        """State for the checkpoint; None without a selection."""
        return asdict(self._state) if self._selection else None

    def needs_eval(self, step: int) -> bool:
        """Whether this step still needs evaluation."""
        # step 0 is a multiple of every interval, but nothing was trained yet
        return 0 < step != self._state.evaluated

    @property
    def exhausted(self) -> bool:
        """Whether training stops early."""
        patience = self._selection.patience if self._selection else 0
        return 0 < patience <= self._state.worse

    def stop_reason(self) -> str:
        """Why training stops early, in a sentence."""
        state, metric = self._state, self._selection.metric if self._selection else ""
        return (
            f"training stops early at step {state.evaluated}: the last {state.worse} evaluations"
            f" were no better than {metric} {state.value} at step {state.step}, whose weights are"
            " kept; --patience 0 trains to the end"
        )

    def update(self, step: int, results: Mapping[str, float]) -> bool:
        """Record an evaluation.

        Args:
            step: The evaluated step.
            results: Name → value; a value that is NaN is never the best.

        Returns:
            Whether this is the best evaluation so far.

        Raises:
            ConfigError: The selected metric is not among the results.
        """
        if self._selection is None:
            self._state.evaluated = step
            return False
        # an error at the first evaluation: that nothing was selected would show at the end only
        if self._selection.metric not in results:
            raise ConfigError(
                f"the evaluation has no {self._selection.metric!r} to select by; it has:"
                f" {', '.join(results)}"
            )
        state, value = self._state, float(results[self._selection.metric])
        state.evaluated = step
        # a NaN as best value would win forever: every later comparison with it is False
        better = value == value and (state.value is None or value > state.value)
        if better:
            state.step, state.value, state.worse = step, value, 0
        else:
            state.worse += 1
        return better

    def save(self) -> None:
        """Write the state to the run's folder. Rank 0 only, after the best weights are written."""
        with self._guard():  # without it, a run that is killed now repeats this evaluation
            write_atomic(self._file, json.dumps(asdict(self._state)) + "\n")

    def __str__(self) -> str:
        if self._selection is None or self._state.value is None:
            return ""
        return f"best {self._selection.metric} {self._state.value:.2f} at step {self._state.step}"
