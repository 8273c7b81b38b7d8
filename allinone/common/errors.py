"""The base of all errors that a user can act on, and the errors of the data path."""

from __future__ import annotations

import errno

from allinone.common.exit_codes import ExitCode

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Values of OSError.errno for a disk that accepts no more data."""
OF_THE_NAME = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
        errno.EILSEQ,
    }
)
"""Values of OSError.errno that say something about one path, and nothing about the storage: a name
that is too long or that the file system does not accept, a link to itself, a socket."""
LASTING = OF_THE_NAME | {errno.EMFILE, errno.ENFILE, None}
"""Values of OSError.errno for a file that will be unusable the next time too. Everything else (EIO,
ESTALE, ESHUTDOWN, a full disk) is storage in trouble: a job that is started again may succeed.
None: pyarrow's own errors, for a file that is not what its name says."""


class AllInOneError(Exception):
    """An error that a user can act on: printed as one line, without a traceback.

    Args:
        message: What was given, what was needed and which option to change.
        hint: A further line with a suggestion.
        exit_code: Overrides the class's exit code.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(
        self, message: str = "", *, hint: str = "", exit_code: ExitCode | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(AllInOneError, ValueError):
    """Options contradict each other or the machine; the message says which to change."""


class LocalConfigError(ConfigError):
    """A configuration error that other ranks may not have."""


class InputError(AllInOneError, ValueError):
    """Something that a user gave cannot be used; the message names the option."""


class DataError(AllInOneError, RuntimeError):
    """Prepared data is missing, unfinished, damaged, or holds too many bad clips; the message says
    what to run or change."""


class LostDataError(DataError):
    """A file of prepared data is not where the index says."""


class StorageError(DataError):
    """The storage failed while a file was read: this says nothing about the file, and a job that is
    started again may succeed."""

    exit_code = ExitCode.FAILURE


class GraphError(Exception):
    """DALI could not process some samples of a micro-batch.

    Args:
        bad: Sample number in the micro-batch → DALI's message.
    """

    def __init__(self, bad: dict[int, str]) -> None:
        super().__init__(f"DALI failed on sample(s) {bad}")
        self.bad = bad
