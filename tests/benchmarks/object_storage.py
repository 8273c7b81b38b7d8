#!/usr/bin/env python3
"""Reading prepared data from S3, compared with local files; needs s3fs and moto[server].

    python tests/benchmarks/object_storage.py [--clips 600] [--delays 0 5 50]

moto's server runs on the loopback interface; a proxy between it and the readers adds a delay to
every request, counts, and injects faults. Prints Markdown tables: what one reader gets without
decoding, what training gets with --workers, and what each fault leads to.

The clips are 2 s of noise at 256 lines, encoded to 200 kB, the size of a clip that was prepared
with --short-side 256; a few files stand for all of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import numpy as np
import torch

from allinone.common.command_line import parse, run_command
from allinone.common.errors import AllInOneError
from allinone.common.object_storage import ObjectStore
from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import Index
from allinone.data.loading.block_cache import BlockCache
from allinone.data.loading.mixture import Order
from allinone.data.loading.remote_files import RemoteFiles
from allinone.data.prepare.pipeline import PrepareOptions, prepare

URL = "s3://bench/clips"
DIFFERENT = 12
"""Files that are encoded; the others are links to them."""
SHARD_CLIPS = 50
MICRO_BATCH = 8
RULE = "|---"
ERROR = "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {size}\r\n\r\n{body}"


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    clips: int = 600
    """Clips of the data set, 200 kB each."""
    delays: tuple[float, ...] = (0.0, 5.0, 50.0)
    """Milliseconds that are added to every request."""
    workers: int = 2
    """Reader processes of the training stream."""
    batches: int = 24
    """Batches of 8 clips that the training stream is measured on."""


class Proxy:
    """Forwards connections to a port, with a delay for every request, and counts them."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = 0.0
        self.requests = self.bytes = 0
        self.fault = ""
        """What happens to the next GET: "", 500, slow, cut or expired."""
        self.port = 0
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True).start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await server.serve_forever()

    async def _connect(self, reader: Any, writer: Any) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the server has been stopped
            writer.close()
            return
        answers = asyncio.create_task(self._answers(there, writer))
        try:
            while chunk := await reader.read(1 << 16):
                if chunk.startswith((b"GET ", b"HEAD ", b"PUT ", b"DELETE ", b"POST ")):
                    self.requests += 1
                    await asyncio.sleep(self.delay_s)
                    if chunk.startswith(b"GET ") and await self._fail(writer):
                        break
                back.write(chunk)
                await back.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            back.close()
            writer.close()

    async def _fail(self, writer: Any) -> bool:
        """Answer a GET with a fault, once; whether the connection ends."""
        fault, self.fault = self.fault, ""
        if fault == "slow":
            await asyncio.sleep(3.0)  # the readers' time limit is 1 s
        elif fault == "cut":
            writer.write(
                b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100000\r\n\r\n" + b"x" * 9
            )
        elif fault in ("500", "expired"):
            code = "InternalError" if fault == "500" else "ExpiredToken"
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            status = "500 Internal Server Error" if fault == "500" else "400 Bad Request"
            writer.write(ERROR.format(status=status, size=len(body), body=body).encode())
        if fault:
            await writer.drain()
        return bool(fault)

    async def _answers(self, there: Any, writer: Any) -> None:
        while chunk := await there.read(1 << 16):
            self.bytes += len(chunk)
            writer.write(chunk)
            await writer.drain()


@contextmanager
def storage() -> Iterator[Proxy]:
    """Start moto's server, and point the environment to a proxy before it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        proxy = Proxy(port)
        os.environ.update(
            AWS_ACCESS_KEY_ID="bench",
            AWS_SECRET_ACCESS_KEY="benchmark",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        )
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        yield proxy
    finally:
        server.terminate()
        server.wait()


def make_clips(folder: Path, clips: int) -> Path:
    """Write the source; returns its CSV."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["path,caption"]
    for number in range(clips):
        path = folder / f"{number}.mp4"
        lines.append(f"{path.name},clip number {number}")
        if number >= DIFFERENT:
            path.hardlink_to(folder / f"{number % DIFFERENT}.mp4")
            continue
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", 25)
            stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
            stream.bit_rate, stream.gop_size = 780_000, 25
            for _ in range(50):
                small = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                frame = small.repeat(8, 0).repeat(8, 1)
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return folder / "own.csv"


def reading(
    proxy: Proxy, index: Index, cache: Path, share: float, window: int, epoch: int, total: int
) -> str:
    """A row of the first table: one reader, nothing decoded."""
    shutil.rmtree(cache, ignore_errors=True)
    files = RemoteFiles(ObjectStore(URL), BlockCache(cache, int(share * total)))
    order = Order([len(index)], [1.0], 0, window)
    used = 0
    for one in range(epoch + 1):  # the earlier epochs fill the cache
        files.cache.hits = files.cache.misses = proxy.requests = proxy.bytes = used = 0
        start = time.perf_counter()
        for position in range(one * len(index), (one + 1) * len(index)):
            row = index[order[position].row]
            used += len(files[row["shard"]].member(row["offset"], row["size"], row["hash"]))
    seconds = time.perf_counter() - start
    found = files.cache.hits + files.cache.misses
    hits = f"{100 * files.cache.hits / found:.0f} %" if found else "–"
    name = f"{share:.0%} of the set" if share else "none"
    return (
        f"| {1e3 * proxy.delay_s:g} | {name} | {window or 'all'} | {epoch + 1} |"
        f" {len(index) / seconds:.0f} | {hits} | {proxy.requests / len(index):.2f} |"
        f" {proxy.bytes / used:.2f} |"
    )


def training(folder: Path, cache: Path, options: Options, **given: Any) -> tuple[float, list[int]]:
    """(clips per second, digests) of the training stream."""
    config = DataConfig(workers=options.workers, decoder="pyav", cache_dir=cache, **given)
    stream = TrainStream([DatasetSpec(folder)], ClipConfig(), config, seed=0)
    batches = stream.batches(
        first=0, rank=0, world=1, micro_batch=MICRO_BATCH, device=torch.device("cpu")
    )
    digests = [next(batches).digest for _ in range(4)]  # readers start
    start = time.perf_counter()
    digests += [next(batches).digest for _ in range(options.batches)]
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return options.batches * MICRO_BATCH / seconds, digests


def faults(proxy: Proxy, index: Index) -> Iterator[str]:
    """Rows of the last table."""
    from allinone.common import object_storage

    object_storage.ObjectStore._ask.__defaults__ = (1.0,)  # type: ignore[attr-defined]
    row = index[0]
    wanted = ObjectStore(URL).read(row["shard"], row["offset"], row["offset"] + row["size"])
    for fault in ("500", "slow", "cut", "expired"):
        proxy.fault = fault
        start = time.perf_counter()
        try:
            read = ObjectStore(URL).read(row["shard"], row["offset"], row["offset"] + row["size"])
            result = "read again, equal bytes" if read == wanted else "OTHER BYTES"
        except AllInOneError as error:
            result = f"{type(error).__name__}: {error}"
        yield f"| {fault} | {result} | {time.perf_counter() - start:.1f} |"
    store = ObjectStore(URL)
    files = RemoteFiles(store, BlockCache(Path("unused"), 0))
    content = store.read(row["shard"])
    with tempfile.NamedTemporaryFile() as other:
        other.write(bytes(len(content)))
        other.flush()
        store.upload(Path(other.name), row["shard"])
    try:
        files[row["shard"]].member(row["offset"], row["size"], row["hash"])
        result = "NOT NOTICED"
    except AllInOneError as error:
        result = f"{type(error).__name__}: {error}"
    yield f"| changed | {result} | – |"


def _run(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name, storage() as proxy:
        folder = Path(name)
        os.environ["ALLINONE_CACHE"] = str(folder / "cache")
        source = make_clips(folder / "source", options.clips)
        for out in (folder / "clips", Path(URL)):
            start = time.perf_counter()
            prepare(PrepareOptions(source, out, shard_clips=SHARD_CLIPS, workers=2), progress=False)
            print(f"prepared to {out} in {time.perf_counter() - start:.1f} s", flush=True)
        total = sum(path.stat().st_size for path in (folder / "clips" / "shards").iterdir())
        index = Index(Path(URL), "train")
        print(f"{len(index)} clips, {total / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}\n")
        columns = "delay, ms | cache | shuffled together | epoch | clips/s | hits | requests/clip"
        print(f"| {columns} | bytes read / of clips |", f"{RULE * 8}|", sep="\n")
        for delay in options.delays:
            proxy.delay_s = delay / 1e3
            for share, window, epoch in (
                (0.0, 0, 0),
                (1.1, 0, 0),
                (0.33, 0, 1),
                (0.33, 3 * SHARD_CLIPS, 1),
                (1.1, 0, 1),
            ):
                row = reading(proxy, index, folder / "blocks", share, window, epoch, total)
                print(row, flush=True)
        print(f"\nload {os.getloadavg()[0]:.1f}\n")
        print("| storage | cache | clips/s | digests |", f"{RULE * 4}|", sep="\n")
        local, expected = training(folder / "clips", folder / "blocks", options)
        print(f"| local files | – | {local:.1f} | – |", flush=True)
        for delay in options.delays:
            proxy.delay_s = delay / 1e3
            for cache_gb, state in ((0.0, "none"), (1.0, "cold"), (1.0, "warm")):
                if state == "cold":
                    shutil.rmtree(folder / "blocks", ignore_errors=True)
                speed, digests = training(Path(URL), folder / "blocks", options, cache_gb=cache_gb)
                same = "equal" if digests == expected else "DIFFERENT"
                print(f"| S3, {delay:g} ms | {state} | {speed:.1f} | {same} |", flush=True)
        proxy.delay_s = 0.0
        print(f"\n| fault | result | s |\n{RULE * 3}|")
        for line in faults(proxy, index):
            print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(Options, arguments, prog="object_storage.py", description=__doc__)
    return run_command(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
