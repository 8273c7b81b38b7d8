"""How a start in a run folder continues: the one place that decides it and explains the decision.

| folder                                              | decision                                  |
| --------------------------------------------------- | ----------------------------------------- |
| missing, empty, or only files that precede training | new run                                   |
| a run with compatible options, no checkpoint        | new run                                   |
| a run with compatible options and a checkpoint      | resume from the newest complete one       |
| ... whose newest checkpoints are damaged            | resume from the one before; the damaged   |
|                                                     | ones are renamed to damaged-step-*        |
| ... all of whose checkpoints are damaged            | refused                                   |
| ... at another layout that is not supported         | refused; names an alternative             |
| a run with other options                            | refused; lists each option, old → new     |
| a run whose data, labels or tokenizer had other     | refused; names what has changed, unless   |
| content                                             | --accept-changed-data is given            |
| other content                                       | refused                                   |

Which options are compatible is metadata of their fields (allinone/common/options.py). Of what a run
reads, run.json holds fingerprints: the content decides, and the place may change. Rank 0 calls
`decide`; the state itself is loaded by engine/checkpoint/manager.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from allinone.common.atomic_io import TEMPORARY, write_atomic
from allinone.common.errors import AllInOneError, ConfigError
from allinone.common.options import (
    INPUTS,
    UNCHANGED,
    OptionInfo,
    RunOptions,
    flatten,
    option_infos,
)
from allinone.common.run_lock import LOCK
from allinone.data.config import DatasetSpec
from allinone.engine import ds_config
from allinone.engine.checkpoint import reshard
from allinone.engine.checkpoint.best import BestCheckpoint
from allinone.engine.checkpoint.layout import (
    CHECKPOINTS,
    RUN,
    CheckpointError,
    checkpoints,
    step_of,
)
from allinone.engine.checkpoint.manifest import newest_complete, set_aside
from allinone.engine.config import RENAMED, TrainConfig, every

MAY_PRECEDE = frozenset({"bad_clips", "cache", "logs", "results", "predictions", "slurm", LOCK})
"""Entries that a run folder may hold before training starts."""
_PREFIX = "train."
"""Where the options of TrainConfig are stored in run.json."""


@dataclass(frozen=True)
class OptionChange:
    """An option whose value differs from that of the run folder."""

    name: str
    """Dotted, as in run.json: train.lr."""
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old} → {self.new}"


@dataclass(frozen=True)
class Comparison:
    """The options of a run folder against those of the command that resumes it."""

    refused: list[OptionChange]
    """Changes that would change what is computed."""
    allowed: list[OptionChange]
    """Changes of speed, memory, output, evaluation or layout."""
    unknown: list[str]
    """Recorded options that this version does not have; ignored."""


@dataclass(frozen=True)
class Decision:
    """How a start in a run folder continues."""

    kind: Literal["fresh", "resume", "refused"]
    out: Path
    checkpoint: Path | None = None
    """Verified checkpoint to resume from."""
    damaged: tuple[str, ...] = ()
    """A sentence on each damaged checkpoint that is newer than `checkpoint`."""
    changed: tuple[OptionChange, ...] = ()
    """Options that differ from the run folder and may."""
    unknown: tuple[str, ...] = ()
    """Recorded options that this version does not have."""
    layout_change: str = ""
    """Differences between the checkpoint's layout and this run's, in words."""
    refusal: AllInOneError | None = field(default=None, compare=False)
    """Why the start is refused, and what to do instead."""

    @property
    def step(self) -> int:
        """Last finished step; 0 for a new run."""
        return step_of(self.checkpoint) if self.checkpoint else 0

    def explain(self) -> str:
        """The decision in one line per fact."""
        if self.kind == "refused":
            return f"refused: {self.refusal}"
        if self.checkpoint is None:
            lines = [f"new run in {self.out}"]
        else:
            lines = [f"resuming {self.out} after step {self.step}, from {self.checkpoint}"]
        lines += self.damaged
        if self.layout_change:
            lines.append(f"its state is redistributed: {self.layout_change}")
        if self.changed:
            lines.append(f"changed options: {'; '.join(map(str, self.changed))}")
        if self.unknown:
            lines.append(f"ignored options of another version: {', '.join(self.unknown)}")
        return "\n".join(lines)


def decide(
    out: Path,
    run_config: Mapping[str, Any],
    layout: Mapping[str, Any] | None = None,
    *,
    accept_changed: bool = False,
) -> Decision:
    """Decide how a start continues and claim the folder for it. Rank 0 only, before the engine.

    Writes OUT/run.json and renames damaged checkpoints that are newer than the one resumed from.

    Args:
        out: The run's folder.
        run_config: Options of this start, normally `RunOptions`. With any other mapping only the
            policies of TrainConfig are known, for the options under "train".
        layout: Layout of this start (`reshard.identity`); None leaves the check to `manager.load`.
        accept_changed: Continue although what the run reads has changed (--accept-changed-data).

    Returns:
        The decision; its kind is "fresh" or "resume".

    Raises:
        ConfigError: The folder holds a run with other options or of other data, or other content.
        CheckpointError: All checkpoints are damaged, or the newest one cannot be loaded at this
            layout.
    """
    inputs = fingerprints(run_config)
    decision = _examine(out, run_config, layout, inputs, accept_changed)
    if decision.refusal is not None:
        raise decision.refusal
    set_aside(_newer_than(decision.checkpoint, out))
    record = {**run_config, **({INPUTS: inputs} if inputs else {})}
    write_atomic(out / RUN, json.dumps(record, indent=1) + "\n")
    return decision


def examine(
    out: Path,
    run_config: Mapping[str, Any],
    layout: Mapping[str, Any] | None = None,
    *,
    accept_changed: bool = False,
) -> Decision:
    """As `decide`, but nothing is written, and a refusal is returned instead of raised."""
    return _examine(out, run_config, layout, fingerprints(run_config), accept_changed)


def foreign_content(out: Path) -> ConfigError | None:
    """Why a folder is not this program's; None for a run, and for a folder that may become one."""
    if (out / RUN).exists() or not out.exists():
        return None
    others = [path.name for path in out.iterdir() if path.name not in MAY_PRECEDE]
    if all(name.startswith(f"{TEMPORARY}{LOCK}") for name in others):
        return None
    return ConfigError(
        f"{out} is not empty and contains no run of this program; give another --out"
    )


def fingerprints(run_config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the run reads, as run.json records it: key → what, name, option and digests."""
    inputs = run_config.inputs if isinstance(run_config, RunOptions) else {}
    return {
        key: {
            "what": given.what,
            "name": given.name,
            "option": given.option,
            "digests": dict(given.digests()),
        }
        for key, given in inputs.items()
    }


def _examine(
    out: Path,
    run_config: Mapping[str, Any],
    layout: Mapping[str, Any] | None,
    inputs: Mapping[str, Mapping[str, Any]],
    accept_changed: bool,
) -> Decision:
    record = out / RUN
    if (foreign := foreign_content(out)) is not None:
        return Decision("refused", out, refusal=foreign)
    if not record.exists():
        return Decision("fresh", out)
    recorded = json.loads(record.read_text())
    differing = changed_inputs(recorded.get(INPUTS, {}), inputs)
    verified = {given["option"] for key, given in inputs.items() if key in recorded.get(INPUTS, {})}
    found = compare_options(recorded, run_config, verified, accept_changed=accept_changed)
    if found.refused:
        hints = list(differing)
        if any(change.name == "train.steps" for change in found.refused):
            # the learning rate has fallen to 0 at the last step, so more steps are another schedule
            hints.append(
                f"--steps is part of the learning rate's schedule. To train longer, start a new run"
                f" from these weights: {_from_weights(run_config)} {out} --out NEW"
            )
        error = ConfigError(
            f"{out} holds a run with other options ({'; '.join(map(str, found.refused))}). Give the"
            " same options to continue it, or another --out",
            hint="; ".join(hints),
        )
        return Decision("refused", out, refusal=error)
    if differing and not accept_changed:
        error = ConfigError(
            f"{out} holds a run of other data: {'; '.join(differing)}. Give the data with which it"
            " started, or another --out; --accept-changed-data continues with the new data"
        )
        return Decision("refused", out, refusal=error)
    changed, unknown = tuple(found.allowed), tuple(found.unknown)
    folder, notes = newest_complete(out)
    if folder is None and notes:
        return Decision("refused", out, refusal=_all_damaged(out, notes))
    kind: Literal["fresh", "resume"] = "resume" if folder else "fresh"
    damaged = tuple(map(_fallback, notes))
    layout_change = ""
    if folder is not None and layout is not None:
        try:
            before = reshard.read_layout(folder)
            reshard.check_movable(folder, before, layout)
        except CheckpointError as error:
            return Decision("refused", out, folder, damaged, refusal=error)
        layout_change = reshard.difference(before, layout)
    return Decision(kind, out, folder, damaged, changed, unknown, layout_change)


def _from_weights(run_config: Mapping[str, Any]) -> str:
    """The option that names the initial weights: pre-training's, or fine-tuning's."""
    return "--checkpoint" if "checkpoint" in run_config else "--init-from"


def changed_inputs(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A sentence on everything whose content has changed.

    What only one of them has is no change: earlier versions recorded nothing.

    Args:
        old: Recorded fingerprints.
        new: Those of this start; see `fingerprints`.
    """
    changes = []
    for key, given in new.items():
        before = old.get(key, {}).get("digests", {})
        now = given["digests"]
        if not before or before == now:
            continue
        parts = [part for part in {**before, **now} if before.get(part) != now.get(part)]
        changes.append(f"{given['what']}: changed since the run started ({', '.join(parts)})")
    return changes


def _fallback(note: str) -> str:
    return f"{note}; using the previous checkpoint, the damaged one is kept as damaged-*"


def _newer_than(folder: Path | None, out: Path) -> list[Path]:
    """Checkpoints newer than the one resumed from; they are damaged."""
    if folder is None:
        return []
    return [path for path in checkpoints(out) if step_of(path) > step_of(folder)]


def _all_damaged(out: Path, notes: list[str]) -> CheckpointError:
    # starting again from step 0 would discard the run, so the user decides about it
    return CheckpointError(
        f"all checkpoints are damaged: {'; '.join(notes)}. Delete {out / CHECKPOINTS} to start"
        " again from step 0"
    )


def evaluation_due(config: TrainConfig, step: int, best: BestCheckpoint, evaluates: bool) -> bool:
    """Whether the evaluation of the last finished step is missing.

    That is so if the run was killed between the checkpoint and the evaluation of the same step.

    Args:
        config: Options of the run.
        step: Last finished step.
        best: Its evaluations so far.
        evaluates: Whether the run has a validation set.
    """
    return evaluates and every(step, config.eval_every, config.steps) and best.needs_eval(step)


def is_done(config: TrainConfig, step: int, best: BestCheckpoint, evaluates: bool) -> bool:
    """Whether nothing is left to do: all steps are done and evaluated, or training stopped early.

    Args: as `evaluation_due`.
    """
    if best.exhausted:
        return True
    return step >= config.steps and not evaluation_due(config, step, best, evaluates)


def compare_options(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    verified: Container[str] = (),
    *,
    accept_changed: bool = False,
) -> Comparison:
    """Compare recorded options with those of this start.

    Renamed options are recognised. A recorded option that this version does not have is ignored. An
    option that is not recorded, because the version that wrote the folder did not have it, must
    have its default, or the value of earlier versions that its field states.

    Args:
        old: Content of run.json.
        new: Options of this start; see `decide`.
        verified: Options whose content was compared by fingerprint, so that their place may change.
        accept_changed: The place of other content may change, too.
    """
    known, renamed = _schema(new)
    now = flatten(new)
    options = {name: value for name, value in old.items() if name != INPUTS}
    before, unknown = _translate(flatten(options), now, known, renamed)
    refused: list[OptionChange] = []
    allowed: list[OptionChange] = []
    for name in sorted(before.keys() | now.keys()):
        info = known.get(name, OptionInfo(strict=True))
        # a strict group belongs to one kind of run: a missing option means another kind, unless
        # earlier versions of the same kind did not have it
        absent = info.strict and info.earlier is UNCHANGED
        default = None if absent else info.missing
        change = OptionChange(name, before.get(name, default), now.get(name))
        if change.old == change.new:
            continue
        if info.policy == "content":
            may = _only_place(change) and (
                accept_changed or name in verified or _places(change.old) == _places(change.new)
            )
        else:
            may = _may_change(change, info)
        (allowed if may else refused).append(change)
    return Comparison(refused, allowed, unknown)


def _only_place(change: OptionChange) -> bool:
    """Whether two values differ in their paths only: number, splits and weights are equal."""
    if isinstance(change.old, list) and isinstance(change.new, list):
        old, new = ([DatasetSpec.parse(text) for text in v] for v in (change.old, change.new))
        return [(s.split, s.weight) for s in old] == [(s.split, s.weight) for s in new]
    none = (None, "none")
    return change.old not in none and change.new not in none


def _places(value: Any) -> list[str]:
    """The real paths of a list of data sets, or of one path."""
    if isinstance(value, list):
        return [os.path.realpath(DatasetSpec.parse(text).path) for text in value]
    return [os.path.realpath(str(value))]


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name: old → new` for every difference that forbids to resume; see `compare_options`."""
    return [str(change) for change in compare_options(old, new).refused]


def _schema(options: Mapping[str, Any]) -> tuple[Mapping[str, OptionInfo], Mapping[str, str]]:
    """(dotted name → information, old flag → new flag)."""
    if isinstance(options, RunOptions) and options.known:
        return options.known, options.renamed
    return option_infos(TrainConfig, _PREFIX), RENAMED


def _translate(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    known: Mapping[str, OptionInfo],
    renamed: Mapping[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """Recorded options under today's names, and the names of those that no longer exist."""
    names = {name.rpartition(".")[2]: name for name in now}
    strict = {name.rpartition(".")[0] for name, info in known.items() if info.strict}
    groups = {name.rpartition(".")[0] for name in known} - strict
    found: dict[str, Any] = {}
    unknown = []
    for name, value in before.items():
        group, _, last = name.rpartition(".")
        flag = last.replace("_", "-")
        last = renamed.get(flag, flag).replace("-", "_")
        sibling = f"{group}.{last}"
        current = sibling if sibling in now else names.get(last)
        if name in now:
            found[name] = value
        elif current is not None and current not in before:
            found[current] = value
        elif group in groups and name not in known:
            unknown.append(name)
        else:  # a group of another benchmark, or a mapping without known fields: must not differ
            found[name] = value
    return found, unknown


def _may_change(change: OptionChange, info: OptionInfo) -> bool:
    if info.policy == "layout" and change.name.rpartition(".")[2] == "ds_config":
        return _same_arithmetic(change.old, change.new)
    return info.policy != "same"


def _same_arithmetic(old: str | None, new: str | None) -> bool:
    """Whether two DeepSpeed files differ in stage, buckets and offload only."""
    if old is None or new is None:
        return False
    try:
        return ds_config.arithmetic(ds_config.load(old)) == ds_config.arithmetic(
            ds_config.load(new)
        )
    except ConfigError:  # the recorded file no longer exists
        return False
