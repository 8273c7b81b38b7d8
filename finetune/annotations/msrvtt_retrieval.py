"""MSR-VTT caption retrieval in five protocols."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    json_lines,
    read_text,
    table,
    text_of,
    train_part,
)
from allinone.finetune.annotations.msrvtt_videos import (
    ALL_VIDEOS,
    FIRST_VIDEO,
    Captions,
    find_caption_file,
    media_of_video,
    read_captions,
    video_name,
    video_number,
)
from allinone.finetune.annotations.schema import AnnotationError, RetrievalItem, Split

PROTOCOLS = ("9k", "7k", "full", "1k-b", "7k-clipbert")
"""9k, 7k: JSFusion's 1k-A test with 9,000 or 7,010 training videos; full: the official split; 1k-b:
Miech's lists, not comparable with 1k-A; 7k-clipbert: ClipBERT's files of the 7k protocol, with
their own validation split."""
OFFICIAL_SPLITS = ("train", "val", "test")
OWN_SPLITS = (*TRAIN_PARTS, "test")
VIDEOS = {
    ("9k", "train"): 9_000,
    ("9k", "test"): 1_000,
    ("7k", "train"): 7_010,
    ("7k", "test"): 1_000,
    ("full", "train"): 6_513,
    ("full", "val"): 497,
    ("full", "test"): 2_990,
    ("1k-b", "train"): 6_656,
    ("1k-b", "test"): 1_000,
}
"""Number of videos per protocol and split."""
TEST_CSV = "MSRVTT_JSFUSION_test.csv"
CAPTION_INDEX = "jsfusion_val_caption_idx.pkl"
_TRAIN_LISTS = {
    "9k": ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"),
    "7k": ("MSRVTT_train.7k.csv",),
    "1k-b": ("train_list_miech.txt",),
}
_LISTS_SOURCE = (
    "CLIP4Clip's msrvtt_data.zip for the CSV lists, frozen-in-time's MSRVTT.zip for the lists"
    " of ids"
)


def load_retrieval(folder: Path, split: str, protocol: str) -> Split:
    """One split of a protocol other than 7k-clipbert.

    Args:
        folder: Holds the files.
        split: One of OWN_SPLITS; of `full`, one of OFFICIAL_SPLITS.
        protocol: One of PROTOCOLS.

    Raises:
        AnnotationError: The split is unknown, files are missing, or the lists leak.
    """
    check_split(
        split,
        OFFICIAL_SPLITS if protocol == "full" else OWN_SPLITS,
        f"MSR-VTT retrieval {protocol}",
    )
    builder = Builder(split)
    half = split if split in ("val", "test") else "train"
    if half == "test" and protocol in ("9k", "7k"):
        for item in _test_1k_a(folder, builder):
            builder.add(item, item.id)
    else:
        # 9k and 1k-b also train on videos of the official test split
        captions = read_captions(
            folder, builder, with_test=half == "test" or protocol in ("9k", "1k-b")
        )
        for video in _videos(folder, protocol, half, captions, builder):
            texts = captions.of.get(video, [])
            if protocol == "1k-b" and half == "test":
                texts = texts[:1]
            if texts:
                builder.add(RetrievalItem(video, media_of_video(video), tuple(texts)), video)
            else:
                builder.leave_out("the video has no caption", video)
    builder.official("videos", len(builder.items), VIDEOS[protocol, half])
    if protocol == "1k-b" and half == "test":
        builder.note(
            "the query of a video is its first caption, as in Miech et al.'s protocol; results are"
            " not comparable with 1k-A"
        )
    if protocol == "full" or half == "test":
        return builder.split()
    return builder.split(
        train_part(
            [item for item in builder.items.values() if isinstance(item, RetrievalItem)], split
        )
    )


def _videos(
    folder: Path, protocol: str, half: str, captions: Captions, builder: Builder
) -> Sequence[str]:
    """The videos of a list, or by the protocol's definition if there is no list.

    Raises:
        AnnotationError: A training list contains test videos.
    """
    if protocol == "full":
        return captions.videos(half)
    if protocol == "1k-b":
        # 453 of these training videos are in the 1k-A test, and the two tests share only 296 videos
        train = _list(folder, "train_list_miech.txt", builder)
        test = _list(folder, "test_list_miech.txt", builder)
        _refuse_leak(train, test, "train_list_miech.txt", "test_list_miech.txt")
        return train if half == "train" else test
    if protocol == "9k":
        # 9,000 = train, val and the 1,990 test videos that are not in the 1k-A test
        tests, test_name = {item.id for item in _test_1k_a(folder, builder)}, TEST_CSV
    else:
        tests = {f"video{number}" for number in range(FIRST_VIDEO["test"], ALL_VIDEOS)}
        test_name = "the official test"
    name = next((name for name in _TRAIN_LISTS[protocol] if find_caption_file(folder, name)), None)
    if name:
        train = _list(folder, name, builder)
        _refuse_leak(train, tests, name, test_name)
        return train
    # 9,000 and 7,010 videos, as the lists hold
    splits = ("train", "val", "test") if protocol == "9k" else ("train", "val")
    chosen = [video for video in captions.videos(*splits) if video not in tests]
    builder.note(
        f"there is no {' or '.join(_TRAIN_LISTS[protocol])}: the training videos are those of the"
        " official "
        + (
            "splits that are not in the 1k-A test"
            if protocol == "9k"
            else "train and validation splits, which is what the list holds"
        )
    )
    return chosen


def _refuse_leak(
    train: Collection[str], test: Collection[str], list_name: str, test_name: str
) -> None:
    if shared := sorted(set(test).intersection(train), key=video_number):
        raise AnnotationError(
            f"{list_name} contains {len(shared)} videos of {test_name}, for example"
            f" {', '.join(shared[:3])}: a result would be leaked. (Miech's list, called 7K in some"
            f" code, has 453 videos of the 1k-A test.) Use the lists of: {_LISTS_SOURCE}"
        )


def _list(folder: Path, name: str, builder: Builder) -> list[str]:
    """Ids of a CSV with the header video_id, or of a text file with one id per line."""
    path = builder.use(find_caption_file(folder, name) or find(folder, [name], _LISTS_SOURCE))
    if path.suffix == ".csv":
        rows = [
            (where, row["video_id"])
            for where, row in table(path, builder, columns=["video_id"], delimiter=",", quoted=True)
        ]
    else:
        rows = [
            (f"{name}:{number}", line)
            for number, line in enumerate(read_text(path).splitlines(), 1)
            if line.strip()
        ]
    # a dict keeps the order of the file
    videos: dict[str, None] = {}
    for where, text in rows:
        with builder.row(where):
            video = video_name(text)
            if video in videos:
                raise RowError("the video is repeated in the list")
            videos[video] = None
    return list(videos)


def _test_1k_a(folder: Path, builder: Builder) -> list[RetrievalItem]:
    """Read the 1k-A test: exactly one caption per video, 1,000 x 1,000.

    A repeated video would change the protocol, so it is an error, not a note.
    """
    path = find_caption_file(folder, TEST_CSV)
    if path is None and find_caption_file(folder, CAPTION_INDEX):
        raise AnnotationError(
            f"{folder} has {CAPTION_INDEX}, which selects the caption of MSR_VTT.json for each test"
            " video. It is a pickle file, which can run any program when it is loaded, and is"
            f" refused. Add {TEST_CSV} to the folder: the same 1,000 captions as text (CLIP4Clip's"
            " msrvtt_data.zip)"
        )
    path = builder.use(
        path or find(folder, [TEST_CSV], "CLIP4Clip's msrvtt_data.zip, or JSFusion's repository")
    )
    items: dict[str, RetrievalItem] = {}
    for where, row in table(
        path, builder, columns=["video_id", "sentence"], delimiter=",", quoted=True
    ):
        with builder.row(where):
            video = video_name(text_of(row, "video_id"))
            if video in items:
                raise AnnotationError(
                    f"{path}: {video} is repeated ({where}); the 1k-A test has exactly one caption"
                    " per video, and all 20 of them would give another number"
                )
            # 1,000 rows hold 995 different sentences: equal texts stay separate queries
            items[video] = RetrievalItem(video, media_of_video(video), (text_of(row, "sentence"),))
    return list(items.values())


def load_clipbert_retrieval(folder: Path, split: str) -> Split:
    """One split of ClipBERT's files."""
    check_split(split, OFFICIAL_SPLITS, "MSR-VTT retrieval in ClipBERT's form")
    builder = Builder(split)
    path = builder.use(
        find(
            folder,
            [f"msrvtt_retrieval_{split}.jsonl", f"{split}.jsonl"],
            "ClipBERT's msrvtt_retrieval annotations",
        )
    )
    captions: dict[str, list[str]] = {}
    for where, record in json_lines(path, builder):
        with builder.row(where):
            captions.setdefault(video_name(text_of(record, "clip_name")), []).append(
                text_of(record, "caption")
            )
    # with all 20 captions as queries, R@1 falls to 3 or 4 %
    several = sorted(
        (video for video, texts in captions.items() if len(texts) > 1), key=video_number
    )
    if split == "test" and several:
        raise AnnotationError(
            f"{path}: {several[0]} is repeated; the 1k-A test has exactly one caption per video"
        )
    for video, texts in captions.items():
        builder.add(RetrievalItem(video, media_of_video(video), tuple(texts)), video)
    if split == "test":
        builder.official("videos", len(builder.items), VIDEOS["7k", "test"])
    return builder.split()
