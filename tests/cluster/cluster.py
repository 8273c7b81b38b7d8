"""A real Slurm on this machine: munged, slurmctld and a slurmd per node on loopback.

    python -m tests.cluster.cluster FOLDER      # runs until Ctrl-C
    . FOLDER/env.sh                             # in another shell, then sinfo, sbatch ...

All files are in one folder. Each node has fake GPUs: device files like /dev/null, which gres.conf
accepts. Needs root and Debian's slurm-wlm and munge (tested with 22.05 and 0.5.15).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.forked import ForkServer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
RANK_MODULES = (
    "allinone.pretrain.run",
    "allinone.pretrain.train",
    "deepspeed",
    "allinone.data.loading.loader",
    "allinone.data.loading.cotrain",
    "allinone.data.loading.dali_pipeline",
    "allinone.engine.trainer",
    "allinone.tools.node_check",
    "psutil",
    "torch.utils.tensorboard",
    "transformers.models.bert.tokenization_bert",
    "tyro.extras",
    "typeguard",
    "matplotlib.figure",
    "setuptools",
)
"""What a rank imports before its first step."""
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
PlugStackConfig={folder}/plugstack.conf
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5,sched_min_interval=100000
EnforcePartLimits=ALL
JobRequeue=1
ReturnToService=0
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=3600
SlurmdTimeout=60
SlurmctldTimeout=60
InactiveLimit=0
Waittime=0
TreeWidth=50
GresTypes=gpu
NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] \
Sockets=2 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:a100:{gpus} State=UNKNOWN
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here, or ''."""
    missing = [
        name
        for name in PROGRAMS
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "only root can start a cluster"


def free_ports(number: int) -> int:
    """First of `number` consecutive free TCP ports, above those that jobs use."""
    for base in range(30_000 + os.getpid() % 40 * 50, 32_700 - number, 50):
        try:
            for port in range(base, base + number):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports between 30000 and 32700")


def wait_for(
    what: str, condition: Callable[[], object], timeout_s: float, every_s: float = 0.2
) -> None:
    """Wait until a condition holds.

    Args:
        what: What is waited for, for the message.
        condition: Called repeatedly.
        timeout_s: Seconds after which AssertionError is raised.
        every_s: Seconds between two calls.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"after {timeout_s:g} s there is still no {what}"
        time.sleep(every_s)


class Cluster:
    """`with Cluster(folder) as cluster:` starts idle nodes node01 ... and a fork server.

    `cluster.python` replaces the interpreter and forks from the server.
    """

    def __init__(self, folder: Path, nodes: int = 16, gpus: int = 8) -> None:
        self.folder, self.gpus = folder, gpus
        self.nodes = [f"node{number:02d}" for number in range(1, nodes + 1)]
        self.python = folder / "python"
        """Replaces the interpreter: forks from the server."""
        self.env = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        self.env |= {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_GLOO_LAZY_INIT": "1",
        }
        self.env |= {"PYTHONPATH": str(ROOT), "PYTHON": str(self.python), "RESTART_DELAY_S": "0"}
        self.env["SITE"] = str(folder / "site.sh")
        self._server: ForkServer | None = None

    def __enter__(self) -> Cluster:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._server = ForkServer(self.folder, RANK_MODULES, self.env)
            self._configure(self._server)
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the started jobs, then the started daemons."""
        if self._pids("slurmctld.pid"):
            self.run(
                "scancel", "--full", *self.run("squeue", "-h", "-o", "%i").split(), check=False
            )
            try:
                wait_for("empty queue", lambda: not self.run("squeue", "-h", check=False), 30)
            except AssertionError as error:
                print(error, file=sys.stderr)
        if self._server:
            self._server.close()
        pids = self._pids("*.pid")
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            for pid in filter(alive, pids):
                os.kill(pid, number)
            end = time.monotonic() + seconds
            while any(map(alive, pids)) and time.monotonic() < end:
                time.sleep(0.05)

    def _pids(self, pattern: str) -> list[int]:
        paths = (self.folder / "run").glob(pattern)
        return [
            pid for pid in (int(path.read_text() or "0") for path in paths) if pid and alive(pid)
        ]

    def _configure(self, server: ForkServer) -> None:
        folder, base = self.folder, free_ports(1 + len(self.nodes))
        for name in (
            "run",
            "log",
            "ctld",
            "spool",
            "dev",
            *(f"spool/{node}" for node in self.nodes),
        ):
            (folder / name).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        names = f"node[{self.nodes[0][4:]}-{self.nodes[-1][4:]}]"
        ports = {"port": base, "first_port": base + 1, "last_port": base + len(self.nodes)}
        (folder / "slurm.conf").write_text(
            CONFIG.format(folder=folder, host=host, names=names, gpus=self.gpus, **ports)
        )
        (folder / "gres.conf").write_text(
            f"NodeName={names} Name=gpu Type=a100 File={folder}/dev/gpu[0-{self.gpus - 1}]\n"
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "plugstack.conf").touch()
        # All nodes share the cores of this machine, so the measured speed of a node means nothing.
        (folder / "site.sh").write_text("NODE_CHECK_OPTIONS=(--slow 0.0001)\n")
        for gpu in range(self.gpus):
            device = folder / "dev" / f"gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.python.write_text(f'#!/bin/sh\nexec {shlex.join(server.command())} "$@"\n')
        self.python.chmod(0o755)
        shown = (
            "SLURM_CONF",
            "DS_ACCELERATOR",
            "OMP_NUM_THREADS",
            "GLOO_SOCKET_IFNAME",
            "TORCH_GLOO_LAZY_INIT",
            "PYTHON",
            "PYTHONPATH",
        )
        (folder / "env.sh").write_text(
            "".join(f"export {name}={self.env[name]}\n" for name in shown)
        )

    def _start_daemons(self) -> None:
        folder = self.folder
        munge = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "run/munged.pid",
            "log-file": "log/munged.log",
        }
        munge["seed-file"] = "munge.seed"
        self.run(
            "munged",
            "--force",
            "--num-threads=4",
            *(f"--{name}={folder / path}" for name, path in munge.items()),
        )
        self.run("slurmctld", "-c")
        for node in self.nodes:
            self.run("slurmd", "-c", "-N", node)
        wait_for(
            "16 idle nodes",
            lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(self.nodes),
            60,
        )

    def wait_for_fork_server(self) -> None:
        """Wait until ranks can be started through `python`."""
        assert self._server
        self._server.wait()

    def run(self, *command: str | Path, check: bool = True, cwd: Path = ROOT, **env: str) -> str:
        """Standard output of a command in the cluster's environment."""
        done = subprocess.run(
            command, env={**self.env, **env}, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str | Path, log: Path, cwd: Path = ROOT, **env: str) -> BatchJob:
        """Submit; options, script and arguments as on the command line."""
        options = ("--parsable", f"--output={log}")
        return BatchJob(self, self.run("sbatch", *options, *arguments, cwd=cwd, **env).strip(), log)


class BatchJob:
    """One batch job."""

    def __init__(self, cluster: Cluster, number: str, log: Path) -> None:
        self.cluster, self.id, self.log = cluster, number, log

    def field(self, name: str) -> str:
        """What scontrol shows, for example JobState, ExcNodeList, NodeList, Restarts."""
        shown = self.cluster.run("scontrol", "-o", "show", "job", self.id)
        match = re.search(rf"(?:^|\s){name}=(\S+)", shown)
        assert match, shown
        return match[1]

    def wait(
        self,
        timeout_s: float = 180,
        states: Sequence[str] = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
    ) -> str:
        """The state in which it ended."""
        try:
            wait_for(f"end of job {self.id}", lambda: self.field("JobState") in states, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.text()}") from None
        return self.field("JobState")

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def cancel(self) -> None:
        """Cancel it and wait for its end."""
        self.cluster.run("scancel", self.id)
        self.wait(60)


def alive(pid: int) -> bool:
    """Whether a process exists; a zombie does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    with Cluster(Path(sys.argv[1]).resolve()) as cluster:
        cluster.wait_for_fork_server()
        stops = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        print(f"{len(cluster.nodes)} nodes are idle:  . {cluster.folder}/env.sh", flush=True)
        signal.sigwait(stops)
