"""VCR's texts for a language model: names for detections and plain sentences.

There are two namings: `merlot` (rowanz/merlot, downstream/vcr: person i is called NAMES[i mod 50],
other objects by class) and `reference` (All-in-one: `person 0`, numbered by first mention). Only
objects that the texts of the task mention are shown or counted: the original code also highlighted
objects that only the rationales mention when it asked for the answer, which gives the answer away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from allinone.finetune.annotations.schema import VCRItem
from allinone.finetune.annotations.vcr import Tokens

# fmt: off
NAMES = (
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall",
    "Skyler", "Frankie", "Pat", "Quinn", "Morgan", "Finley", "Harley", "Robbie", "Sidney", "Tommie",
    "Ashley", "Carter", "Adrian", "Clarke", "Logan", "Mickey", "Nicky", "Parker", "Tyler", "Reese",
    "Charlie", "Austin", "Denver", "Emerson", "Tatum", "Dallas", "Haven", "Jordan", "Robin", "Rory",
    "Bellamy", "Salem", "Sutton", "Gray", "Shae", "Kyle", "Alex", "Ryan", "Cameron", "Dakota",
)
# fmt: on
"""MERLOT's gender-neutral names, by the detection's original index."""
TASKS = ("answer", "rationale")
_NO_SPACE_BEFORE = frozenset(
    {".", ",", "?", "!", ";", ":", "n't", "'s", "'m", "'re", "'ve", "'ll", "'d", "'", "%", ")", "]"}
)
_NO_SPACE_AFTER = frozenset({"(", "[", "$", "#"})


def names_of(item: VCRItem, naming: str, task: str = "answer") -> tuple[str, ...]:
    """The name of every region.

    Args:
        item: The question.
        naming: merlot or reference.
        task: answer or rationale; decides which mentions the reference's numbers count.

    Raises:
        ValueError: Unknown naming or task.
    """
    if naming == "merlot":
        # by the original index, as in MERLOT: the colours in the picture use it too
        return tuple(
            NAMES[i % len(NAMES)] if region.name == "person" else region.name
            for i, region in enumerate(item.regions)
        )
    if naming == "reference":
        # the original numbers persons and objects alike
        order = {index: place for place, index in enumerate(mentioned(item, task))}
        return tuple(
            f"{region.name} {order[i]}" if i in order else region.name
            for i, region in enumerate(item.regions)
        )
    raise ValueError(f"no naming {naming!r}; choose one of: merlot, reference")


def mentioned(item: VCRItem, task: str) -> tuple[int, ...]:
    """Regions in the order of first mention.

    Mentions in the question and answers count, for `rationale` also those in the rationales.

    Raises:
        ValueError: Unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; choose one of: {', '.join(TASKS)}")
    texts: Iterable[Tokens] = (
        item.question,
        *item.answers,
        *(item.rationales if task == "rationale" else ()),
    )
    return tuple(
        dict.fromkeys(
            index
            for text in texts
            for token in text
            if not isinstance(token, str)
            for index in token
        )
    )


def sentence(tokens: Tokens, names: Sequence[str]) -> str:
    """Write tokens as a sentence, objects by name, no space before punctuation and clitics."""
    # the files hold tokens; MERLOT joins them as sentences, too
    text, glue = "", True
    for token in tokens:
        word = token if isinstance(token, str) else _joined([names[index] for index in token])
        text += word if glue or word in _NO_SPACE_BEFORE else f" {word}"
        glue = word in _NO_SPACE_AFTER
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    """MERLOT puts "and" before the last name and no commas between the others."""
    return names[0] if len(names) == 1 else f"{' '.join(names[:-1])} and {names[-1]}"
