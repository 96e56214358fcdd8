"""Frames, crops and the boxes between them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.data.storage import ImageError
from rsc_seg.data.transforms import cut_crop, fit_image, hflip, normalize
from rsc_seg.errors import UserError


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: a pixel's colour says where it came from."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def test_pad_puts_the_image_top_left_over_zeros():
    frame, geometry = fit_image(Image.new("RGB", (200, 100), (255, 255, 255)), (112, 140))
    assert frame.shape == (3, 112, 140) and frame.dtype == torch.float32
    assert geometry.valid == (0, 0, 140, 70) and geometry.original == (200, 100) and geometry.frame == (140, 112)
    assert (frame[:, :70] == 1).all() and (frame[:, 70:] == 0).all()


def test_resize_is_pils_bicubic():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    frame, _ = fit_image(image, (56, 70), "squash")
    expected = np.asarray(image.resize((70, 56), Image.Resampling.BICUBIC)) / np.float32(255)
    assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected)
    frame, geometry = fit_image(image, (84, 84), "pad")
    assert geometry.valid == (0, 0, 84, 63)
    expected = np.asarray(image.resize((84, 63), Image.Resampling.BICUBIC)) / np.float32(255)
    assert np.array_equal(frame[:, :63].permute(1, 2, 0).numpy(), expected)


def test_crop_shows_the_centre():
    frame, geometry = fit_image(ramp(200, 100), (100, 100), "crop")
    assert geometry.region == (50, 0, 150, 100) and geometry.valid == (0, 0, 100, 100)
    assert torch.equal((frame[0] * 255).round()[0], torch.arange(50.0, 150.0))


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(140, 98), (98, 140), (112, 112)])
def test_boxes_there_and_back(fit, size):
    _, geometry = fit_image(ramp(211, 97), size, fit)
    boxes = torch.tensor([[3.0, 5.5, 60.25, 41.0], [0, 0, *geometry.valid[2:]]])
    original = geometry.to_original(boxes)
    assert torch.allclose(geometry.to_frame(original), boxes, atol=1e-4)
    assert torch.allclose(original[1], torch.tensor(geometry.region, dtype=torch.float64))


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
def test_a_pixel_lies_where_the_geometry_says(fit):
    image = ramp(200, 120)
    frame, geometry = fit_image(image, (98, 70), fit)
    for x, y in ((20, 15), (40, 30), (33, 21)):  # centres of frame pixels
        centre = geometry.to_original(torch.tensor([[x + 0.5, y + 0.5, x + 0.5, y + 0.5]]))[0]
        red, green = (frame[:2, y, x] * 255).tolist()
        assert abs(red + 0.5 - centre[0]) < 1 and abs(green + 0.5 - centre[1]) < 1


def test_a_crop_at_its_own_size_equals_the_region():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    crop = cut_crop(image, (10.0, 20.0, 45.0, 50.0), (30, 35))
    assert np.array_equal((crop * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(image)[20:50, 10:45])


def test_a_crop_is_stretched_and_may_start_between_pixels():
    crop = cut_crop(ramp(200, 200), (40.5, 60.25, 120.5, 100.25), (80, 80))
    red, green = (crop[:2] * 255).round()
    assert abs(red[40] - torch.arange(40.5, 120.5)).max() <= 1
    assert abs(green[:, 40] - (60.25 + torch.arange(0.25, 40.25, 0.5) - 0.5)).max() <= 1


def test_a_crop_agrees_with_the_region_of_the_frame():
    smooth = ramp(24, 18).resize((240, 180), Image.Resampling.BICUBIC)
    frame, geometry = fit_image(smooth, (84, 112), "pad")
    box = torch.tensor([[14.0, 7.0, 70.0, 49.0]])
    crop = cut_crop(smooth, geometry.to_original(box)[0].tolist(), (42, 56))
    assert (crop - frame[:, 7:49, 14:70]).abs().max() < 1.5 / 255


def test_a_box_is_clipped_to_the_image():
    whole = cut_crop(ramp(50, 40), (-1e-4, -2.0, 50.0001, 40.5), (40, 50))
    assert torch.equal((whole[0, 0] * 255).round(), torch.arange(50.0))


def test_normalize_and_hflip():
    x = torch.rand(2, 3, 4, 5)
    y = normalize(x, (0.5, 0.4, 0.3), (0.1, 0.2, 0.25))
    assert torch.allclose(y[:, 1], (x[:, 1] - 0.4) / 0.2)
    assert np.array_equal(np.asarray(hflip(ramp(9, 4)))[0, :, 0], np.arange(8, -1, -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fit_image(ramp(10, 40), (28, 28), "pad", patch=14, name="a.png"), "a.png: the image is 10 x 40"),
        (
            lambda: fit_image(ramp(200, 20), (28, 28), "pad", patch=14, name="b.png"),
            r"b.png: the image \(200 x 20\) fitted into 28 x 28 is 28 x 3 pixels, smaller than a patch \(14 x 14\)",
        ),
    ],
)
def test_smaller_than_a_patch(make: Callable[[], object], message: str):
    with pytest.raises(ImageError, match=message):
        make()


def test_unknown_fit():
    with pytest.raises(UserError, match=r"data\.fit=padd.*Did you mean 'pad'"):
        fit_image(ramp(20, 20), (14, 14), "padd")
