"""Errors of the data path that a user can mend."""

import errno

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What an OSError says of a disk that takes no more."""
LASTING = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EMFILE, errno.ENFILE, None}
)
"""What an OSError says of a file that will not be there the next time either. All else (EIO,
ESTALE, ESHUTDOWN, a full disk) is storage in trouble, and a job that is started again may get
through. None: pyarrow's own, of a file that is not what its name says."""


class DataError(RuntimeError):
    """Prepared data is missing, unfinished, damaged, or holds too many bad clips; the message says
    what to run or change."""


class LostDataError(DataError):
    """A file of prepared data is not where the index says."""


class GraphError(Exception):
    """Samples that the graph cannot process: their numbers in the micro-batch, with DALI's
    messages."""

    def __init__(self, bad: dict[int, str]) -> None:
        super().__init__(f"DALI failed on sample(s) {bad}")
        self.bad = bad
