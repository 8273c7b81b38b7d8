"""Programs that feed mutated inputs to the readers; run by hand.

    python -m tests.fuzz.media --inputs 10000
    python -m tests.fuzz.lists --inputs 10000
    python -m tests.fuzz.index --inputs 10000
    python -m tests.fuzz.annotations --inputs 10000
    python -m tests.fuzz.results --inputs 10000

Input k of a seed is always the same. An input may be accepted or refused; a crash, a hang, any
error that is not for users, or memory above the limit is a failure, and the input is kept.
"""
