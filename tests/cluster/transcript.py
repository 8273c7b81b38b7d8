"""Write docs/cluster_transcript.md from a real run.

    python -m tests.cluster.transcript > docs/cluster_transcript.md

Shows commands and their output in order. Paths of the machine are shortened, and "..." marks where
long output is cut.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.cluster.cluster import ROOT, BatchJob, Cluster, wait_for
from tests.cluster.test_slurm import PRETRAIN, await_steps, options, ranks_of, rows
from tests.data.helpers import small_demo


class Transcript:
    """Runs commands on the cluster and prints them with their output as Markdown."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def say(self, text: str) -> None:
        """A paragraph."""
        print(f"\n{text}\n", flush=True)

    def shown(self, text: str) -> str:
        """Text without the paths of this machine and without warnings of libraries."""
        packages = f"{sysconfig.get_paths()['purelib']}/"
        for path, name in ((str(self.folder), "TMP"), (f"{ROOT}/", ""), (packages, "")):
            text = text.replace(path, name)
        lines = [line for line in text.splitlines() if not NOISE.search(line)]
        return "\n".join(line[:170] for line in lines)

    def run(self, *command: str | Path, **env: str) -> str:
        """Run, print, return the output."""
        output = self.cluster.run(*command, **env)
        given = " ".join(f"{name}={value}" for name, value in env.items())
        self.block(f"{given} {shlex.join(map(str, command))}".strip(), output)
        return output

    def block(self, command: str, output: str, last: int | None = None) -> None:
        """A command and its output, or the last lines of it."""
        lines = self.shown(output).splitlines()
        cut = ["..."] if last and len(lines) > last else []
        print(
            "\n".join(
                ["```", f"$ {self.shown(command)}", *cut, *lines[-(last or len(lines)) :], "```"]
            ),
            flush=True,
        )

    def submit(self, *arguments: str | Path, name: str) -> BatchJob:
        """sbatch, shown."""
        log = self.folder / f"{name}.log"
        job = self.cluster.sbatch(*arguments, log=log)
        self.block(
            shlex.join(["sbatch", f"--output={log}", *map(str, arguments)]),
            f"Submitted batch job {job.id}",
        )
        return job


NOISE = re.compile(
    r"Warning|WARNING|return func\(|return torch\.cat\(|^  File |^    |^Traceback|^Terminated"
)


def first_block(job: BatchJob) -> str:
    """The first error, which is at the top of a job's log."""
    return job.text().partition("the log begins below")[0] + "the log begins below"


def story(t: Transcript, clips: Path) -> None:
    """The steps of the transcript."""
    two = ("--nodes=2", "--gpus-per-node=1")
    t.say("## Submit, train")
    t.run("sinfo", "--format=%P %D %T %G %N")
    sixteen = t.submit(
        "--gpus-per-node=1",
        PRETRAIN,
        *options(clips, t.folder / "sixteen", steps=3, ranks=16),
        name="sixteen",
    )
    sixteen.wait(300)
    t.block(f"cat {sixteen.log}", sixteen.text())

    t.say("## Time limit → USR1 → checkpoint → requeue → continuation")
    limited = t.submit(
        "--time=1",
        "--signal=B:USR1@50",
        *two,
        PRETRAIN,
        *options(clips, t.folder / "limited"),
        name="limited",
    )
    await_steps(limited, t.folder / "limited", 2)
    t.run("squeue", "--format=%i %j %T %M %l %N")
    wait_for("requeued run", lambda: "resumed from" in limited.text(), 200)
    saved = max(int(path.name[5:]) for path in (t.folder / "limited").glob("checkpoints/step-*"))
    await_steps(limited, t.folder / "limited", saved + 2)
    limited.cancel()
    t.block(f"tail -n 24 {limited.log}", limited.text(), last=24)

    t.say(
        "## `kill -9` of rank 1, SIGSTOP of rank 1, `scontrol update State=down` of its node, in"
        " one job"
    )
    out = t.folder / "faults"
    faults = t.submit(*two, PRETRAIN, *options(clips, out, hang_timeout_s=30), name="faults")
    for number, name in ((signal.SIGKILL, "KILL"), (signal.SIGSTOP, "STOP")):
        starts = faults.text().count("start ")
        await_steps(faults, out, len(rows(out)) + 6)
        os.kill(ranks_of(faults)[1], number)
        begin = time.monotonic()
        wait_for(
            "restart",
            lambda starts=starts: faults.text().count("starting again") > starts // 2,
            120,
        )
        t.block(f"kill -{name} RANK_1; head {faults.log}", first_block(faults))
        t.say(
            f"The job started again inside its allocation {time.monotonic() - begin:.1f} s after"
            " the signal."
        )
        wait_for(
            "resumed run",
            lambda name=name: faults.text().count("resumed from") == (1 if name == "KILL" else 2),
            90,
        )
    await_steps(faults, out, len(rows(out)) + 3)
    t.run("scontrol", "update", "NodeName=node02", "State=down", "Reason=test")
    wait_for("requeued run", lambda: faults.text().count("resumed from") == 3, 120)
    t.run("squeue", "--format=%i %j %T %M %N")
    faults.cancel()
    t.block(f"cat {out}/slurm/starts.tsv", (out / "slurm/starts.tsv").read_text())
    t.block(
        f"grep -E 'start|node check|resumed|ended|again|requeueing' {faults.log}",
        "\n".join(_milestones(faults.text())),
    )

    undisturbed = t.submit(
        *two, PRETRAIN, *options(clips, t.folder / "undisturbed"), name="undisturbed"
    )
    await_steps(undisturbed, t.folder / "undisturbed", len(rows(out)), 300)
    undisturbed.cancel()
    equal = rows(t.folder / "undisturbed")[: len(rows(out))] == rows(out)
    t.say(
        f"Losses, gradient norms and digests of the {len(rows(out))} steps of that run,"
        " compared with those of an undisturbed job:"
        f" {'**equal, bit for bit**' if equal else '**different**'}."
    )


def _milestones(text: str) -> list[str]:
    below = text.rpartition("the log begins below")[2]
    return [
        line
        for line in below.splitlines()
        if re.search(
            r"^start|^node check|^resumed|^the ranks ended|again|requeueing|^first error|^=+"
            r" (first|hung)",
            line,
        )
    ]


def main() -> int:
    """Command line entry."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(
            PrepareOptions(small_demo(folder / "source", 64), folder / "few", workers=1),
            progress=False,
        )
        with Cluster(folder / "cluster") as cluster:
            cluster.wait_for_fork_server()
            version = cluster.run("slurmctld", "-V").strip()
            print("# Transcript of a run on the emulated cluster\n")
            print(
                f"Written by `python -m tests.cluster.transcript` on {time.strftime('%Y-%m-%d')}:"
                f" {version}, one controller and 16 node daemons on one machine with"
                f" {os.cpu_count()} cores, each with 8 fake GPUs. Ranks run on the CPU and are"
                " forked from a server that has done the imports. `TMP` is a temporary folder."
                " Warnings of libraries and tracebacks are omitted."
            )
            story(Transcript(cluster, folder), folder / "few")
    return 0


if __name__ == "__main__":
    sys.exit(main())
