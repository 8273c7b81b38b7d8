"""Mutated videos and images: probing, decoding, trimming, re-encoding, and DALI's decoders.

python -m tests.fuzz.media --inputs 10000
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from allinone.common.errors import GraphError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import CPU_CODECS, dali_reads, image_extension
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits, ProbeError, probe, probe_packets
from allinone.data.prepare.worker import reencode
from tests.data import media
from tests.fuzz.runner import Fuzzer, main

LIMITS = Limits(max_pixels=1 << 22, timeout_s=20.0)
CLIP = ClipConfig(3, 32)
CONFIG = DataConfig(backend="cpu", decoder="dali", dali_threads=1, clip_timeout_s=20.0)
IMAGES = ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif")


def make_seeds(folder: Path) -> Sequence[Path]:
    """All good clips and images of the tests."""
    # written twice: encoders give AV1 and sound other bytes each time, and seeds must be the same
    slow = ("av1.mp4", "av1.webm", "with_sound.mp4", "h264.mov")
    paths = [write(folder / name) for name, write in media.GOOD.items() if name not in slow]
    return [*paths, *(media.write_image(folder / name) for name in IMAGES)]


@cache
def _pipeline() -> Any:
    from allinone.data.loading.dali_pipeline import DaliPipeline

    return DaliPipeline(CLIP, CONFIG, torch.device("cpu"), 1)


def check(folder: Path, path: Path, content: bytes, number: int) -> str:
    """As preparing and loading a file do."""
    extension = image_extension(content, path.suffix[1:])
    if number % 3 == 0:
        path.write_bytes(content)
        with contextlib.suppress(ProbeError):
            probe_packets(path, extension, LIMITS)
    if number % 10 == 0:
        reencode(content, extension, LIMITS, Encoding("h264", 32, 8))
    columns = probe(content, extension, LIMITS)
    timeline = Timeline.of(columns)
    (chosen,) = choose_frames(ClipWindow.of_file(columns), CONFIG, CLIP.num_frames)
    decode_frames(content, chosen.frames, timeline, max_pixels=LIMITS.max_pixels)
    trimmed = trim(content, chosen.frames, columns["frames"], timeline)
    if dali_reads(columns, CPU_CODECS):
        try:
            _pipeline()([trimmed], [chosen])
        except GraphError:
            return "refused"
    return "accepted"


if __name__ == "__main__":
    sys.exit(main(Fuzzer("media", make_seeds, check)))
