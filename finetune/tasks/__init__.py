"""One module per task: samples, head, loss and metrics."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allinone.finetune.tasks.base import Task

TASKS = {
    "action_recognition": "ActionRecognition",
    "captioning": "Captioning",
    "multiple_choice": "MultipleChoice",
    "open_ended_qa": "OpenEndedQA",
    "retrieval": "Retrieval",
    "vcr": "VCR",
}
"""Module in this folder → its Task. Benchmarks name the module, which imports torch."""


def task_class(name: str) -> type[Task]:
    """Import a task by the name of its module."""
    found: type[Task] = getattr(import_module(f"{__name__}.{name}"), TASKS[name])
    return found
