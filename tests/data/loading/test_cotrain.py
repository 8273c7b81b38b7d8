"""Co-training: what a step holds depends on its number alone, at any world size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from allinone.common.errors import DataError
from allinone.data import CoTrainStream, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.batch import CoBatch
from allinone.data.loading.cotrain import Mode
from allinone.data.loading.sampling import nearest_keyframes
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data import media

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prepared set of 10 videos and one of 14 images."""
    root = tmp_path_factory.mktemp("sets")
    for kind, count in (("videos", 10), ("images", 14)):
        lines = ["path,caption"]
        for k in range(count):
            if kind == "videos":
                media.write_video(
                    root / kind / f"{k}.webm", codec="libvpx", first=k, frames=12, gop=4
                )
            else:
                media.write_image(root / kind / f"{k}.png", k)
            lines.append(f"{k}.{'webm' if kind == 'videos' else 'png'},{kind} number {k}")
        (root / kind / "own.csv").write_text("\n".join(lines) + "\n")
        prepare(
            PrepareOptions(root / kind / "own.csv", root / f"{kind}-out", workers=1), progress=False
        )
    return root / "videos-out", root / "images-out"


def stream(
    sets: tuple[Path, Path], mode: Mode, image_batch: int = 12, share: float = 0.25
) -> CoTrainStream:
    """Two mixtures: both sets serve as video and as images."""
    config = DataConfig(workers=0)
    video = TrainStream(
        [DatasetSpec(sets[0], weight=2), DatasetSpec(sets[1])],
        ClipConfig(3, 32, 12),
        config,
        seed=1,
    )
    images = TrainStream(
        [DatasetSpec(sets[1]), DatasetSpec(sets[0], weight=3)],
        ClipConfig(1, 32, 12),
        config,
        seed=2,
    )
    return CoTrainStream(
        video, images, global_batch=8, image_batch=image_batch, mode=mode, image_share=share
    )


def take(data: CoTrainStream, count: int, **place: int) -> list[CoBatch]:
    place = {"first": 0, "rank": 0, "world": 1, "micro_batch": 2, **place}
    source = data.batches(device=CPU, **place)
    taken = [batch for batch, _ in zip(source, range(count), strict=False)]
    source.close()  # type: ignore[attr-defined]
    return taken


def of_step(batches: list[CoBatch]) -> tuple[int, list[str], list[str]]:
    digest = sum(batch.digest for batch in batches) % 2**63
    video = [clip for batch in batches if batch.video for clip in batch.video.clips]
    images = [clip for batch in batches if batch.images for clip in batch.images.clips]
    return digest, sorted(video), sorted(images)


@pytest.mark.parametrize("mode", ["joint", "alternate"])
def test_steps_are_equal_at_any_world_size_and_after_a_restart(
    sets: tuple[Path, Path], mode: Mode
) -> None:
    data = stream(sets, mode)
    alone = [of_step(take(data, 20)[4 * step : 4 * step + 4]) for step in range(5)]
    ranks = [take(data, 10, rank=rank, world=2) for rank in range(2)]
    assert [
        of_step([batch for rank in ranks for batch in rank[2 * step : 2 * step + 2]])
        for step in range(5)
    ] == alone
    later = take(data, 8, first=3 * 8)
    assert [of_step(later[:4]), of_step(later[4:])] == alone[3:5]
    assert len({digest for digest, *_ in alone}) == 5


def test_joint_steps_hold_a_global_batch_of_each(sets: tuple[Path, Path]) -> None:
    for batch in take(stream(sets, "joint"), 8):
        assert batch.video is not None
        assert batch.images is not None
        assert batch.video.pixels.shape == (2, 3, 3, 32, 32)
        assert batch.images.pixels.shape == (3, 1, 3, 32, 32)  # 12 images in 4 micro-batches
        assert len(batch) == 5
        assert len(batch.clips) == 5


def test_alternating_steps_hold_one_kind_in_the_share_asked_for(sets: tuple[Path, Path]) -> None:
    kinds = [
        (batch.video is not None, batch.images is not None)
        for batch in take(stream(sets, "alternate"), 32)
    ]
    steps = [set(kinds[4 * k : 4 * k + 4]) for k in range(8)]
    assert steps == [{(True, False)}] * 3 + [{(False, True)}] + [{(True, False)}] * 3 + [
        {(False, True)}
    ]


def test_an_indivisible_image_batch_is_refused_with_the_nearest(
    sets: tuple[Path, Path],
) -> None:
    with pytest.raises(
        DataError, match=r"--image-batch 10 is not a multiple of 1 ranks x 4 .* 8 and 12"
    ):
        take(stream(sets, "joint", image_batch=10), 1)
    with pytest.raises(ValueError, match="--image-share"):
        stream(sets, "alternate", share=1.0)


def test_key_sampling_moves_frames_to_keyframes_of_their_segment() -> None:
    assert nearest_keyframes((1, 6, 11), (0, 4, 8), 12) == (0, 4, 8)
    # Segments without a keyframe keep their frame.
    assert nearest_keyframes((1, 6, 11), (0,), 12) == (0, 6, 11)
    assert nearest_keyframes((3, 5, 9), (0, 2, 4, 6), 12) == (2, 4, 9)


def test_key_sampling_reads_keyframes_only(sets: tuple[Path, Path]) -> None:
    data = TrainStream(
        [DatasetSpec(sets[0])],
        ClipConfig(3, 64, 12),
        DataConfig(workers=0, frames_from="key", crop_scale=(1, 1)),
        seed=0,
    )
    batch = next(data.batches(first=0, rank=0, world=1, micro_batch=8, device=CPU))
    mean, std = (torch.tensor(value) for value in (DataConfig().mean, DataConfig().std))
    for pixels, caption in zip(batch.pixels, batch.captions, strict=True):
        first = int(caption.rpartition(" ")[2])
        shown = ((pixels.permute(0, 2, 3, 1) * std + mean) * 255).numpy()
        assert [media.read_frame_number(frame) - first for frame in shown] == [0, 4, 8]


@pytest.mark.parametrize("pipelines", [1, 3])
def test_parallel_graphs_keep_the_order(sets: tuple[Path, Path], pipelines: int) -> None:
    config = DataConfig(workers=0, pipelines=pipelines)
    data = TrainStream([DatasetSpec(sets[0])], ClipConfig(3, 32, 12), config, seed=1)
    source = data.batches(first=0, rank=0, world=1, micro_batch=2, device=CPU)
    assert [next(source).first_position for _ in range(9)] == list(range(0, 18, 2))
