"""Texts, media, order, heads and caches of fine-tuning, each alone."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allinone.common.errors import DataError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.sampling import generator, middle_frames, segments, view_frames
from allinone.data.prepare.probe import PACKET_CODECS, probe, probe_packets
from allinone.data.text import Tokenizer
from allinone.engine.distributed.contrastive import contrast
from allinone.engine.objective import StepModule
from allinone.engine.optim.adamw import SkippingAdamW, parameter_groups
from allinone.finetune.annotations.schema import ChoiceItem, Media, QAItem, RetrievalItem
from allinone.finetune.cost import task_activations
from allinone.finetune.evaluation import paper_numbers
from allinone.finetune.evaluation.cache import BatchResult, Cache
from allinone.finetune.evaluation.rerank import _merged, shortlist
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import Reader, window
from allinone.finetune.inputs.loader import Source, TaskStream
from allinone.finetune.inputs.media_library import LIMITS, MediaError, MediaLibrary
from allinone.finetune.tasks.base import pooled
from allinone.finetune.tasks.heads import TwoRanks, from_matching, rank_head
from allinone.finetune.tasks.multiple_choice import ChoiceExamples, ChoiceOptions
from allinone.finetune.tasks.open_ended_qa import QAExamples
from allinone.finetune.tasks.prompts import CONTEXT, KEEP, LIST, QUESTION, Part, encode, option
from allinone.finetune.tasks.retrieval import other_captions
from allinone.finetune.tasks.task_model import (
    TASK_HEAD,
    HeadPlan,
    SourceCheckpoint,
    TaskModel,
    build_model,
    read_source_checkpoint,
    task_config,
)
from allinone.model import AllInOneConfig
from allinone.model.convert import LoadReport
from allinone.pretrain.recipes import RECIPES
from tests.data.media import GOOD, read_frame_number, truncate, write_image, write_video
from tests.tools.conftest import tiny_model
from tests.tools.lightning import save, state_dict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


# -- texts -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    question=st.integers(0, 60),
    options=st.integers(0, 60),
    context=st.integers(0, 90),
    length=st.integers(12, 60),
)
def test_the_answer_is_never_cut_while_anything_else_is_left(
    tokenizer: Tokenizer, question: int, options: int, context: int, length: int
) -> None:
    parts = (
        Part("the " * context, CONTEXT),
        Part("what " * question, QUESTION, after_sep=True),
        Part("of " * options, LIST),
        Part("answer : a red apple", KEEP),
    )
    encoded = encode(tokenizer, parts, length)
    words = tokenizer.decode(encoded.ids[: encoded.mask.sum()].tolist()).split()
    assert len(encoded.ids) == length
    assert words[-5:] == ["answer", ":", "a", "red", "apple"]
    left = {word: words.count(word) for word in ("the", "what", "of")}
    if left["what"] < question:  # the question is cut last
        assert left["the"] == left["of"] == 0
    if left["of"] < options:
        assert left["the"] == 0
    assert encoded.shortened == (sum(left.values()) < question + options + context)
    assert not encoded.lost


def test_the_five_inputs_of_a_question_with_long_options_differ(tokenizer: Tokenizer) -> None:
    choices = [
        f"walk slowly over the long wooden bridge towards the {place}"
        for place in ("north", "south", "east", "west", "sea")
    ]
    rows = [
        encode(tokenizer, option("what does the man do ?", choice, choices), 40)
        for choice in choices
    ]
    assert len({row.ids.tobytes() for row in rows}) == 5
    whole = tokenizer.encode(
        f"what does the man do ?Options: {' '.join(choices)}Answer: {choices[0]}", 40
    )[0]
    other = tokenizer.encode(
        f"what does the man do ?Options: {' '.join(choices)}Answer: {choices[4]}", 40
    )[0]
    assert (whole == other).all(), "the original's way is not the failure that this test is about"


def test_a_text_whose_deciding_part_does_not_fit_is_counted(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, (Part("one two three four five six seven eight"),), 6).lost


# -- frames ----------------------------------------------------------------------------------------


@given(frames=st.integers(1, 300), wanted=st.integers(1, 8), views=st.integers(1, 5))
def test_views_take_one_frame_of_every_segment_and_one_view_takes_the_middle(
    frames: int, wanted: int, views: int
) -> None:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 24 frames at 12 per second, a picture, a folder of 9 pictures, a broken file."""
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a" / "clip.mp4", gop=6)
    write_video(root / "Loud.AVI", codec="mpeg4")
    write_video(root / "moving.gif", codec="gif", rate=10)
    write_video(root / "movie_00.01.02.345-00.01.05.678.mkv", gop=6)
    write_image(root / "still.png", 77)
    for number in range(1, 10):
        write_image(root / "frames" / f"{number:05d}.jpg", 100 + number)
    truncate(write_video(root / "cut.mp4", frames=48))
    return root


def library(folder: Path, cache: Path, *media: Media) -> MediaLibrary:
    found = MediaLibrary(folder, cache, source="the archive", picture_rate=3.0)
    found.prepare(media, quiet=True)
    return found


def numbers(
    found: MediaLibrary, media: Media, random: np.random.Generator | None = None, views: int = 1
) -> list[list[int]]:
    """What the chosen frames spell."""
    read = Reader(found, ClipConfig(3, 32, 16), DataConfig(workers=0))
    visuals = read(VisualInput(media), random, views)
    return [[read_frame_number(frame) for frame in np.asarray(visual.media)] for visual in visuals]


def test_videos_gifs_pictures_and_folders_are_found_by_any_suffix_and_read_by_one_rule(
    folder: Path, tmp_path: Path
) -> None:
    names = [
        "a/clip",
        "a/clip.webm",
        "loud.mp4",
        "moving",
        "movie_00.01.02.345-00.01.05.678",
        "still",
        "frames",
    ]
    media = [Media(name, name) for name in names]
    found = library(folder, tmp_path, *media)
    shown = {item.id: numbers(found, item)[0] for item in media}
    for name in ("a/clip", "a/clip.webm", "loud.mp4", "moving", "movie_00.01.02.345-00.01.05.678"):
        assert shown[name] == [3, 11, 19], name
    assert shown["still"] == [77, 77, 77]
    assert shown["frames"] == [102, 105, 108]
    assert numbers(found, media[0], views=2) == [[1, 9, 17], [5, 13, 21]]


def test_a_part_of_a_video_is_a_window_in_seconds(folder: Path, tmp_path: Path) -> None:
    part = Media("x", "a/clip", 0.5, 1.0)  # frames 6 to 11 at 12 per second
    second = Media("y", "frames", 1.0, 2.0)  # pictures 4 to 6 at 3 per second
    late = Media("z", "a/clip", 5.0, 6.0)
    found = library(folder, tmp_path, part, second, late)
    assert numbers(found, part) == [[6, 8, 10]]
    assert numbers(found, second) == [[104, 105, 106]]
    assert {n for _ in range(20) for n in numbers(found, part, np.random.default_rng(_))[0]} <= set(
        range(6, 12)
    )
    with pytest.raises(MediaError, match=r"a/clip\.mp4: shown from 5 s on, it ends at 2\.0 s"):
        window(found[late], late)


def test_what_is_missing_or_broken_has_a_reason_and_a_second_start_opens_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = [
        Media("a", "a/clip"),
        Media("b", "nowhere"),
        Media("c", "cut"),
        Media("d", "../outside"),
    ]
    first = library(folder, tmp_path, *media)
    assert first.reason(media[0]) == ""
    assert first.reason(media[1]).startswith("nowhere: no such file")
    assert first.reason(media[2]).split(": ")[:2] in (
        ["cut.mp4", "undecodable"],
        ["cut.mp4", "truncated"],
    )
    assert first.reason(media[3]).startswith("../outside: no such file")
    monkeypatch.setattr(
        "allinone.finetune.inputs.media_library.probe_file",
        lambda *_: pytest.fail("a known file was opened again"),
    )
    again = library(folder, tmp_path, *media)
    assert [again.reason(item) for item in media] == [first.reason(item) for item in media]
    assert again.content(media[0]) == first.content(media[0]) != ""
    facts = (folder / "a" / "clip.mp4").stat()
    os.utime(folder / "a" / "clip.mp4", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(pytest.fail.Exception):
        library(folder, tmp_path, *media)


def test_a_folder_without_any_of_the_files_names_the_archive(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of the 1 files.*nowhere.*the archive"):
        library(folder, tmp_path, Media("b", "nowhere"))
    with pytest.raises(DataError, match=r"is no folder\. Source: the archive"):
        library(folder / "absent", tmp_path, Media("b", "nowhere"))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_packets_tell_what_decoding_the_whole_finds_or_nothing(name: str, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path / name)
    by_packets = probe_packets(path, path.suffix[1:].lower(), LIMITS)
    decoded = probe(path.read_bytes(), path.suffix[1:], LIMITS)
    if by_packets is None:
        assert decoded["codec"] not in PACKET_CODECS
        return
    assert by_packets["frame_times"] == pytest.approx(decoded["frame_times"])
    assert {**by_packets, "frame_times": None} == {**decoded, "frame_times": None}


def test_a_long_file_is_not_decoded_and_gives_the_same_frames(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Media("x", "a/clip", 0.5, 1.0)
    whole = numbers(library(folder, tmp_path / "a", part), part)
    monkeypatch.setattr("allinone.finetune.inputs.media_library.LONG_BYTES", 100)
    monkeypatch.setattr("allinone.finetune.inputs.media_library._END_BYTES", 50)
    monkeypatch.setattr(
        "allinone.finetune.inputs.media_library.probe",
        lambda *_: pytest.fail("a long file was decoded"),
    )
    assert numbers(library(folder, tmp_path / "b", part), part) == whole


# -- training order --------------------------------------------------------------------------------


def stream(folder: Path, cache: Path, ledger: Path, share: float = 0.5) -> TaskStream:
    items = [
        QAItem(str(n), Media(name, name), f"what is {n} ?", ("x",))
        for n, name in enumerate(["a/clip", "loud", "cut", "moving"])
    ]
    found = library(folder, cache, *(item.media for item in items))
    clip, config = ClipConfig(2, 32, 16), DataConfig(workers=0, max_bad_share=share)
    make = QAExamples(items, {"x": 0}, soft=False)
    source = Source(
        "made-up/train", [item.id for item in items], make, Reader(found, clip, config), clip
    )
    return TaskStream(source, config, seed=3, ledger=ledger)


def taken(
    data: TaskStream, batches: int, first: int = 0, rank: int = 0, world: int = 1
) -> list[tuple[int, int, tuple[str, ...]]]:
    found = data.batches(first=first, rank=rank, world=world, micro_batch=2, device=CPU)
    return [
        (batch.first_position, batch.digest, batch.clips)
        for batch, _ in zip(found, range(batches), strict=False)
    ]


def test_training_batches_are_the_same_at_any_world_size_and_after_a_restart_and_bad_items_are_replaced(
    folder: Path, tmp_path: Path
) -> None:
    alone = taken(stream(folder, tmp_path, tmp_path / "ledger"), 6)
    assert [position for position, *_ in alone] == [0, 2, 4, 6, 8, 10]
    assert all("2" not in clips for *_, clips in alone)  # item 2 shows cut.mp4
    ledger = (tmp_path / "ledger" / "rank-0.jsonl").read_text()
    assert '"clip": "2"' in ledger
    assert "cut.mp4: " in ledger
    ranks = [
        taken(stream(folder, tmp_path, tmp_path / "other"), 3, rank=rank, world=2)
        for rank in (0, 1)
    ]
    assert sorted(ranks[0] + ranks[1]) == alone
    assert taken(stream(folder, tmp_path, tmp_path / "third"), 3, first=6) == alone[3:]


def test_options_are_shuffled_in_training_and_not_in_evaluation() -> None:
    items = [ChoiceItem("q", Media("m", "m"), "", ("a", "b", "c", "d", "e"), 0)]
    make = ChoiceExamples(items, ChoiceOptions())
    plain = make(0, None)
    assert [text[0].text for text in plain.texts] == ["a", "b", "c", "d", "e"]
    assert plain.target == 0
    seen = set()
    for epoch in range(40):
        drawn = make(0, generator(0, "x", epoch, 0))
        assert isinstance(drawn.target, int)
        assert drawn.texts[drawn.target][0].text == "a"
        seen.add(drawn.target)
    assert seen == {0, 1, 2, 3, 4}


def test_false_captions_belong_to_other_clips() -> None:
    items = [
        RetrievalItem(str(n), Media(str(n), str(n)), (f"caption {n}", "the same for all"))
        for n in range(5)
    ]
    drawn = [
        text for n in range(200) for text in other_captions(items, 2, 3, generator(0, "x", n, 0))
    ]
    assert set(drawn) == {"caption 0", "caption 1", "caption 3", "caption 4"}


# -- heads and models ------------------------------------------------------------------------------


def test_the_rank_head_begins_as_the_matching_row_and_zero_shot_scores_are_log_odds() -> None:
    model = tiny_model()
    weights, features = model.state_dict(), torch.randn(7, 32)
    logits = model.vtm_head(features)
    head, both = rank_head(32), TwoRanks(32)
    from_matching(head, weights)
    torch.testing.assert_close(head(features)[:, 0], logits[:, 1])
    from_matching(both, weights, log_odds=True)
    odds = logits.log_softmax(-1)
    torch.testing.assert_close(both.rationale(features)[:, 0], odds[:, 1] - odds[:, 0])


def test_only_the_head_gets_the_multiplied_rate_and_frozen_parameters_no_state(
    tmp_path: Path,
) -> None:
    from allinone.engine.config import TrainConfig

    tiny_model().save_pretrained(tmp_path)
    origin = read_source_checkpoint(tmp_path)
    plan = HeadPlan(
        lambda config: rank_head(config.hidden_size),
        frozen=True,
        trained=(TASK_HEAD, "backbone.pooler."),
    )
    model = build_model(
        origin, task_config(origin, None, {"num_frames": 8, "image_size": 64}), plan, seed=0
    )
    assert any("temporal [1, 3, 32] → [1, 8, 32]" in line for line in origin.report.resized)
    groups = parameter_groups(StepModule(model, lambda *_: None), 0.01, (TASK_HEAD,), 10.0)  # type: ignore[arg-type]
    optimizer = SkippingAdamW(groups, TrainConfig(lr=1e-3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(p)]: group["lr_mult"] for group in optimizer.param_groups for p in group["params"]
    }
    assert rates == {
        "task_head.weight": 10.0,
        "task_head.bias": 10.0,
        "backbone.pooler.dense.weight": 1.0,
        "backbone.pooler.dense.bias": 1.0,
    }
    assert model.config.hidden_dropout == 0


def test_captions_of_one_clip_are_no_negatives_of_each_other() -> None:
    text, video = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    groups = torch.tensor([0, 1, 1, 2])
    found = contrast(text, video, torch.tensor(20.0), groups)
    logits = 20 * text @ video.T
    allowed = [[0, 1, 2, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]]
    for row, columns in enumerate(allowed):
        to_video = logits[row, row] - logits[row, columns].logsumexp(0)
        to_text = logits[row, row] - logits[columns, row].logsumexp(0)
        torch.testing.assert_close(found.losses[row], -(to_video + to_text) / 2)


def test_a_cached_result_is_found_by_content_only(tmp_path: Path) -> None:
    result = BatchResult((3, 5), np.array([[1.5], [2.5]], np.float32), {4: "gone"}, 1, 2)
    Cache(tmp_path, "weights 1").put("items", result)
    known = Cache(tmp_path, "weights 1").get("items")
    assert known is not None
    assert (known.items, known.missing, known.lost, known.shortened) == ((3, 5), {4: "gone"}, 1, 2)
    assert known.values.tolist() == [[1.5], [2.5]]
    assert Cache(tmp_path, "weights 2").get("items") is None
    assert Cache(tmp_path, "weights 1").get("other items") is None
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert Cache(tmp_path, "weights 1").get("items") is None


def test_re_ranking_finds_the_full_scorings_winner_wherever_it_is_in_the_shortlist() -> None:
    random = np.random.default_rng(0)
    joint, similarity = (
        random.normal(size=(60, 50)),
        random.normal(size=(60, 50)).astype(np.float32),
    )
    chosen = shortlist(similarity, 7)
    assert (chosen.sum(1) == 7).all()
    assert (
        np.where(chosen, similarity, np.inf).min(1) >= np.where(chosen, -np.inf, similarity).max(1)
    ).all()
    merged, full = _merged(np.where(chosen, joint, np.nan), chosen, similarity), joint.argmax(1)
    shown = chosen[np.arange(60), full]
    assert 0 < shown.sum() < 60
    assert (merged.argmax(1)[shown] == full[shown]).all()
    ranks = (-merged).argsort(1)
    assert all(chosen[text, ranks[text, :7]].all() for text in range(60)), (
        "a candidate stands behind one that was not scored"
    )
    gone = similarity.copy()
    gone[:, 3] = np.nan
    assert not shortlist(gone, 50)[:, 3].any()


@pytest.mark.parametrize(
    ("size", "distilled", "temporal"), [("tiny", False, True), ("small", True, False)]
)
def test_a_released_file_is_taken_as_it_is_and_its_size_is_seen(
    tmp_path: Path, size: str, distilled: bool, temporal: bool
) -> None:
    weights = state_dict(size)
    assert ("transformer.dist_token" in weights) is distilled
    if not temporal:
        del weights["transformer.temporal_embed"]
    origin = read_source_checkpoint(save(tmp_path / "last.ckpt", weights))
    assert origin.size == size
    config = task_config(origin, size, {"num_frames": 3, "max_text_len": 80})
    assert (config.image_size, config.patch_order) == (224, "shuffled")
    plan = HeadPlan(
        lambda shape: rank_head(shape.hidden_size), from_matching, facts={"kind": "rank"}
    )
    model = build_model(origin, config, plan, seed=0)
    row = weights["itm_score.fc.weight"][1:]
    assert torch.equal(model.task_head.weight, row.float())
    assert torch.equal(model.backbone.encoder.norm.weight, weights["transformer.norm.weight"])
    assert any("[40, " in line and "[80, " in line for line in origin.report.resized)
    if not temporal:
        assert not model.backbone.video_embeddings.temporal.any()
    with pytest.raises(ValueError, match=f"holds a model of size {size}, not --size base"):
        task_config(origin, "base", {})


@pytest.mark.parametrize(
    ("recipe", "data_sets", "heads"),
    [
        ("webvid-howto", {"WebVid", "HowTo100M"}, None),
        ("plus-cc3m-webvid", {"WebVid", "CC3M"}, "shared"),
        ("plus-cc3m-webvid-apart", {"WebVid", "CC3M"}, "apart"),
    ],
)
def test_a_checkpoint_of_our_own_says_what_it_was_pre_trained_on_also_once_it_is_fine_tuned(
    recipe: str, data_sets: set[str], heads: str | None
) -> None:
    name = recipe.removesuffix("-apart")
    config = RECIPES[name][1]
    if name != recipe:
        config = replace(config, cotrain=replace(config.cotrain, image_heads="separate"))
    origin = SourceCheckpoint(
        Path(name), {}, AllInOneConfig(), "", LoadReport(name), {}, config.as_json()
    )
    assert paper_numbers.data_sets(origin.pretrained_on["pretraining"]) == data_sets
    assert origin.pretrained_on.get("heads") == heads
    tuned = replace(
        origin, task={"benchmark": "vcr", **origin.pretrained_on}, run={"benchmark": "vcr"}
    )
    assert tuned.pretrained_on == origin.pretrained_on
    stated = replace(origin, task={"benchmark": "vcr"}, run={"pretraining": "WebVid+HowTo"})
    assert stated.pretrained_on == {"pretraining": "WebVid+HowTo"}, (
        "what --pretraining said when it was fine-tuned"
    )


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_activations_of_five_options_are_what_autograd_keeps(checkpointing: bool) -> None:
    config = AllInOneConfig.from_size("nano", num_frames=3, max_text_len=16)
    model = TaskModel(config, None)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(5, 1000, (2, 5, 16))
    pixels = torch.randn(2, 1, 3, 3, config.image_size, config.image_size)
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        kept = pooled(model, pixels, ids, torch.ones_like(ids))
    measured = sum(
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    del kept
    if checkpointing:  # each one also keeps the CPU generator's state
        measured -= config.num_hidden_layers * torch.get_rng_state().numel()
    assert task_activations([("joint", 5)], config, 2, 4, 4, checkpointing).total == pytest.approx(
        measured, rel=0.05
    )
