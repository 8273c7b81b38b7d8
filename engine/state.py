"""The state of a run that a checkpoint saves besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from allinone.engine.monitoring.accumulator import IntervalMetrics


@dataclass
class TrainState:
    """Progress of a run; run.json of a checkpoint holds every field."""

    step: int = 0
    """Finished optimizer steps."""
    skipped: int = 0
    """Of these, steps that changed nothing because the gradient was not finite."""
    skipped_in_a_row: int = 0
    """Skipped steps since the last one that was not."""
    digest: int = 0
    """Hash of all clips and random choices up to the last logging interval, over all ranks."""
    bad_clips: int = 0
    """Replaced clips up to the last logging interval, over all ranks."""
    best: dict[str, Any] | None = None
    """State of the best-weight selection; None without one."""

    @classmethod
    def from_checkpoint(cls, facts: Mapping[str, Any]) -> TrainState:
        """The state in run.json of a checkpoint."""
        names = {field.name for field in fields(cls)} & facts.keys()
        return cls(**{name: facts[name] for name in names})

    def progress(self) -> dict[str, int]:
        """The fields that describe the last step."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def totals(self) -> dict[str, Any]:
        """The fields that a resumed run continues."""
        return {"digest": self.digest, "bad_clips": self.bad_clips, "best": self.best}

    def add_interval(self, interval: IntervalMetrics) -> None:
        """Update the counts after a logging interval."""
        for skip in interval.skips:
            self.skipped += skip
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skip else 0
        self.digest, self.bad_clips = interval.digest, interval.bad_clips
