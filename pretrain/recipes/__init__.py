"""Recipes by name. Each module opens with its command, hardware, expected time and expected result."""

from __future__ import annotations

from pretrain.config import PretrainConfig
from pretrain.recipes import demo, webvid_howto

RECIPES: dict[str, tuple[str, PretrainConfig]] = {
    "demo": ("nano on the embedded clips: minutes on two CPU cores", demo.RECIPE),
    "webvid-howto-tiny": ("the paper's Ti on WebVid-2.5M + HowTo100M", webvid_howto.recipe("tiny")),
    "webvid-howto-small": ("the paper's S on WebVid-2.5M + HowTo100M", webvid_howto.recipe("small")),
    "webvid-howto-base": ("the paper's B on WebVid-2.5M + HowTo100M", webvid_howto.recipe("base")),
}
"""Name → (one line for --help, the run)."""
