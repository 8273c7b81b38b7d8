"""The code of model and processor as files next to the weights, so that
`from_pretrained(…, trust_remote_code=True)` works where this project is not installed.

transformers copies a module and what it imports by `from .name import`, from one flat folder. The
model's modules are such files already. The processor's are spread over allinone/data: they get the
names of their paths (`data_decoding_frames.py`), and their imports are rewritten.
"""

from __future__ import annotations

import re
from pathlib import Path

from allinone.common.paths import PACKAGE
from allinone.model.task_models import AUTO_CLASSES

MODEL, PROCESSOR = ("all_in_one", "task_models"), "data.processor"
_ABSOLUTE = re.compile(r"^(\s*)from allinone\.([\w.]+) import", re.MULTILINE)
_RELATIVE = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
_STAYS = ("data.loading.dali_pipeline",)
"""Imported where it can be: DALI resizes a little differently, and is not needed here."""
_OPTIONAL = re.compile(r"^( *)import av$", re.MULTILINE)
"""PyAV reads files; a processor that is given frames must load without it."""

AUTO_MAP = {
    "AutoConfig": "config.AllInOneConfig",
    "AutoModelForPreTraining": "all_in_one.AllInOneForPreTraining",
    **{
        auto: f"{model.__module__.rpartition('.')[2]}.{model.__name__}"
        for auto, model in AUTO_CLASSES.items()
    },
}
"""`auto_map` of config.json."""
PROCESSOR_MAP = {"AutoProcessor": "data_processor.AllInOneProcessor"}
"""`auto_map` of processor_config.json."""


def code_files() -> dict[str, str]:
    """Name of a file → content: the model, the processor, and everything that they import."""
    files: dict[str, str] = {}
    waiting = list(MODEL)
    while waiting:
        name = waiting.pop()
        if f"{name}.py" not in files:
            files[f"{name}.py"] = (PACKAGE / "model" / f"{name}.py").read_text(encoding="utf-8")
            waiting += _RELATIVE.findall(files[f"{name}.py"])
    waiting = [PROCESSOR]
    while waiting:
        name = waiting.pop()
        if _file_of(name) in files:
            continue
        source = (PACKAGE / Path(*name.split("."))).with_suffix(".py").read_text(encoding="utf-8")
        files[_file_of(name)] = _flat(source)
        waiting += [found for _, found in _ABSOLUTE.findall(source) if found not in _STAYS]
    return files


def _file_of(module: str) -> str:
    return f"{module.replace('.', '_')}.py"


def _flat(source: str) -> str:
    def relative(match: re.Match[str]) -> str:
        indent, name = match.groups()
        return match[0] if name in _STAYS else f"{indent}from .{name.replace('.', '_')} import"

    lazy = r"\1try:\n\1    import av\n\1except ImportError:\n\1    av = None"
    return _OPTIONAL.sub(lazy, _ABSOLUTE.sub(relative, source))
