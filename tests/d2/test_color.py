"""SSD's colour changes against OpenCV, which only tests import."""

import random
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from detectron2.projects.point_rend import ColorAugSSDTransform

from rsc_seg.d2.color import ColorDraw, change_color, draw_color, hsv_to_rgb, rgb_to_hsv


def colours(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def gap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours.astype(int) - theirs.astype(int))


def test_every_red_and_green_with_some_blue_has_opencvs_hue_saturation_and_value() -> None:
    red, green = np.meshgrid(np.arange(256), np.arange(256))
    for blue in (0, 1, 63, 127, 128, 200, 255):
        rgb = np.stack([red, green, np.full_like(red, blue)], axis=-1).astype(np.uint8)
        hsv = rgb_to_hsv(rgb)
        assert (hsv == cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)).all()
        assert gap(hsv_to_rgb(hsv), cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).max() <= 1


def test_known_colours() -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 10, 10], [0, 0, 0]]], np.uint8)
    assert rgb_to_hsv(rgb)[0].tolist() == [[0, 255, 255], [60, 255, 255], [120, 255, 255], [0, 0, 10], [0, 0, 0]]
    assert (hsv_to_rgb(rgb_to_hsv(rgb)) == rgb).all()


def official(image: np.ndarray, draw: ColorDraw) -> np.ndarray:
    """detectron2's transform with the values of `draw` in the place of its random ones."""
    first = ("contrast",) if draw.contrast_first else ()
    order = ("brightness", *first, "saturation", "hue", *(() if draw.contrast_first else ("contrast",)))
    switches = [getattr(draw, name) is not None for name in order]
    switches.insert(1, draw.contrast_first)
    values = [getattr(draw, name) for name in order if name != "hue" and getattr(draw, name) is not None]
    fakes: dict[str, Any] = {
        "randrange": mock.Mock(side_effect=[int(s) for s in switches]),
        "uniform": mock.Mock(side_effect=values),
        "randint": mock.Mock(return_value=draw.hue),
    }
    with mock.patch.multiple(random, **fakes):
        found = ColorAugSSDTransform(img_format="RGB").apply_image(image)
    assert fakes["randrange"].call_count == len(switches) and fakes["uniform"].call_count == len(values)
    return found


@pytest.mark.parametrize(
    "draw",
    [
        ColorDraw(),
        ColorDraw(brightness=-31.4),
        ColorDraw(contrast=1.43),
        ColorDraw(saturation=0.55),
        ColorDraw(saturation=1.5),
        ColorDraw(hue=-18),
        ColorDraw(hue=17),
    ],
    ids=str,
)
def test_one_change_is_within_one_level_of_the_official_one(draw: ColorDraw) -> None:
    image = colours((64, 96))
    assert gap(change_color(image, draw), official(image, draw)).max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_all_changes_in_either_order_give_the_official_pixels(seed: int) -> None:
    image = colours((64, 96), seed)
    draw = ColorDraw(20.3 - 8 * seed, 0.6 + 0.15 * seed, 1.45 - 0.17 * seed, 6 * seed - 15, bool(seed % 2))
    unequal = gap(change_color(image, draw), official(image, draw))
    # processors without fused multiply-add round a few pixels otherwise, and contrast may double that
    assert unequal.max() <= 2 and (unequal > 0).mean() < 1e-3


def test_the_order_of_contrast_matters() -> None:
    image, rest = colours((8, 8)), (None, 1.5, 1.5, None)
    assert (change_color(image, ColorDraw(*rest, True)) != change_color(image, ColorDraw(*rest, False))).any()


def test_draws_keep_to_their_ranges_and_leave_half_of_the_changes_out() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_color(rng) for _ in range(400)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 18),
    ):
        values = [v for d in draws if (v := getattr(d, name)) is not None]
        assert 150 < len(values) < 250
        assert low <= min(values) < low + 0.1 * (high - low) and high >= max(values) > high - 0.1 * (high - low)
    assert 150 < sum(d.contrast_first for d in draws) < 250
