"""Chosen frames of a clip, by PyAV: seek to the last keyframe that is safe, skip what nobody refers to, stop after the last wanted frame."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from data.media import rotation_of


class DecodeError(Exception):
    """This clip cannot be decoded."""


def decode_frames(
    content: bytes,
    wanted: Sequence[int],
    *,
    keyframes: Sequence[int] = (0,),
    times: Sequence[float] | None = None,
    rate: float = 0.0,
    timeout_s: float = 30.0,
) -> NDArray[np.uint8]:
    """RGB frames uint8 [T, H, W, 3] with display-order numbers `wanted`, upright, in BT.601 as DALI converts.

    `keyframes` are the numbers where decoding may start (from the index); `times` (seconds from the first frame) or `rate` place them in
    time. Raises DecodeError,
    also where decoding takes longer than `timeout_s` (looked at between two frames).
    """
    deadline = time.monotonic() + timeout_s
    targets = sorted(set(wanted))
    try:
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.video[0]
            found = _from_start(container, stream, targets, keyframes, times, rate, deadline)
            if found is None:  # the seek went astray (mpeg-ts does that): from the beginning, without one
                with av.open(io.BytesIO(content)) as again:
                    found = _walk(again, again.streams.video[0], targets, 0, deadline)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(str(error)) from error
    missing = targets if found is None else [number for number in targets if number not in found]
    if found is None or missing:
        raise DecodeError(f"frame {missing[0]} does not decode")
    return np.stack([found[number] for number in wanted])


def _from_start(
    container: Any,
    stream: Any,
    targets: list[int],
    keyframes: Sequence[int],
    times: Sequence[float] | None,
    rate: float,
    deadline: float,
) -> dict[int, NDArray[np.uint8]] | None:
    start = max((k for k in keyframes if k <= targets[0]), default=0)
    if start == 0 or (times is None and not rate):
        return _walk(container, stream, targets, 0, deadline)
    begin = stream.start_time or 0
    moment = times[start] if times is not None else start / rate
    target = begin + round(moment / float(stream.time_base))
    container.seek(target, stream=stream)
    return _walk(
        container, stream, targets, start, deadline, expect=target, tolerance=0.5 / (rate or 25.0) / float(stream.time_base)
    )


def _walk(
    container: Any,
    stream: Any,
    targets: list[int],
    number: int,
    deadline: float,
    expect: int | None = None,
    tolerance: float = 0.0,
) -> dict[int, NDArray[np.uint8]] | None:
    """Decode forward from frame `number`; None where the first frame is not the one that the seek was for."""
    found: dict[int, NDArray[np.uint8]] = {}
    for frame in container.decode(stream):
        if expect is not None:
            if frame.pts is None or abs(frame.pts - expect) > tolerance:
                return None
            expect = None
        if number in targets:
            found[number] = _upright(frame)
            if number == targets[-1]:
                break
        number += 1
        if time.monotonic() > deadline:
            raise DecodeError("not decoded within --clip-timeout-s")
    return found


def _upright(frame: Any) -> NDArray[np.uint8]:
    turns = rotation_of(frame) // 90
    rgb = frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601")
    return np.ascontiguousarray(np.rot90(rgb, -turns)) if turns else rgb
