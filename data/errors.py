"""Errors of the data path that a user can mend."""


class DataError(RuntimeError):
    """Prepared data is missing, unfinished, damaged, or holds too many bad clips; the message says what to run or change."""


class GraphError(Exception):
    """Samples that the graph cannot process: their numbers in the micro-batch, with DALI's messages."""

    def __init__(self, bad: dict[int, str]) -> None:
        super().__init__(f"DALI failed on sample(s) {bad}")
        self.bad = bad
