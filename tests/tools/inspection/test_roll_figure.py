"""The roll figure shows the patches that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from allinone.tools.inspection.figure import FRAME_COLOURS
from allinone.tools.inspection.roll_figure import describe_roll, frame_after_rolls, rolls_shown
from tests.tools.conftest import tiny_config

GREYS = (40, 120, 200)


def drawn(rolls: int, frame: int) -> np.ndarray:
    """Mean colour of the inner part of each of the 16 slots, for frames of one grey each: [4, 4,
    3]."""
    pictures = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in GREYS]
    pixels = np.asarray(frame_after_rolls(pictures, frame, tiny_config(), rolls), dtype=float)
    return pixels.reshape(4, 16, 4, 16, 3)[:, 5:11, :, 5:11].mean((1, 3))


def tint(frame: int, strength: float) -> np.ndarray:
    return (1 - strength) * GREYS[frame] + strength * np.array(FRAME_COLOURS[frame], dtype=float)


@pytest.mark.parametrize(("rolls", "first", "last"), [(1, 2, 1), (2, 1, 2)])
def test_frame_1_holds_the_patches_worked_out_by_hand(rolls: int, first: int, last: int) -> None:
    slots = drawn(rolls, 0).reshape(16, 3)
    for slot in range(16):
        source = first if slot < 2 else last if slot >= 14 else 0
        expected = tint(source, 0.15 if source == 0 else 0.45)
        np.testing.assert_allclose(slots[slot], expected, atol=1.5, err_msg=f"slot {slot}")


def test_three_rolls_of_three_frames_restore_the_first_figure() -> None:
    for frame in range(3):
        np.testing.assert_array_equal(drawn(0, frame), drawn(3, frame))
        assert not np.array_equal(drawn(0, frame), drawn(1, frame))


def test_shuffled_patches_are_drawn_in_place_before_any_roll() -> None:
    ramp = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) % 251
    picture = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    shuffled, raster = (
        frame_after_rolls([picture] * 3, 1, tiny_config(patch_order=order), 0)
        for order in ("shuffled", "raster")
    )
    np.testing.assert_array_equal(np.asarray(shuffled), np.asarray(raster))


def test_the_note_counts_the_patches_that_move() -> None:
    assert "2 of the 16 patches move one frame forward and 2 one frame back" in describe_roll(
        tiny_config(), 3
    )
    base = tiny_config(image_size=224, patch_size=16)
    assert "24 of the 196 patches move one frame forward and 24 one frame back" in describe_roll(
        base, 3
    )
    assert "2 of the 16 patches move one frame forward and 2 one frame back" in describe_roll(
        tiny_config(), 2
    )
    assert "2 of the 16 patches move one frame forward and 2 one frame back" in describe_roll(
        tiny_config(num_frames=6), 6
    )
    distilled = tiny_config(image_size=224, patch_size=16, distillation_token=True)
    for frames in (2, 3):
        note = describe_roll(distilled, frames)
        assert "23 of the 196 patches move one frame forward and 24 one frame back" in note
        assert "The distillation token moves forward with them. The other 149," in note
    assert rolls_shown(tiny_config(), 3) == [0, 1, 2, 3]
    assert rolls_shown(tiny_config(num_hidden_layers=2), 6) == [0, 1, 2]
