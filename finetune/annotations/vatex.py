"""VATEX (Wang et al. 2019): retrieval with the split of HGR (Chen et al. 2020), and captions.

vatex_training_v1.0.json and vatex_validation_v1.0.json are arrays of {videoID, enCap, chCap}:
ten English and ten Chinese captions per clip, of which the English ones are read. `videoID` is
<YouTube id>_<start>_<end> with six-digit seconds, as the clips are named.

Captions have the official split: all 3,000 validation clips select the weights, and the 6,000 of
the public test, vatex_public_test_english_v1.1.json, are the test. The private test has none.

Retrieval: the first release had no captions of a test, so HGR halves the validation clips: 1,500
select the weights, 1,500 test (github.com/cshizhe/hgr_v2t/issues/28). Another half is another test:
the lists are needed. Links of VATEX have died: 1,335 of the 1,500 test clips could be downloaded in
2023 (github.com/LiuRicky/ts2_net/issues/11). Clips that are missing here count as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allinone.finetune.annotations.common import (
    Builder,
    RowError,
    check_split,
    find,
    json_rows,
    read_text,
    stem,
    text_of,
    texts_of,
)
from allinone.finetune.annotations.schema import AnnotationError, Media, RetrievalItem, Split

SPLITS = ("train", "val", "test")
CLIPS = {"train": 25_991, "val": 1_500, "test": 1_500}
OFFICIAL_CLIPS = {"train": 25_991, "val": 3_000, "test": 6_000}
PUBLIC_TEST = "vatex_public_test_english_v1.1.json"
CAPTIONS = 10
"""English captions per clip, all of them queries."""
LISTS = {
    "val": ("val_list.txt", "val_names.npy", "public_split/val_names.npy"),
    "test": ("test_list.txt", "tst_names.npy", "public_split/tst_names.npy"),
}
"""One clip per line, or HGR's NumPy file."""
_SOURCE = "VATEX's download page (eric-xw.github.io/vatex-website)"
_LIST_SOURCE = "the data sets of cshizhe/hgr_v2t"


def load(folder: Path, split: str, *, official: bool = False) -> Split:
    """Read one split.

    Args:
        folder: Holds the files of VATEX, and the two lists of HGR.
        split: One of SPLITS.
        official: The official split, for captions, instead of HGR's lists.

    Raises:
        AnnotationError: The split is unknown, or files are missing or have another format.
    """
    check_split(split, SPLITS, "VATEX")
    builder = Builder(split)
    name = f"vatex_{'training' if split == 'train' else 'validation'}_v1.0.json"
    if official and split == "test":
        name = PUBLIC_TEST
    path = builder.use(find(folder, [name, f"annotations/{name}"], _SOURCE))
    for where, record in json_rows(path, builder):
        with builder.row(where):
            clip = stem(text_of(record, "videoID"))
            captions = tuple(caption for caption in texts_of(record, "enCap") if caption)
            if not captions:
                raise RowError("'enCap' is empty")
            builder.add(RetrievalItem(clip, Media(clip, clip), captions), where)
    items = list(builder.items.values())
    if split != "train" and not official:
        listed = builder.use(find(folder, LISTS[split], _LIST_SOURCE))
        names = _names(listed)
        for number, clip in enumerate(names, 1):
            if clip not in builder.items:
                builder.leave_out(f"the clip is not in {path.name}", f"{listed.name}:{number}")
        items = [builder.items[clip] for clip in dict.fromkeys(names) if clip in builder.items]
    expected = (OFFICIAL_CLIPS if official else CLIPS)[split]
    builder.official("clips", len(items), expected, verified=False)
    found = sum(len(item.captions) for item in items if isinstance(item, RetrievalItem))
    builder.official("captions", found, CAPTIONS * expected, verified=False)
    return builder.split(items)


def _names(path: Path) -> Sequence[str]:
    """Clips of a list; AnnotationError if a .npy holds Python objects."""
    if path.suffix != ".npy":
        return [stem(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    import numpy as np

    try:
        # without pickle: an array of objects can run any program when it is loaded
        names = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise AnnotationError(
            f"{path} cannot be read without pickle ({error}); write its names into"
            f" {LISTS['test' if path.name.startswith('tst') else 'val'][0]}, one per line"
        ) from error
    return [stem(name.decode() if isinstance(name, bytes) else name) for name in names.tolist()]
