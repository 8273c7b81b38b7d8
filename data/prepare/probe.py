"""What a media file holds, found by decoding all of it. Runs in processes that can be killed."""

from __future__ import annotations

import contextlib
import io
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from PIL import Image

from allinone.common.errors import AllInOneError, DataError
from allinone.common.processes import UNGUARDED, forkserver_context
from allinone.data.decoding.codecs import IMAGES, codec_of, idr_packet, rotation_of

CONSTANT_RATE_TOLERANCE = 0.02
"""Largest deviation of a frame's time from its place at a constant rate, in frames, that still
counts as constant."""
ROUNDED = 1.05, 0.09
"""The same where a file's clock is coarse (a millisecond in WebM and Matroska), so that the times
of a constant rate come rounded: ticks of the clock, and frames at most, since frames.Timeline takes
a tenth of a frame."""


UNREADABLE_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises of a file that it cannot read, or does not dare to."""


@dataclass(frozen=True)
class Limits:
    """What a clip may be."""

    min_frames: int = 2
    max_duration_s: float = 3600.0
    timeout_s: float = 60.0


class ProbeError(AllInOneError):
    """A clip is bad: a short word for the ledger and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def probe(
    content: bytes, extension: str, limits: Limits, sink: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    """Columns of the index for one file; raises ProbeError. `sink` is given every decoded frame."""
    import av

    if not content:
        raise ProbeError("empty_file", "the file has no content")
    head = content[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"{", b"<error")):
        kind = "an image" if extension in IMAGES else "a video"
        raise ProbeError(
            f"not_{kind.replace(' ', '_')}",
            f"a text file, not {kind}: {head[:40].decode(errors='replace')!r}",
        )
    if extension in ("jpg", "jpeg"):
        _check_jpeg(content)
    try:
        with av.open(io.BytesIO(content)) as container:
            return _decode(container, extension, limits, sink)
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise ProbeError("undecodable", str(error)) from error


def _check_jpeg(content: bytes) -> None:
    """FFmpeg fills what is missing of a JPEG with grey and says nothing; Pillow refuses it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in ("JPEG", "MPO"):  # the latter are a telephone's
                image.draft("L", (64, 64))  # all of the file is read, little of it is drawn
                image.load()
    except UNREADABLE_IMAGE as error:
        raise ProbeError("undecodable", f"{type(error).__name__}: {error}") from error


def _decode(
    container: Any, extension: str, limits: Limits, sink: Callable[[Any], None] | None
) -> dict[str, Any]:
    if not container.streams.video:
        if container.streams.audio:
            raise ProbeError("no_video_track", "the file holds sound and no pictures")
        raise ProbeError("undecodable", "no track of the file can be read")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # clips run side by side in processes
    duration = (container.duration or 0) / 1e6
    if duration > limits.max_duration_s:
        raise ProbeError(
            "too_long",
            f"{duration:.0f} s by its header, more than --max-duration-s"
            f" {limits.max_duration_s:.0f}",
        )
    image = extension in IMAGES
    codec = codec_of(stream)
    times: list[float] = []
    starts: set[int] = set()
    first, damaged = None, 0
    with closing(
        container.demux(stream)
    ) as packets:  # one that an error leaves half-way leaks if it is not closed (PyAV 18.1)
        for packet in packets:
            if packet.pts is not None and idr_packet(codec, packet):
                starts.add(packet.pts)
            for frame in packet.decode():
                first = first or frame
                damaged += frame.is_corrupt
                times.append(float(frame.time) if frame.time is not None else len(times) / 25.0)
                if sink is not None:
                    sink(frame)
    if first is None:
        raise ProbeError("undecodable", "no frame decodes")
    if damaged:  # FFmpeg hides what it cannot read behind grey or stale blocks
        raise ProbeError("corrupt", f"{damaged} of {len(times)} frames decode with errors")
    if not image:
        _check_length(len(times), container, stream, limits)
    return _columns(times, starts, first, stream, extension, image)


def _columns(
    times: list[float], starts: set[int], first: Any, stream: Any, extension: str, image: bool
) -> dict[str, Any]:
    rotation = rotation_of(first)
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    rate = (
        (len(times) - 1) / (times[-1] - times[0])
        if len(times) > 1 and times[-1] > times[0]
        else float(stream.average_rate or 0)
    )
    base, tick = times[0], float(stream.time_base or 0)
    tolerance = max(CONSTANT_RATE_TOLERANCE, min(ROUNDED[0] * tick * rate, ROUNDED[1]))
    constant = all(abs((t - base) * rate - k) <= tolerance for k, t in enumerate(times))
    by_time = {round(t / float(stream.time_base)): k for k, t in enumerate(times)}
    return {
        "codec": codec_of(stream),
        "pixel_format": first.format.name,
        "container": extension,
        "media": "image" if image else "video",
        "width": width,
        "height": height,
        "rotation": rotation,
        "frames": len(times),
        "frame_rate": rate,
        "duration_s": len(times) / rate if rate else 0.0,
        "frame_times": None if constant else [t - base for t in times],
        "keyframes": sorted({by_time[pts] for pts in starts if pts in by_time} | {0}),
    }


PACKET_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
"""Codecs of which a packet is a frame, in the containers that keep the time of showing."""


def probe_packets(content: bytes | Path, extension: str, limits: Limits) -> dict[str, Any] | None:
    """The columns that `probe` would find, from the packets and one decoded frame: what a video of
    hours holds, in seconds. Damage inside the frames is not seen. None where the packets do not
    tell the frames one by one, and the video must be decoded; ProbeError as `probe`.
    """
    import av

    times: list[int] = []
    starts: set[int] = set()
    first = None
    try:
        with av.open(
            str(content) if isinstance(content, Path) else io.BytesIO(content), "r"
        ) as container:
            if (
                not container.streams.video
                or codec_of(container.streams.video[0]) not in PACKET_CODECS
            ):
                return None
            stream = container.streams.video[0]
            demuxing: Any = container.demux(stream)
            with closing(demuxing) as packets:
                for packet in packets:
                    if not packet.size:
                        continue
                    if packet.pts is None or packet.is_discard or packet.is_corrupt:
                        return None
                    times.append(packet.pts)
                    if idr_packet(codec_of(stream), packet):
                        starts.add(packet.pts)
                    first = first or next(iter(packet.decode()), None)
            if first is None or len(set(times)) != len(times):
                return None
            _check_length(len(times), container, stream, limits)
            seconds = [float(pts * (stream.time_base or 0)) for pts in sorted(times)]
            return _columns(seconds, starts, first, stream, extension, image=False)
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise ProbeError("undecodable", str(error)) from error


def _check_length(decoded: int, container: Any, stream: Any, limits: Limits) -> None:
    if decoded < limits.min_frames:
        raise ProbeError(
            "too_few_frames",
            f"{decoded} frame(s) decode, fewer than --min-frames {limits.min_frames}",
        )
    announced = stream.frames
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if (
        not seconds and len(container.streams) == 1
    ):  # Matroska and WebM state the length of the file only
        seconds = (container.duration or 0) / 1e6
    if not announced and stream.average_rate:
        announced = int(seconds * float(stream.average_rate)) - 1
    if announced and decoded < 0.9 * announced - 1:
        raise ProbeError("truncated", f"{decoded} of {announced} announced frames decode")


STARTING_S = 300.0
"""Seconds that a process may take until it can work: it imports, perhaps from a slow network
disk."""


def _serve(target: Callable[[Connection, Limits], None], pipe: Connection, limits: Limits) -> None:
    pipe.send("ready")  # the main module has been imported
    target(pipe, limits)


class ProbePool:
    """Processes that run `target`(pipe, limits), which answers tasks. One that hangs or dies costs
    its clip only: it is killed and another one takes its place. One that somebody else kills, as
    the kernel does for want of memory, has its clip tried once more. One that dies before it can
    work is no clip's fault: DataError."""

    def __init__(self, workers: int, limits: Limits, target: Any) -> None:
        self._context = forkserver_context()
        self._limits, self._target = limits, target
        self._workers = [self._start() for _ in range(max(1, workers))]
        self._starting = set(range(len(self._workers)))

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._target, theirs, self._limits), daemon=True
        )
        process.start()
        theirs.close()
        return process, ours

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, str | None, Any]]:
        """(number of the task, reason or None, detail or columns), in the order of completion.
        Raises what the storage did to a worker (OSError): that says nothing about the clip."""
        again: deque[tuple[int, Any]] = deque()
        killed: set[int] = set()
        numbered, free = enumerate(tasks), deque(range(len(self._workers)))
        running: dict[int, tuple[int, float]] = {}
        sent: dict[int, Any] = {}
        while True:
            while (
                free
                and (following := again.popleft() if again else next(numbered, None)) is not None
            ):
                slot, (number, task) = free.popleft(), following
                self._send(slot, task)
                running[slot], sent[number] = (number, self._deadline(slot)), task
            if not running:
                return
            slots: dict[Any, int] = {self._workers[slot][1]: slot for slot in running}
            ready = {
                slots[pipe]
                for pipe in wait(
                    list(slots),
                    timeout=max(0.0, min(end for _, end in running.values()) - time.monotonic()),
                )
            }
            for slot in list(running):
                number, deadline = running[slot]
                if slot in ready and slot in self._starting:
                    self._started(slot)
                    running[slot] = (number, self._deadline(slot))
                    continue
                if slot in ready:
                    try:
                        answer = self._workers[slot][1].recv()
                    except (EOFError, ConnectionError):
                        self._workers[slot][0].join(5)
                        by_signal_9 = self._workers[slot][0].exitcode == -signal.SIGKILL
                        self._restart(slot)
                        answer = "decoder_crashed", "the decoding process died on this clip"
                        if by_signal_9 and number not in killed:
                            killed.add(number)
                            again.append((number, sent[number]))
                            del running[slot]
                            free.append(slot)
                            continue
                        if by_signal_9:
                            answer = (
                                "killed",
                                (
                                    "the decoding process was killed twice, for want of memory?"
                                    " Fewer --workers, then --retry killed"
                                ),
                            )
                    if isinstance(answer[1], OSError):
                        raise answer[1]
                    yield (number, *answer)
                elif time.monotonic() >= deadline:
                    if slot in self._starting:
                        raise DataError(
                            f"a decoding process was not ready after {STARTING_S:.0f} s; use fewer"
                            " --workers, or a faster disk"
                        )
                    self._restart(slot)
                    yield (
                        number,
                        "timeout",
                        f"not decoded within --timeout-s {self._limits.timeout_s:g}",
                    )
                else:
                    continue
                del running[slot], sent[number]
                free.append(slot)

    def _deadline(self, slot: int) -> float:
        return time.monotonic() + (STARTING_S if slot in self._starting else self._limits.timeout_s)

    def _send(self, slot: int, task: Any) -> None:
        with contextlib.suppress(
            ConnectionError
        ):  # it died: its end of the pipe tells, and so does its answer
            self._workers[slot][1].send(task)

    def _started(self, slot: int) -> None:
        process, pipe = self._workers[slot]
        try:
            pipe.recv()
        except (EOFError, ConnectionError) as error:
            process.join(1)
            raise DataError(
                f"a decoding process ended before it could work (exit code {process.exitcode});"
                f" what it said stands above. In a program of your own: {UNGUARDED}"
            ) from error
        self._starting.remove(slot)

    def _restart(self, slot: int) -> None:
        self._workers[slot][0].kill()
        self._workers[slot][0].join()
        self._workers[slot] = self._start()
        self._starting.add(slot)

    def close(self) -> None:
        """End all processes."""
        for process, _ in self._workers:
            process.kill()
            process.join()
