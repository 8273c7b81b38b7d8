"""Errors of the data path that a user can mend."""


class DataError(RuntimeError):
    """Prepared data is missing, unfinished, damaged, or holds too many bad clips; the message says what to run or change."""
