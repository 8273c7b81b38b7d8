"""A server that has imported the heavy modules and forks one rank for every client.

srun starts the client, which behaves like the rank.

    python fork_server.py serve SOCKET MODULE,MODULE    # prints READY
    python -I -S fork_server.py run SOCKET SCRIPT ARGUMENTS...

The rank gets the client's environment, folder and output; signals to the client are forwarded to
the rank; the client ends with the rank's exit code. If the client is killed, so is its rank. This
way 128 ranks fit in the memory of one machine and start quickly. Only tests use it.
"""

# ruff: noqa: PTH100, PTH109, PTH120, PTH123 - the client starts 128 times and imports little
from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGCONT,
)


def receive(connection: socket.socket, number: int) -> bytes:
    """Exactly `number` bytes, or b"" if the other side closed the connection."""
    content = b""
    while len(content) < number:
        part = connection.recv(number - len(content))
        if not part:
            return b""
        content += part
    return content


def run(path: str, argv: list[str]) -> None:
    """The client: send arguments, environment and output, then end like the rank."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    environment = b"\0".join(name + b"=" + value for name, value in os.environb.items())
    ignored = b"\0".join(
        str(int(number)).encode()
        for number in PASSED_ON
        if signal.getsignal(number) is signal.SIG_IGN
    )
    message = b"\1".join(
        [b"\0".join(map(os.fsencode, argv)), os.fsencode(os.getcwd()), environment, ignored]
    )
    socket.send_fds(connection, [struct.pack("!I", len(message))], [0, 1, 2])
    connection.sendall(message)
    pid = struct.unpack("!i", receive(connection, 4))[0]
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    answer = receive(connection, 4)
    if not answer:
        os._exit(1)  # the server is gone
    code = os.waitstatus_to_exitcode(struct.unpack("!i", answer)[0])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def become_rank(message: bytes, descriptors: list[int]) -> None:
    """Turn the forked process into `python SCRIPT ARGUMENTS`; never returns."""
    argv, folder, environment, ignored = message.split(b"\1", 3)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environb.update(entry.split(b"=", 1) for entry in environment.split(b"\0"))
    for number in filter(None, ignored.split(b"\0")):
        signal.signal(int(number), signal.SIG_IGN)
    with open("/proc/self/comm", "w") as name:  # tests find a rank by this name
        name.write(f"{os.environ.get('SLURM_JOB_ID', '')}.{os.environ.get('SLURM_PROCID', '')}")
    os.chdir(folder)
    sys.argv = [os.fsdecode(word) for word in argv.split(b"\0")]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 0
    try:
        import runpy

        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(path: str, modules: list[str]) -> None:
    """The server: one fork per connection, over which the rank's wait status is returned."""
    import gc
    import importlib
    import selectors

    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # otherwise the collector writes to, and so copies, every shared page
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(reader, selectors.EVENT_READ)
    ranks: dict[socket.socket, int] = {}
    print("READY", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _address = listener.accept()
                try:
                    header, descriptors, _flags, _from = socket.recv_fds(connection, 4, 3)
                    message = (
                        receive(connection, struct.unpack("!I", header)[0])
                        if len(header) == 4
                        else b""
                    )
                except ConnectionResetError:
                    message = b""
                if not message:
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for other in (listener, connection, *ranks):
                        other.close()
                    os.close(reader)
                    os.close(writer)
                    become_rank(message, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                ranks[connection] = pid
                selector.register(connection, selectors.EVENT_READ)
                with contextlib.suppress(OSError):  # the client was killed; the selector reports it
                    connection.sendall(struct.pack("!i", pid))
            elif key.fileobj == reader:
                os.read(reader, 4096)
                _report_ends(ranks, selector)
            elif key.fileobj in ranks:  # the client went away, since srun killed it
                os.kill(ranks[key.fileobj], signal.SIGKILL)
                selector.unregister(key.fileobj)


def _report_ends(ranks: dict[socket.socket, int], selector: object) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for connection in [connection for connection, rank in ranks.items() if rank == pid]:
            with contextlib.suppress(OSError):  # the client was killed
                connection.sendall(struct.pack("!i", status))
            if connection in selector.get_map():  # type: ignore[attr-defined]
                selector.unregister(connection)  # type: ignore[attr-defined]
            connection.close()
            del ranks[connection]


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3:])
    else:
        serve(sys.argv[2], sys.argv[3].split(","))
