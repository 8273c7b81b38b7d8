"""What the replay of a step says about its anomaly, in a sentence."""

from __future__ import annotations

import math
from typing import Any

from allinone.engine.anomaly.detector import Anomaly


def judge(anomaly: Anomaly, report: dict[str, Any], replay: dict[str, Any]) -> dict[str, Any]:
    """Decide whether the anomaly is reproduced.

    Args:
        anomaly: What was found.
        report: What was observed the first time.
        replay: What was computed again.

    Returns:
        The keys "reproduced" and "verdict" (a sentence).
    """
    if not replay["same_clips"]:
        return {
            "reproduced": None,
            "verdict": (
                "the data stream returned different clips the second time: its files or options"
                " have changed"
            ),
        }
    again, what = _compare(anomaly, replay)
    if again is None:
        reason = "gradients cannot be computed outside of the engine under ZeRO 3"
        return {"reproduced": None, "verdict": f"{reason} or tensor parallelism"}
    exact, later = replay["weights"]["exact"], ""
    if not exact:
        updates = replay["weights"]["updates_since"]
        later = f" (with the weights {updates} update{'s' * (updates != 1)} later)"
    if again:
        cause = _cause(anomaly, replay)
        verdict = f"reproduced: the same micro-batches give {what} again{later}; {cause}"
    elif exact:
        verdict = (
            "not reproduced: the same weights, clips and random numbers now give a usual result."
            " The cause was the hardware or a non-deterministic kernel" + _where(report)
        )
    else:
        verdict = (
            f"not reproduced{later}: a fault that happened once, or one that needed the weights of"
            " the step; to find out, continue a copy of the previous checkpoint with --log-every 1"
        )
    return {"reproduced": again, "verdict": verdict}


def _compare(anomaly: Anomaly, replay: dict[str, Any]) -> tuple[bool | None, str]:
    """(whether the replay shows the anomaly, None without gradients; what it would show)."""
    if anomaly.reason == "loss not finite":
        return not math.isfinite(replay["loss"]), "a loss that is not finite"
    value = replay["loss"] if anomaly.reason == "loss spike" else replay["gradient_norm"]
    if value is None:
        return None, ""
    if anomaly.reason == "gradient not finite":
        return not math.isfinite(value), "a gradient that is not finite"
    usual = anomaly.usual["median"]
    return bool(value > middle(anomaly)), f"a {anomaly.reason} ({value:.4g}, usual {usual:.4g})"


def middle(anomaly: Anomaly) -> float:
    """The value that separates a spike from what is usual.

    With equal dropout and clips, equal weights give the same value up to the order of sums, and
    later weights a similar one: halfway between usual and observed separates the two cases.
    """
    usual = anomaly.usual["median"]
    return usual + (anomaly.value - usual) / 2


def _has_diverged(replay: dict[str, Any]) -> str:
    """Why the model, and not a clip, is the cause; empty if it may be a clip."""
    if not replay.get("weights_finite", True):
        return "weights of the model are not finite"
    alone = replay.get("clips_alone", {"computed": 0, "unusual": 0})
    if alone["computed"] > 1 and alone["unusual"] > alone["computed"] / 2:
        return f"the loss of {alone['unusual']} of {alone['computed']} clips is unusual even alone"
    return ""


def _cause(anomaly: Anomaly, replay: dict[str, Any]) -> str:
    """What explains an anomaly that was reproduced."""
    if reason := _has_diverged(replay):
        return (
            f"the model has diverged: {reason}, so no single clip is the cause; lower --lr, or"
            " continue from an earlier checkpoint"
        )
    offending = replay["offending_clips"]
    if offending:
        first = offending[0]
        more = f" and {len(offending) - 1} more" if len(offending) > 1 else ""
        return (
            f"the loss of clip {first['clip']}{_of_data_set(first)} (rank {first['rank']}) is not"
            f" finite even alone{more}"
        )
    if anomaly.reason == "loss not finite":
        return "no single clip causes it: check the combination, or the weights"
    if anomaly.reason == "gradient not finite" and replay["layers"]:
        bad = [layer["name"] for layer in replay["layers"] if not math.isfinite(layer["norm"])]
        return f"the backward pass overflows; layers that are not finite: {', '.join(bad[:4])}"
    if replay["highest"]:
        first = replay["highest"][0]
        return (
            f"highest loss alone: clip {first['clip']}{_of_data_set(first)}, rank {first['rank']},"
            f" {first['loss']:.4g}"
        )
    return "the cause is in the data or the loss"


def _where(report: dict[str, Any]) -> str:
    """The rank on which a loss that was not finite was observed."""
    bad = [
        rank
        for rank in report["ranks"]
        if not all(math.isfinite(micro["loss"]) for micro in rank["micro_batches"])
    ]
    if not bad:
        return ""
    return f"; observed on rank {bad[0]['rank']}, host {bad[0]['host']}, {bad[0]['device']}"


def _of_data_set(entry: dict[str, Any]) -> str:
    return f" of {entry['data_set']}" if entry["data_set"] else ""
