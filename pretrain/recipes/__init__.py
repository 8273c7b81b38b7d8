"""Pre-training recipes by name.

Each module's docstring states the command, hardware, time and expected result.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.recipes import (
    cc3m_coco,
    demo,
    open_clips,
    own,
    plus_cc3m_webvid,
    plus_cc3m_webvid_howto,
    plus_seven,
    webvid_howto,
    webvid_howto_fast,
    webvid_howto_vtc,
    webvid_howto_ytt,
)

RECIPES: dict[str, tuple[str, PretrainConfig]] = {
    "demo": ("nano on the embedded clips: minutes on two CPU cores", demo.RECIPE),
    "own": ("tiny on your own clips: give --data and --out", own.RECIPE),
    "webvid-howto": (
        "the paper's B on WebVid-2.5M + HowTo100M",
        # the folder that slurm/pretrain_128gpu.sh uses: another launcher then resumes the same run
        replace(webvid_howto.RECIPES["base"], out=Path("runs/webvid-howto")),
    ),
    "webvid-howto-tiny": (
        "the paper's Ti on WebVid-2.5M + HowTo100M",
        webvid_howto.RECIPES["tiny"],
    ),
    "webvid-howto-small": (
        "the paper's S on WebVid-2.5M + HowTo100M",
        webvid_howto.RECIPES["small"],
    ),
    "webvid-howto-base": ("the same model and data as webvid-howto", webvid_howto.RECIPES["base"]),
    "webvid-howto-fast": (
        "webvid-howto on half of the patches; not the paper's",
        webvid_howto_fast.RECIPE,
    ),
    "webvid-howto-vtc": (
        "webvid-howto with contrast, for search without fine-tuning; not the paper's",
        webvid_howto_vtc.RECIPE,
    ),
    "webvid-howto-ytt": (
        "B* on WebVid-2.5M + HowTo100M + YT-Temporal-180M",
        webvid_howto_ytt.RECIPE,
    ),
    "plus-cc3m-webvid": ("B+ on CC3M images and WebVid-2.5M", plus_cc3m_webvid.RECIPE),
    "plus-cc3m-webvid-howto": (
        "B+ on CC3M images, WebVid-2.5M and HowTo100M",
        plus_cc3m_webvid_howto.RECIPE,
    ),
    "plus-seven": ("B+ on three video and four image sets", plus_seven.RECIPE),
    "open-clips": (
        "B on Panda-70M, InternVid and OpenVid-1M; not the paper's",
        open_clips.RECIPE,
    ),
    "cc3m-coco": ("images only, for VCR", cc3m_coco.RECIPE),
}
"""Name → (one line for --help, the run)."""
