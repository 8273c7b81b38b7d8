"""Options of the data path: frozen dataclasses, saved with every run.

Nothing here depends on rank or world size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from allinone.common.options import option
from allinone.common.validation import (
    COUNT,
    MAX_PIXELS,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Bounds,
    require,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PYTORCHVIDEO_MEAN = (0.45, 0.45, 0.45)
PYTORCHVIDEO_STD = (0.225, 0.225, 0.225)
"""Normalisation of the original's v100 back end."""

RENAMED = {"augmentation": "augment-backend"}
"""Options of earlier versions → today's names."""


_SPEC = re.compile(r"^(?P<path>.+?)(?::(?P<split>[A-Za-z0-9_-]+))?(?:=(?P<weight>[0-9.eE+-]+))?$")


SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names that lists use for a split, in lower case → its usual name."""


def standard_split(name: str) -> str:
    """The usual name of a split, for example "val" for "validation"; "train" for an empty name."""
    name = name.strip()
    return SPLIT_NAMES.get(name.lower(), name or "train")


@dataclass(frozen=True)
class DatasetSpec:
    """One prepared data set in a mixture, written ``DIR[:SPLIT][=WEIGHT]`` on the command line.

    DIR may be the address of a folder in object storage: ``s3://bucket/webvid:train=2``.
    """

    path: Path
    """Folder written by tools/prepare.py; see `object_storage.remote_url` for a remote one."""
    split: str = "train"
    """Split inside the folder's index."""
    weight: float = 1.0
    """Relative share of samples in the mixture; > 0."""
    label: str = ""
    """Name that a run gave it when its folder was called differently; empty: by the folder."""

    @property
    def name(self) -> str:
        """Name in curves and logs; keys the random choices."""
        return self.label or f"{self.path.name}/{self.split}"

    @classmethod
    def parse(cls, text: str, split: str = "train") -> DatasetSpec:
        """Parse ``DIR[:SPLIT][=WEIGHT]``; raises ValueError naming the part that is wrong.

        A folder that exists counts before the parts: `frames=8` and `webvid:v2` may be its name.
        """
        folder = _existing_folder(text)
        match = _SPEC.match("x" + text.removeprefix(folder)) if folder else _SPEC.match(text)
        if match is None:
            raise ValueError(
                f"data set {text!r}: expected DIR[:SPLIT][=WEIGHT], for example"
                " prepared/webvid:train=2.5"
            )
        try:
            weight = float(match["weight"]) if match["weight"] else 1.0
        except ValueError as error:
            raise ValueError(
                f"data set {text!r}: weight {match['weight']!r} is not a number"
            ) from error
        if not 0 < weight < float("inf"):
            raise ValueError(f"data set {text!r}: weight must be a positive number, got {weight}")
        return cls(Path(folder or match["path"]), match["split"] or split, weight)


def _existing_folder(text: str) -> str:
    """The longest start of a text that ends before a separator and is a folder; else empty."""
    ends = [len(text), *(found.start() for found in reversed(list(re.finditer("[:=]", text))))]
    starts = (text[:end] for end in ends if end and _SPEC.fullmatch("x" + text[end:]))
    return next((start for start in starts if Path(start).is_dir()), "")


def require_distinct(specs: Sequence[DatasetSpec], option: str) -> None:
    """Raise ValueError if two data sets of `option` have the same name."""
    seen: dict[str, DatasetSpec] = {}
    for spec in specs:
        other = seen.setdefault(spec.name, spec)
        if other is not spec:
            raise ValueError(
                f"{option}: {other.path} and {spec.path} would both be called {spec.name} in curves"
                " and logs; give one of the folders another name, or a link with another name"
                " (ln -s)"
            )


TextPadding = Literal["full", "longest", "packed"]


@dataclass(frozen=True)
class ClipConfig:
    """The shape of the model's inputs. Derived from the model's config, never set twice."""

    num_frames: int = 3
    """Frames per clip, T; images use 1."""
    image_size: int = 224
    """Height and width of the square crop, pixels."""
    max_text_len: int = 40
    """Tokens per caption, [CLS] and [SEP] included."""


@dataclass(frozen=True)
class DataConfig:
    """How clips are read, decoded and augmented."""

    backend: Literal["auto", "cpu", "gpu"] = option("auto", resume="may_change")
    """Where clips are cropped, resized and normalised; auto follows the training device."""
    augment_backend: Literal["auto", "dali", "torch"] = option("auto", resume="may_change")
    """What crops, resizes and normalises clips: dali, or torch, which gives the same pixels within
    rounding, more slowly. auto is DALI where it is installed."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    """What decodes: dali (NVDEC on a GPU; VP8, VP9, MJPEG on the CPU; other clips go to PyAV), or
    pyav in the reader processes. auto is dali on a GPU, and pyav on the CPU, where it is faster."""
    workers: int | Literal["auto"] = option(2, resume="may_change")
    """Reader processes per rank (read, trim, tokenise, mask). 0 reads in the training process.
    auto: in pre-training on a GPU, as many as half of its peak rate needs (pretrain/readers.py),
    within the cores of the rank; otherwise 2."""
    dali_threads: int = option(2, resume="may_change")
    """Host threads of each DALI graph."""
    pipelines: int = option(0, resume="may_change")
    """DALI graphs per rank that run in parallel; 0 takes 1 on a CPU and 4 on a GPU (an A100 has 5
    video decoders, an H100 has 7)."""
    frames_from: Literal["any", "key"] = "any"
    """key moves each chosen frame to the nearest keyframe in its segment: much cheaper with long
    GOPs, but a different distribution of frames."""
    prefetch: int = option(4, resume="may_change")
    """Micro-batches kept ready per worker."""
    geometry: Literal["crop", "squash"] = option("crop", earlier="crop")
    """How a video becomes square. crop: RandomResizedCrop in training, the central square in
    evaluation. squash: as the original code, the complete frame is squashed to a square, of which
    the crop shows 84 % of the width and 70 % of the area. Images are always cropped."""
    squash_scale: tuple[float, float] = option((1.2, 1.2), earlier=(1.2, 1.2))
    """Side of the squashed frame as a multiple of the crop's side, drawn from this range in
    training; evaluation uses 1.2. The original's a100 back end has 1.2, its v100 back end 1.2 to
    1.5. Used by geometry squash."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random training crop as a share of the frame (RandomResizedCrop, Inception). A
    draw that does not fit into the frame shows the central square: 17 % of the draws at 16:9, 89 %
    at 2.39:1, so that such clips nearly always show the same square; with 0.2 1.0 it is 0.1 and 4 %
    (or take geometry squash). Used by geometry crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio range of the random training crop. Used by geometry crop."""
    eval_crop: float = 1.0
    """Side of evaluation's central crop, as a share of the frame's short side; with geometry
    squash, as a share of the 84 %."""
    flip: float = option(0.0, earlier=0.0)
    """Probability of a horizontal flip. 0 by default: captions mention left and right, and the
    paper does not flip."""
    augment: Literal["none", "randaug"] = option("none", earlier="none")
    """randaug: RandAugment (Cubuk et al. 2020) on training clips, the same operations for all
    frames of a clip, as the original's v100 back end. Needs DALI. In co-training, images have
    none."""
    randaug_layers: int = 2
    """n of RandAugment: operations drawn per clip, 0 to 14, each applied with probability 0.5."""
    randaug_magnitude: float = 9.0
    """m of RandAugment, 0 to 10: mean of the normally distributed magnitude (deviation 0.5)."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter: factors are drawn from [1-s, 1+s]."""
    mean: tuple[float, float, float] = option(IMAGENET_MEAN, earlier=IMAGENET_MEAN)
    """Channel means, RGB in [0, 1]."""
    std: tuple[float, float, float] = option(IMAGENET_STD, earlier=IMAGENET_STD)
    """Channel standard deviations, RGB in [0, 1]."""
    text_padding: TextPadding = option("packed", earlier="full")
    """How much padding of the texts the model computes. packed: none, every text has its own
    length. longest: up to the longest text of the micro-batch, rounded up to a multiple of 8.
    full: up to max_text_len, as the original and earlier versions. Without dropout all three give
    the same result; with dropout they draw other numbers."""
    mask_prob: float = 0.15
    """Share of the real words that MLM masks (whole words, at least one)."""
    shuffle_window: int = 0
    """Clips, in shard order, that are shuffled together, for storage that needs locality; 0
    shuffles the complete data set."""
    cache_dir: Path | None = option(None, resume="may_change")
    """Folder on a disk of the node for parts of shards in object storage, shared by its ranks and
    readers. None: a folder in ALLINONE_CACHE or in the user's cache folder."""
    cache_gb: float = option(32.0, resume="may_change")
    """Most that --cache-dir holds, GB (1e9 bytes) per node; the least recently used parts go first.
    0 keeps none. 32 GB are the shards of 100,000 clips of 256 lines, and fit on most nodes."""
    max_bad_share: float = option(0.01, resume="may_change")
    """Share of bad clips above which a run stops; each rank decides once it cannot be chance."""
    max_pixels: int = option(MAX_PIXELS, earlier=0)
    """Most pixels of a frame or image; clips with larger ones are bad. 0: any number."""
    clip_timeout_s: float = option(30.0, resume="may_change")
    """Seconds after which decoding a clip on the host has failed; 5 more if the decoder hangs."""

    @property
    def readers(self) -> int:
        """Number of reader processes."""
        return 2 if self.workers == "auto" else self.workers

    @property
    def uses_randaug(self) -> bool:
        """Whether training clips are augmented by RandAugment."""
        return self.augment == "randaug" and self.randaug_layers > 0

    def __post_init__(self) -> None:
        if self.workers != "auto":
            require(self, NOT_NEGATIVE, ("workers",))
        require(self, NOT_NEGATIVE, ("pipelines", "shuffle_window", "max_pixels", "cache_gb"))
        require(self, COUNT, ("dali_threads", "prefetch"))
        require(self, POSITIVE, ("crop_ratio", "std", "clip_timeout_s"))
        require(self, Bounds(0, 1, above=True), ("crop_scale", "eval_crop"))
        require(self, SHARE, ("flip", "color_jitter", "max_bad_share"))
        require(self, Bounds(0, 1, below=True), ("mask_prob",))
        require(self, Bounds(0, 14), ("randaug_layers",))
        require(self, Bounds(0, 10), ("randaug_magnitude",))
        require(self, COUNT, ("squash_scale",))
        for name in ("crop_scale", "crop_ratio", "squash_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"--{name.replace('_', '-')} is a range from low to high, got {low} {high}"
                )
