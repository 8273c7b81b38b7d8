"""Conceptual Captions: CC3M (Train_GCC-training.tsv: caption TAB url; Sharma et al., ACL 2018) and
CC12M (cc12m.tsv: url TAB caption, the other way round; Changpinyo et al., CVPR 2021). Neither has a
header, and both know URLs only.

Images lie where the downloader put them: --names is a template over the URL. The default is the
CRC-32 of the URL, as the common download script of Conceptual Captions names them. What img2dataset
downloads is read as WebDataset tars instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.sources.base import (
    Format,
    ReadOptions,
    SourceRow,
    bad,
    image_of,
    media_row,
    tab_lines,
)

CC3M = {
    "Train_GCC-training.tsv": ("train", "training/{crc32}"),
    "Validation_GCC-1.1.0-Validation.tsv": ("val", "validation/{crc32}"),
}
CC12M = {"cc12m.tsv": ("train", "training/{crc32}")}
PERSON = "<PERSON>"
"""CC12M's stand-in for a name. It becomes "person", which CC3M writes and BERT's vocabulary knows;
as it is, it would be cut to '<', 'person', '>'."""


def _listed(source: Path, names: dict[str, tuple[str, str]]) -> list[Path]:
    paths = [source] if source.is_file() else [source / name for name in names]
    return [path for path in paths if path.name in names and path.is_file()]


def _read(
    source: Path, options: ReadOptions, names: dict[str, tuple[str, str]], url_first: bool
) -> Iterator[SourceRow]:
    root = options.media or (source.parent if source.is_file() else source)
    files = _listed(source, names)
    if not files:
        raise DataError(
            f"{source} holds none of {', '.join(names)}; give the official file, or a folder"
            " with it"
        )
    if (
        options.names
        and len(files) > 1
        and "{split}" not in options.names
        and not any(f in options.names for f in ("{crc32}", "{md5}"))
    ):
        raise DataError(
            f"--names {options.names!r} gives the same files for"
            f" {' and '.join(path.name for path in files)}; put {{split}} into it (train or val),"
            " or prepare each list by itself, with its own --videos"
        )
    for path in files:
        split, template = names[path.name]
        for line, fields in tab_lines(path, 2):
            place = f"{path.name}:{line}"
            if isinstance(fields, str):
                yield bad(split, f"line-{line}", path, place, fields)
                continue
            url, caption = fields if url_first else reversed(fields)
            if "://" not in url:
                swapped = (
                    f"; is this {'CC3M, with the caption' if url_first else 'CC12M, with the URL'}"
                    " first?"
                    if line == 1
                    else ""
                )
                yield bad(
                    split,
                    f"line-{line}",
                    path,
                    place,
                    f"line {line} has no URL where one should be{swapped}",
                )
                continue
            relative = image_of(options.names or template, split, line - 1, url)
            yield media_row(
                split,
                relative.as_posix(),
                (caption.replace(PERSON, "person"),),
                root,
                relative,
                path,
                f"line-{line}",
                "jpg",
            )


CC3M_FORMAT = Format(
    "cc3m",
    "Train_GCC-training.tsv or Validation_GCC-1.1.0-Validation.tsv (caption TAB url), or a folder"
    " with them",
    lambda source: _listed(source, CC3M),
    lambda source, options: _read(source, options, CC3M, url_first=False),
    {
        "Train_GCC-training.tsv": {"train": (3_318_333, True)},
        "Validation_GCC-1.1.0-Validation.tsv": {"val": (15_840, True)},
    },
)
CC12M_FORMAT = Format(
    "cc12m",
    "cc12m.tsv (url TAB caption), or a folder with it",
    lambda source: _listed(source, CC12M),
    lambda source, options: _read(source, options, CC12M, url_first=True),
    {"cc12m.tsv": {"train": (12_400_000, False)}},
)
