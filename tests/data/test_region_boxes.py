"""Boxes and cuts by hand-worked cases; the official numbers are in tests/parity."""

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.data.region_boxes import (
    check_inside,
    enlarged,
    fallback_box,
    first_valid,
    flip_annotated,
    frame_boxes,
    grid_cells,
    grid_layouts,
    letterboxed,
    pick_annotated,
)
from rsc_seg.data.transforms import fit_image
from rsc_seg.errors import UserError


def test_layouts_are_24_and_near_square():
    layouts = grid_layouts()
    assert len(layouts) == len(set(layouts)) == 24 and layouts[:4] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all((m + 1) // 2 <= n <= min(2 * m, 6) for m, n in layouts)
    assert grid_layouts(2) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_cells_cover_the_picture_once():
    cells = grid_cells((2, 3), (90, 40))
    assert cells[0].tolist() == pytest.approx([0, 0, 30, 20]) and cells[5].tolist() == pytest.approx([60, 20, 90, 40])
    for layout in grid_layouts():
        cells = grid_cells(layout, (97, 53))
        area = ((cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])).sum()
        assert len(cells) == layout[0] * layout[1] and float(area) == pytest.approx(97 * 53, rel=1e-5)


def test_the_bounds_apply_to_what_was_picked():
    given = np.array([[0, 0, 8, 8], [0, 0, 7.9, 8], [0, 0, 1024, 1024], [0, 0, 1025, 1024], [0, 0, 50, 60]], np.float64)
    picked = pick_annotated(given, [4, 3, 2, 1, 0], 3, area=(64, 1024**2))
    assert picked.tolist() == [[0, 0, 50, 60], [0, 0, 1024, 1024]]  # 8 x 8 would fit, but came fifth
    assert pick_annotated(given, range(5), 5, area=(64, 1024**2))[:, 2].tolist() == [8, 1024, 50]
    assert pick_annotated(np.zeros((0, 4)), [], 20, area=(0, 1)).shape == (0, 4)


def test_enlarging_is_about_the_centre_and_clipped():
    assert enlarged([40, 30, 20, 10], 1.5, (200, 100)) == (35, 27.5, 65, 42.5)
    assert enlarged([0, 90, 20, 10], 1.5, (200, 100)) == (0, 87.5, 25, 100)
    assert enlarged([40, 30, 20, 10], 1.0, (200, 100)) == (40, 30, 60, 40)


def test_the_fallback_is_the_upper_left_sixteenth():
    assert fallback_box((103, 78)) == ((0, 0, 25.75, 19.5), (0, 0, 25, 19))


def letterbox(size, box, out):
    image = Image.new("RGB", size, (255, 128, 64))
    return (letterboxed(image, box, out) * 255).round()


def test_a_letterbox_is_centred_with_the_odd_pixel_behind():
    wide = letterbox((100, 100), (0, 0, 90, 30), (21, 21))  # 21 x 7: 7 rows above, 7 below
    assert (wide[0] > 0).any(dim=1).nonzero().flatten().tolist() == list(range(7, 14))
    tall = letterbox((100, 100), (10, 0, 40, 90), (24, 24))  # 8 x 24
    assert (tall[0] > 0).any(dim=0).nonzero().flatten().tolist() == list(range(8, 16))
    odd = letterbox((100, 100), (0, 0, 90, 60), (9, 9))  # 9 x 6: 1 row above, 2 below
    assert (odd[0] > 0).any(dim=1).nonzero().flatten().tolist() == list(range(1, 7))
    flat = letterbox((100, 100), (0, 0, 30, 30), (14, 28))
    assert (flat[0] > 0).any(dim=0).nonzero().flatten().tolist() == list(range(7, 21))
    assert flat[:, 7, 14].tolist() == [255, 128, 64]


@pytest.mark.parametrize("box", [(5.2, 5.1, 5.4, 60), (-3, 99.7, 200, 100), (99.9, 0, 100, 100), (-9, -9, -5, -5)])
def test_a_box_of_less_than_a_pixel_is_one_pixel(box):
    cut = letterbox((100, 100), box, (16, 16))
    assert cut.shape == (3, 16, 16) and cut.max() == 255


def test_crops_show_the_pixels_of_the_box():
    y, x = np.mgrid[:60, :80]
    image = Image.fromarray(np.stack([x * 3, y * 4, 0 * x], axis=-1).astype(np.uint8))
    crop = letterboxed(image, (20, 10, 36, 26), (16, 16)) * 255  # its own size: no pixel is resampled
    assert torch.allclose(crop[0, 0], torch.arange(20, 36) * 3.0)
    assert torch.allclose(crop[1, :, 0], torch.arange(10, 26) * 4.0)


def test_frames_padded_have_one_scale_and_others_two():
    image = Image.new("RGB", (333, 88))
    boxes = torch.tensor([[0.0, 0, 333, 88]])
    _, padded = fit_image(image, (112, 112), "pad")
    assert padded.valid == (0, 0, 112, 30)
    assert frame_boxes(boxes, padded, "pad")[0].tolist() == pytest.approx([0, 0, 112, 88 * 112 / 333])
    _, squashed = fit_image(image, (112, 112), "squash")
    assert frame_boxes(boxes, squashed, "squash")[0].tolist() == pytest.approx([0, 0, 112, 112])


def test_a_flip_of_a_flip_is_nothing():
    given = np.array([[5.0, 6, 10, 20], [0, 0, 100, 50]])
    assert flip_annotated(given, 100).tolist() == [[85, 6, 10, 20], [0, 0, 100, 50]]
    assert np.array_equal(flip_annotated(flip_annotated(given, 100), 100), given)


def test_boxes_may_overhang_by_two_pixels():
    inside = np.array([[-2.0, -2, 104, 54], [0, 0, 100, 50]])
    check_inside(inside, (100, 50), "x")
    check_inside(np.zeros((0, 4)), (100, 50), "x")
    for bad in ([-2.1, 0, 10, 10], [95, 0, 7.1, 10], [0, 45, 5, 8], [400, 400, 10, 10]):
        with pytest.raises(UserError, match=r"^file: box \[.*\] .* outside the image of 100 x 50 pixels, 1 of its 3"):
            check_inside(np.array([*inside, bad]), (100, 50), "file")


def test_the_first_valid_boxes_are_repeated_in_turn():
    boxes, valid = torch.arange(20.0).view(5, 4), torch.tensor([False, True, False, True, True])
    assert torch.equal(first_valid(boxes, valid, 2), boxes[[1, 3]])
    assert torch.equal(first_valid(boxes, valid, 7), boxes[[1, 3, 4, 1, 3, 4, 1]])
    with pytest.raises(ValueError, match="without a valid box"):
        first_valid(boxes, torch.zeros(5, dtype=torch.bool), 2)
