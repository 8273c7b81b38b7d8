"""The planner's figures next to those that tests/engine/measured.py measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from allinone.engine.ds_config import load
from allinone.engine.planning.memory import Zero, groups_of, state_memory, traffic
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.cost import model_activations
from tests.engine.measured import OBJECTIVE, PLANNED, Case, Seen, model_config


@dataclass(frozen=True)
class Line:
    """Planned and measured bytes of the fullest rank (memory) or of one rank (traffic)."""

    what: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """Planned / measured - 1; 0 where both are nothing."""
        return self.planned / self.measured - 1 if self.measured else float(bool(self.planned))


def case_zero(case: Case) -> Zero:
    """The planner's view of a case."""
    zero = Zero.from_config(load(f"zero{case.stage}_{case.precision}"))
    return replace(zero, bucket=case.bucket) if case.bucket else zero


def case_groups(case: Case) -> list[list[int]]:
    """Parameter sizes of a case."""
    with torch.device("meta"):
        return groups_of(AllInOneForPreTraining(model_config(case)))


def compare(case: Case, seen: Sequence[Seen]) -> list[Line]:
    """The planner's figures and the measured ones."""
    groups, zero = case_groups(case), case_zero(case)
    memory = state_memory(groups, case.world, zero, case.accumulation)
    lines = []
    for moment in ("between", "backward", "update"):
        fullest = max(
            (getattr(rank, moment) for rank in seen),
            key=lambda parts: sum(parts[part] for part in PLANNED),
        )
        planned = asdict(getattr(memory, moment))
        lines += [Line(f"{moment}: {part}", planned[part], fullest[part]) for part in PLANNED]
        lines.append(
            Line(f"{moment}: all", sum(planned.values()), sum(fullest[part] for part in PLANNED))
        )
    kept = model_activations(
        model_config(case),
        OBJECTIVE,
        case.micro_batch,
        zero.element,
        zero.element,
        case.checkpointing,
    )
    highest = max(
        sum(rank.between[part] for part in PLANNED) + max(rank.peak_backward, rank.peak_update)
        for rank in seen
    )
    lines.append(
        Line(
            "peak of the step by torch's allocator",
            memory.peak(kept.total, kept.last_pass, kept.working),
            highest,
        )
    )
    sent = traffic(groups, case.world, zero, case.accumulation)
    names = {
        "all_reduce": "all_reduce",
        "all_gather": "all_gather_into_tensor",
        "reduce_scatter": "reduce_scatter_tensor",
    }
    for kind, name in names.items():
        planned_bytes = sum(collective.bytes for collective in sent if collective.name == kind)
        # a norm or a flag is an all-reduce of a few bytes; one rank alone calls collectives that
        # move nothing
        counted = seen[0].collectives.get(name, [0, 0])[1] if case.world > 1 else 0
        # VTC's own: the gradients of all ranks' embeddings, text and video, fp32
        contrast = (
            2
            * case.world
            * case.micro_batch
            * model_config(case).projection_dim
            * 4
            * case.accumulation
        )
        extra = contrast if kind == "all_reduce" and case.world > 1 else 0
        if planned_bytes or counted > 1000:
            lines.append(Line(f"bytes: {kind}", planned_bytes + extra, counted))
        if planned_bytes:
            logged = seen[0].logged.get(name, [0, 0])[1] * (
                case.world if kind == "all_gather" else 1
            )  # the logger notes a rank's share
            lines.append(Line(f"bytes: {kind}, DeepSpeed's logger", planned_bytes, logged))
    return lines
