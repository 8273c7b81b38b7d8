"""Choices, masking and order, checked against brute force and their definitions."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allinone.data.config import DataConfig, DatasetSpec
from allinone.data.loading.mixture import Order
from allinone.data.loading.sampling import (
    generator,
    middle_frames,
    sample_eval,
    sample_train,
    segments,
    view_frames,
)
from allinone.data.text import Tokenizer, mask_words


@pytest.mark.parametrize("available", [1, 2, 3, 4, 5, 7, 12, 24, 301])
@pytest.mark.parametrize("wanted", [1, 2, 3, 8])
def test_segments_cover_all_frames_once_and_never_run_empty(available: int, wanted: int) -> None:
    bounds = segments(available, wanted)
    assert len(bounds) == wanted
    assert all(0 <= first <= last < available for first, last in bounds)
    if available >= wanted:
        covered = [frame for first, last in bounds for frame in range(first, last + 1)]
        assert covered == list(range(available))
    middles = middle_frames(available, wanted)
    assert all(
        first <= middle <= last for middle, (first, last) in zip(middles, bounds, strict=True)
    )


@given(frames=st.integers(1, 300), wanted=st.integers(1, 8), views=st.integers(1, 5))
def test_each_view_has_one_frame_of_every_segment(frames: int, wanted: int, views: int) -> None:
    chosen = view_frames(frames, wanted, views)
    assert len(chosen) == views
    for view in chosen:
        assert all(
            first <= number <= last
            for number, (first, last) in zip(view, segments(frames, wanted), strict=True)
        )
    assert view_frames(frames, wanted, 1) == [middle_frames(frames, wanted)]
    if frames >= wanted * views:
        assert len(set(chosen)) == views


def test_choices_are_a_pure_function_of_their_key() -> None:
    def drawn(*key: object) -> object:
        return sample_train(
            DataConfig(flip=0.5, color_jitter=0.4),
            generator(*key),
            captions=5,
            frames=100,
            width=320,
            height=240,
            wanted=3,
        )  # type: ignore[arg-type]

    base = drawn(0, "webvid", 3, 17)
    assert base == drawn(0, "webvid", 3, 17)
    others = [
        drawn(1, "webvid", 3, 17),
        drawn(0, "cc3m", 3, 17),
        drawn(0, "webvid", 4, 17),
        drawn(0, "webvid", 3, 18),
        drawn(0, "webvid", 3, 17, 1),
    ]
    assert len({base, *others}) == 6


def test_crops_have_the_area_and_ratio_asked_for_and_lie_inside() -> None:
    config = DataConfig(crop_scale=(0.3, 0.8))
    for row in range(300):
        choices = sample_train(
            config, generator(0, "d", 0, row), captions=1, frames=9, width=400, height=200, wanted=3
        )
        top, left, height, width = choices.box
        assert min(top, left) >= 0
        assert top + height <= 1 + 1e-9
        assert left + width <= 1 + 1e-9
        if (height, width) != (1.0, 0.5):
            assert 0.3 - 1e-6 <= height * width <= 0.8 + 1e-6
            assert 3 / 4 - 1e-6 <= (width * 400) / (height * 200) <= 4 / 3 + 1e-6
    assert sample_eval(config, frames=9, width=400, height=200, wanted=3).box == pytest.approx(
        (0, 0.25, 1, 0.5)
    )


def test_frames_are_uniform_over_each_complete_segment() -> None:
    counts = Counter(
        sample_train(
            DataConfig(),
            generator(0, "d", 0, row),
            captions=1,
            frames=9,
            width=9,
            height=9,
            wanted=3,
        ).frames[1]
        for row in range(3000)
    )
    assert set(counts) == {3, 4, 5}
    assert all(880 < number < 1120 for number in counts.values())


def test_tokenizer_knows_berts_ids_without_a_hub() -> None:
    tokenizer = Tokenizer()
    special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert special == (0, 101, 102, 103)
    assert tokenizer.size == 30522
    ids, mask, words = tokenizer.encode("A Man Snowboarding, again", 10)
    assert ids.tolist()[:3] == [101, 1037, 2158]
    assert ids[int(mask.sum()) - 1] == 102
    assert words[0] == -1
    assert (words[mask == 0] == -1).all()
    cut, mask, _ = tokenizer.encode("word " * 50, 8)
    assert cut[-1] == 102
    assert mask.all()
    assert tokenizer.decode(ids.tolist()) == "a man snowboarding, again"


def masked(seed: int, words: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.arange(1000, 1000 + len(words))
    out, labels = mask_words(
        ids, np.array(words), 0.15, np.random.default_rng(seed), 103, 5000, 6000
    )
    return ids, out, labels


def test_masking_takes_complete_words_15_percent_at_least_one() -> None:
    words = [-1, *[word for word in range(20) for _ in range(1 + word % 2)], -1, -1]
    sizes, fates = [], Counter()
    for seed in range(2000):
        ids, out, labels = masked(seed, words)
        chosen = labels != -100
        assert (labels[chosen] == ids[chosen]).all()
        assert (out[~chosen] == ids[~chosen]).all()
        for word in range(20):
            places = np.array(words) == word
            assert chosen[places].all() or not chosen[places].any()
        assert not chosen[[0, -1, -2]].any()
        sizes.append(int(chosen.sum()))
        for place in np.flatnonzero(chosen):
            fates[
                "mask" if out[place] == 103 else "kept" if out[place] == ids[place] else "random"
            ] += 1
    assert 3.9 < np.mean(sizes) <= 4.5  # round(0.15 * 30) = 4
    total = sum(fates.values())
    assert 0.77 < fates["mask"] / total < 0.83
    assert 0.08 < fates["kept"] / total < 0.12
    for seed in range(50):
        assert (masked(seed, [-1, 0, -1])[2] != -100).sum() == 1
        assert (masked(seed, [-1, 0, 0, 0, -1])[2] != -100).sum() == 3
    assert (masked(0, [-1, -1])[2] == -100).all()


@pytest.mark.parametrize(
    "dataset",
    [
        "webvid/train",
        "howto100m/train",
        "yttemporal/train",
        "coco/train",
        "demo/train",
        "data/train",
    ],
)
def test_every_seed_gives_choices_of_its_own(dataset: str) -> None:
    """Names hash to numbers on both sides of 2**63, where NumPy makes floats of a list."""
    assert len({int(generator(seed, dataset, 0, 7).integers(2**62)) for seed in range(500)}) == 500
    keys = itertools.product(range(20), range(20))
    drawn = {int(generator(0, dataset, epoch, 7, tries).integers(2**62)) for epoch, tries in keys}
    assert len(drawn) == 400


def test_positions_hold_every_row_once_per_epoch() -> None:
    order = Order([37], [1.0], seed=5)
    sequence = [order[position] for position in range(111)]
    for epoch in range(3):
        part = sequence[37 * epoch : 37 * epoch + 37]
        assert sorted(place.row for place in part) == list(range(37))
        assert {place.epoch for place in part} == {epoch}
    assert [place.row for place in sequence[:37]] != [place.row for place in sequence[37:74]]
    fresh = Order([37], [1.0], seed=5)
    some = (110, 3, 50)
    assert [fresh[position] for position in some] == [sequence[position] for position in some]
    assert [Order([37], [1.0], seed=6)[position].row for position in range(37)] != [
        place.row for place in sequence[:37]
    ]


@pytest.mark.parametrize(("rows", "window"), [(1000, 100), (1037, 100), (7, 7), (5, 100), (9, 1)])
def test_window_shuffle_keeps_neighbours_and_epochs(rows: int, window: int) -> None:
    order, window_read = Order([rows], [1.0], seed=5, window=window), min(window, rows)
    epochs = [
        [order[position].row for position in range(e * rows, (e + 1) * rows)] for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
        for start in range(0, rows, window_read):
            part = epoch[start : start + window_read]
            assert any(
                {(row - first) % rows for row in part} == set(range(len(part))) for first in part
            )
    assert Order([rows], [1.0], seed=5, window=window)[rows + 3].row == epochs[1][3]
    if rows > 100:
        assert epochs[0] != epochs[1]
        firsts = [[epoch[k] // window for k in range(0, rows, window)] for epoch in epochs]
        assert firsts[0] != sorted(firsts[0])
        assert firsts[0] != firsts[1]


def test_mixtures_keep_weights_and_use_all_of_each_data_set() -> None:
    order = Order([50, 30], [3.0, 1.0], seed=0)
    places = [order[position] for position in range(800)]
    assert Counter(place.dataset for place in places) == {0: 600, 1: 200}
    first = [place.row for place in places if place.dataset == 0]
    assert all(sorted(first[k : k + 50]) == list(range(50)) for k in range(0, 600, 50))


@pytest.mark.parametrize(
    "weights",
    [(2.5, 136.0, 1.24), (1.0, 1.009, 1.0), (0.7, 0.2, 0.1), (1.0, 1e-3, 1e-3), (1.0, 1.0, 1.0)],
)
@pytest.mark.parametrize("first", [0, 10**9])
def test_mixtures_give_every_row_once_per_epoch_at_any_weights(
    weights: tuple[float, ...], first: int
) -> None:
    order, number = Order([500, 3000, 700], weights, seed=0), 8_000
    places = [order[position] for position in range(first, first + number)]
    for dataset, weight in enumerate(weights):
        share = weight / sum(weights)
        mine = [place for place in places if place.dataset == dataset]
        assert abs(len(mine) - share * number) <= 1 + number / 2**16 + 1e-3 * share * number
        epochs = Counter(place.epoch for place in mine)
        assert len({(place.epoch, place.row) for place in mine}) == len(mine)
        assert [place.epoch for place in mine] == sorted(place.epoch for place in mine)
        for epoch in sorted(epochs)[1:-1]:
            assert epochs[epoch] == (500, 3000, 700)[dataset]


def test_data_sets_are_written_dir_split_weight() -> None:
    spec = DatasetSpec.parse("a/b:val=2.5")
    assert (str(spec.path), spec.split, spec.weight) == ("a/b", "val", 2.5)
    assert DatasetSpec.parse("a/b").split == "train"
    for wrong in ("a=0", "a=-1", "a=1e", "a=1e999"):
        with pytest.raises(ValueError, match="weight"):
            DatasetSpec.parse(wrong)
