"""Heads of files that the original code wrote after fine-tuning.

| head in the file | objective of the original | kinds of our heads |
| --- | --- | --- |
| `vqa_classifier.1 .2 .4` | openend_vqa: QA on video, K400, HMDB51 | answers_ce, classes_* |
| `vqa_classifier.0 .1 .3` | vqa: VQAv2 | answers_bce |
| `mc_vqa_classifier` | mc_vqa: TGIF-QA action and transition, TVQA | option |
| `rank_output` | multiple_choice, irtr | rank |
| `rank_output`, `rank_output_2` | vcr_q2a: answers and rationales | two_ranks |
| `txt_proj`, `vid_proj` | ind_itc | contrast; the projections are part of `convert` |

The layers have the same numbers as ours, so only the prefix changes. A file does not say what its
classes are called: the task names them (`ReferenceHead.named`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.model.convert import LoadReport

PREFIX = "task_head."
WITHOUT_TASK = {
    "vcop_classifier.": "the original's clip order objective fails when its metric is looked up",
    "mpp_score.": "the original's masked patch objective has no mask token, and cannot run",
}
"""Heads of pre-training objectives that no released file can have trained, with the reason."""


@dataclass(frozen=True)
class ReferenceHead:
    """A head of the original code."""

    name: str
    """In the file: `rank_output`."""
    tensors: Mapping[str, Tensor]
    """By the names of TaskModel."""
    labels: tuple[str, ...] = ()
    """Names of its classes; empty if it has none, or if they are not known yet."""

    @property
    def outputs(self) -> int:
        """Number of its outputs: the rows of the last layer."""
        return len(self.tensors[f"{self._last_layer}bias"])

    @property
    def _last_layer(self) -> str:
        """Prefix of the layer with the highest number."""
        return max(name for name in self.tensors if name.endswith(".bias")).removesuffix("bias")

    def named(self, labels: Sequence[str], source: str) -> ReferenceHead:
        """The head with names for its classes.

        The original makes one class more than there are answers or actions. It is never a target,
        and is left out here.

        Args:
            labels: In the order of the original's class numbers.
            source: Where the names come from, for the message.

        Raises:
            ConfigError: There are more or fewer names than classes.
        """
        if self.outputs not in (len(labels), len(labels) + 1):
            raise ConfigError(
                f"the head {self.name} of --checkpoint has {self.outputs:,} outputs, but {source}"
                f" names {len(labels):,} classes; give the annotations that it was trained with"
            )
        tensors = {
            name: tensor[: len(labels)] if name.startswith(self._last_layer) else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors, labels=tuple(labels))


def read_heads(
    tensors: Mapping[str, Tensor], unexpected: Sequence[str], report: LoadReport
) -> tuple[dict[str, ReferenceHead], list[str]]:
    """Find the heads among the keys that the backbone and the pre-training heads do not use.

    Args:
        tensors: All tensors of the file.
        unexpected: Keys that are not known to `convert.rename_reference`.
        report: Says which heads no task uses.

    Returns:
        (kind → head, keys that remain unknown).
    """
    heads: dict[str, ReferenceHead] = {}
    left = list(unexpected)

    def take(prefix: str) -> dict[str, Tensor]:
        found = {key.removeprefix(prefix): tensors[key] for key in left if key.startswith(prefix)}
        left[:] = [key for key in left if not key.startswith(prefix)]
        return {name: found[name] for name in sorted(found)}

    for prefix, reason in WITHOUT_TASK.items():
        report.ignored += [f"{prefix}{name}: {reason}" for name in take(prefix)]
    classifier = take("vqa_classifier.")
    if classifier:
        head = ReferenceHead("vqa_classifier", _prefixed(classifier))
        # VQAv2's head has no dropout in front, so its first layer is number 0
        kinds = (
            ("answers_bce",)
            if "0.weight" in classifier
            else ("answers_ce", "classes_published", "classes_full")
        )
        heads |= dict.fromkeys(kinds, head)
    if option := take("mc_vqa_classifier."):
        heads["option"] = ReferenceHead("mc_vqa_classifier", _prefixed(option))
    answer, rationale = take("rank_output."), take("rank_output_2.")
    if rationale:
        both = {
            **{f"answer.{name}": tensor for name, tensor in answer.items()},
            **{f"rationale.{name}": tensor for name, tensor in rationale.items()},
        }
        heads["two_ranks"] = ReferenceHead("rank_output, rank_output_2", _prefixed(both))
    elif answer:
        heads["rank"] = ReferenceHead("rank_output", _prefixed(answer))
    if "txt_proj.weight" in tensors:
        # released pre-training has no contrastive loss: the projections come from fine-tuning
        heads["contrast"] = ReferenceHead("txt_proj, vid_proj", {})
    return heads, left


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
