"""The interface between annotation readers and tasks: items and splits. Readers do not open media
files, and tasks do not know file formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from allinone.common.errors import AllInOneError


class AnnotationError(AllInOneError, ValueError):
    """Annotation files are missing, have another format, or contradict each other; the message says
    what was given and what is needed."""


@dataclass(frozen=True)
class Media:
    """One video, GIF or image, or a part of one."""

    id: str
    """Unique inside the benchmark; the same video has the same id in every split."""
    path: str
    """Relative to the media folder; without a suffix, all known suffixes are tried."""
    start_s: float | None = None
    """Start of the part, seconds; None = start of the file."""
    end_s: float | None = None
    """End of the part, seconds; None = end of the file."""


@dataclass(frozen=True)
class RetrievalItem:
    """A media item with its captions."""

    id: str
    media: Media
    captions: tuple[str, ...]


@dataclass(frozen=True)
class QAItem:
    """An open-ended question."""

    id: str
    media: Media
    question: str
    answers: tuple[str, ...] = ()
    """Correct answers; several if annotators disagree (VQAv2: all ten, in order). Empty if the
    split hides them."""
    kind: str = ""
    """The benchmark's type of question (VQAv2: yes/no, number, other); scores are also reported per
    type. `free:color` counts in `free` as well."""


@dataclass(frozen=True)
class ChoiceItem:
    """A question with options. `question` is empty if the options describe the video (MSR-VTT and
    LSMDC multiple choice)."""

    id: str
    media: Media
    question: str
    choices: tuple[str, ...]
    answer: int | None = None
    """Index of the correct option; None if the split hides it."""
    context: str = ""
    """Subtitles, if the benchmark has them."""
    kind: str = ""
    """The benchmark's type of question, see `QAItem.kind`."""


@dataclass(frozen=True)
class ClipChoiceItem:
    """A text with several clips, one of which matches it (EgoMCQ)."""

    id: str
    text: str
    clips: tuple[Media, ...]
    answer: int | None = None
    kind: str = ""
    """inter: clips of different videos; intra: clips of the same video."""

    @property
    def media(self) -> Media:
        """The first clip, for code that needs one media item per item; `media_ids` gives all."""
        return self.clips[0]


@dataclass(frozen=True)
class ImageRegion:
    """One detected object in an image. Box in pixels of the image: x1, y1, x2, y2."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class VCRItem:
    """A VCR question. Texts are token lists; a tuple of ints in them holds indices into `regions`,
    as in the official files."""

    id: str
    media: Media
    regions: tuple[ImageRegion, ...]
    question: tuple[str | tuple[int, ...], ...]
    answers: tuple[tuple[str | tuple[int, ...], ...], ...]
    rationales: tuple[tuple[str | tuple[int, ...], ...], ...]
    answer: int | None = None
    rationale: int | None = None
    metadata: str = ""
    """The image's metadata file with the outlines of the regions, relative to the media folder.
    Outlines are too large to keep for all items."""


@dataclass(frozen=True)
class LabelItem:
    """A media item with a class."""

    id: str
    media: Media
    label: int | None


Item = RetrievalItem | QAItem | ChoiceItem | ClipChoiceItem | VCRItem | LabelItem


def media_ids(item: Item) -> tuple[str, ...]:
    """The media that an item shows."""
    return (
        tuple(clip.id for clip in item.clips)
        if isinstance(item, ClipChoiceItem)
        else (item.media.id,)
    )


@dataclass(frozen=True)
class Split:
    """One named split of a benchmark."""

    name: str
    items: Sequence[Item]
    files: tuple[str, ...]
    """Annotation files that were read."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for LabelItem."""
    notes: tuple[str, ...] = ()
    """Notes for the user: rows left out with reason and count, found and official numbers."""
    answer_space: tuple[str, ...] = field(default=())
    """Fixed answer vocabulary, if the benchmark ships one."""
    reference_answers: tuple[str, ...] = field(default=())
    """The answer vocabulary in the order of the original's class numbers, if it differs."""
    shared_captions: bool = False
    """Retrieval: a caption of several media items is one query, and each of them is relevant."""


def assert_disjoint(*splits: Split) -> None:
    """Raise AnnotationError if two splits share a media item: test media must not be trained on."""
    for i, first in enumerate(splits):
        mine = _all_media(first)
        for second in splits[i + 1 :]:
            shared = sorted(mine & _all_media(second))
            if shared:
                raise AnnotationError(
                    f"splits {first.name!r} and {second.name!r} share {len(shared)} media items,"
                    f" for example {', '.join(shared[:3])}: a result on {second.name!r} would be"
                    f" leaked. Check {', '.join(first.files)} and {', '.join(second.files)}"
                )


def _all_media(split: Split) -> set[str]:
    return {media for item in split.items for media in media_ids(item)}
