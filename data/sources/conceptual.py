"""Conceptual Captions: CC3M and CC12M, lists of captions and URLs without a header.

CC3M (Sharma et al., ACL 2018): Train_GCC-training.tsv, caption TAB url. CC12M (Changpinyo et al.,
CVPR 2021): cc12m.tsv, url TAB caption, the other way round.

The path of an image follows from its URL by the template --names. The default is the CRC-32 of the
URL, as the common download script of Conceptual Captions names its files. Downloads of img2dataset
are read as WebDataset tars instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.sources.media import image_path, media_folder, media_row
from allinone.data.sources.reading import listed_files, tsv_records
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

CC3M = {
    "Train_GCC-training.tsv": ("train", "training/{crc32}"),
    "Validation_GCC-1.1.0-Validation.tsv": ("val", "validation/{crc32}"),
}
CC12M = {"cc12m.tsv": ("train", "training/{crc32}")}
PERSON = "<PERSON>"
"""CC12M's placeholder for a name. It becomes "person", as in CC3M, which BERT's vocabulary has; the
placeholder would be split into '<', 'person', '>'."""


def _check(
    source: Path, options: ReadOptions, names: dict[str, tuple[str, str]], files: list[Path]
) -> None:
    """Raise DataError if there is no list, or if lists would share the files of --names.

    Args:
        source: A list, or the folder that holds lists.
        options: How to read them.
        names: File name → (split, template of an image's path).
        files: The lists that exist.
    """
    if not files:
        raise DataError(
            f"{source} holds none of {', '.join(names)}; give the official file, or a folder"
            " with it"
        )
    template = options.names
    distinct = ("{split}", "{crc32}", "{md5}")
    if template and len(files) > 1 and not any(name in template for name in distinct):
        raise DataError(
            f"--names {template!r} gives the same files for"
            f" {' and '.join(path.name for path in files)}; put {{split}} into it (train or val),"
            " or prepare each list separately, with its own --videos"
        )


def _read(
    source: Path, options: ReadOptions, names: dict[str, tuple[str, str]], url_first: bool
) -> Iterator[SourceRow]:
    """Read the lists.

    Args:
        source: A list, or the folder that holds lists.
        options: How to read them.
        names: File name → (split, template of an image's path).
        url_first: Whether the URL is the first field, as in CC12M.
    """
    root = media_folder(source, options.media)
    files = listed_files(source, names)
    _check(source, options, names, files)
    for path in files:
        split, template = names[path.name]
        for line, fields in tsv_records(path, 2):
            place = f"line-{line}"
            shown = f"{path.name}:{line}"
            if isinstance(fields, str):
                yield bad_row(split, place, path, shown, fields)
                continue
            url, caption = fields if url_first else reversed(fields)
            # the two sets have their columns in opposite order: a swap shows in the first line
            if "://" not in url:
                detail = f"line {line} has no URL where one should be"
                if line == 1:
                    other = "CC3M, with the caption" if url_first else "CC12M, with the URL"
                    detail += f"; is this {other} first?"
                yield bad_row(split, place, path, shown, detail)
                continue
            image = image_path(options.names or template, split, line - 1, url)
            captions = (caption.replace(PERSON, "person"),)
            yield media_row(split, image.as_posix(), captions, root, image, path, place, "jpg")


CC3M_FORMAT = SourceFormat(
    "cc3m",
    "Train_GCC-training.tsv or Validation_GCC-1.1.0-Validation.tsv (caption TAB url), or a folder"
    " with them",
    lambda source: listed_files(source, CC3M),
    lambda source, options: _read(source, options, CC3M, url_first=False),
    {
        "Train_GCC-training.tsv": {"train": (3_318_333, True)},
        "Validation_GCC-1.1.0-Validation.tsv": {"val": (15_840, True)},
    },
)
CC12M_FORMAT = SourceFormat(
    "cc12m",
    "cc12m.tsv (url TAB caption), or a folder with it",
    lambda source: listed_files(source, CC12M),
    lambda source, options: _read(source, options, CC12M, url_first=True),
    {"cc12m.tsv": {"train": (12_400_000, False)}},
)
