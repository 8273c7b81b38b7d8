"""Which stored videos are slow to decode, because decoding must start far before some frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PIXELS_PER_S = 3e8
"""Pixels that one core decodes per second: about 325 frames of 720p H.264."""
SLOW_S = 1.0
"""Seconds of decoding per sample above which a warning names the file."""
WITHOUT_TIMES = ("mpg", "mpeg", "vob")
"""Containers whose times do not lead to frames, so that every sample is decoded from the beginning
(codecs.times_are_of_frames)."""
COLUMNS = ("source", "container", "media", "width", "height", "frames", "keyframes")
BATCH = 10_000


def slow_to_decode(out: Path) -> list[str]:
    """A sentence if samples of stored videos take long to decode, with the option that helps.

    Args:
        out: A prepared folder with videos.parquet.
    """
    slow = total = 0
    worst, name = 0.0, ""
    for batch in pq.ParquetFile(out / "videos.parquet").iter_batches(BATCH, columns=list(COLUMNS)):
        seconds = decode_seconds(batch)
        total += batch.num_rows
        slow += int((seconds > SLOW_S).sum())
        if len(seconds) and seconds.max() > worst:
            place = int(seconds.argmax())
            worst, name = float(seconds[place]), batch["source"][place].as_py()
    if not slow:
        return []
    return [
        f"{slow:,} of {total:,} files take more than {SLOW_S:g} s of decoding per sample, the"
        f" slowest about {worst:.1f} s ({name}): decoding can start at few of their frames."
        " --short-side 256, or --codec h264 for the same size, re-encodes with a keyframe every 25"
        " frames (another --out)"
    ]


def decode_seconds(videos: pa.RecordBatch) -> NDArray[np.float64]:
    """Expected seconds of decoding for one frame in the longest run of frames without a start.

    Half the run is decoded on average. Speeds of machines and codecs differ severalfold.

    Args:
        videos: Rows with COLUMNS.

    Returns:
        Seconds per row; 0 for images.
    """
    keyframes = videos["keyframes"]
    # every file has keyframe 0, so no list is empty
    starts = keyframes.offsets.to_numpy() - keyframes.offsets[0].as_py()
    frames = videos["frames"].to_numpy()
    values = keyframes.flatten().to_numpy()
    following = np.append(values[1:], 0)
    following[starts[1:] - 1] = frames
    runs = np.maximum.reduceat(following - values, starts[:-1]) if len(frames) else frames
    complete = np.isin(videos["container"].to_pylist(), WITHOUT_TIMES)
    pixels = videos["width"].to_numpy().astype(float) * videos["height"].to_numpy()
    moving = np.array(videos["media"].to_pylist()) == "video"
    return moving * np.where(complete, frames, runs) / 2 * pixels / PIXELS_PER_S
