"""Exit codes of every command; slurm/lib.sh decides by them what happens to a job."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a process ended; `meaning` is the sentence that --help and docs/slurm.md quote."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DISK_FULL = 3
    NON_FINITE = 4
    HANG = 5
    REQUEUE = 75

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "finished",
    ExitCode.FAILURE: (
        "unexpected error, or another rank exited; the batch scripts check the nodes and start"
        " again"
    ),
    ExitCode.USAGE: "wrong options or unusable data; starting again does not help",
    ExitCode.DISK_FULL: "the disk or a quota is full",
    ExitCode.NON_FINITE: "too many steps in a row had a non-finite gradient",
    ExitCode.HANG: "a rank made no progress for --hang-timeout-s",
    ExitCode.REQUEUE: "saved after a signal; the same command continues (EX_TEMPFAIL)",
}


def exit_codes_help() -> str:
    """The table of all codes, one per line."""
    return "\n".join(f"{code.value:>3}  {code.meaning}" for code in ExitCode)
