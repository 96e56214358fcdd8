"""Views: crops, resizing, squares, windows, in the official order and rounding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as tv

from rsc_seg.cause.labels import open_cause_set
from rsc_seg.cause.stages import whole_patches
from rsc_seg.cause.views import (
    Canvas,
    Crop,
    crop_box,
    full_views,
    resized_size,
    set_crops,
    signed,
    train_views,
    val_views,
    window_offsets,
)
from rsc_seg.errors import UserError
from tests.cause.trees import blocks, plain_tree, voc_tree


@pytest.mark.parametrize("size", [(64, 32), (45, 31), (33, 47)])
def test_crops_lie_where_torchvision_cuts_them(size: tuple[int, int]) -> None:
    width, height = size
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for ratio in (0.3, 0.5, 0.8):
        theirs = tv.ten_crop(picture, (int(ratio * height), int(ratio * width)))
        for crop, expected in zip(set_crops((("ten", ratio),)), theirs, strict=True):
            whole = tv.hflip(picture) if crop.mirrored else picture
            assert np.array_equal(np.asarray(whole.crop(crop_box(crop, width, height))), np.asarray(expected))
    assert [len(set_crops(plan)) for plan in ((("five", 0.5),), (("ten", 0.5), ("ten", 0.8)))] == [5, 20]


def test_the_centre_rounds_to_even() -> None:
    assert crop_box(Crop(0.5, 4), 10, 6) == (2, 2, 7, 5)  # offsets 2.5 and 1.5
    assert crop_box(Crop(0.5, 3), 9, 7) == (5, 4, 9, 7)


@pytest.mark.parametrize("size", [(45, 30), (30, 45), (33, 33), (20, 20), (41, 29)])
def test_squares_equal_torchvision(tmp_path: Path, size: tuple[int, int]) -> None:
    plain_tree(tmp_path, 1, size)
    views = val_views(open_cause_set("plain", str(tmp_path), "val"), 20)
    for whole, found in (
        (views.data.load(0), views.pixels(0)),
        (Image.fromarray(views.data.labels(0)), views.labels(0)),
    ):
        resized = tv.resize(whole, 20, tv.InterpolationMode.NEAREST)
        assert np.array_equal(np.asarray(tv.center_crop(resized, [20, 20])), found)
    assert signed(views.labels(0)).dtype == np.int16 and set(np.unique(signed(views.labels(0)))) <= {-1, 0, 1, 2}


def test_resolutions_fit_the_patch() -> None:
    assert [whole_patches(320, p) for p in (14, 16, 8, 32)] == [322, 320, 320, 320]
    assert [whole_patches(side, 14) for side in (224, 328, 330, 3)] == [224, 322, 336, 14]  # the nearest, never none
    assert resized_size(64, 32, 20) == (40, 20) and resized_size(31, 45, 20) == (20, 29)


def test_training_views_come_image_by_image(tmp_path: Path) -> None:
    plain_tree(tmp_path, 2)
    views = train_views(open_cause_set("plain", str(tmp_path), "train"), 12)
    assert len(views) == 10
    assert [(v.image, v.crop.corner) for v in views.layout[3:7] if v.crop] == [(0, 3), (0, 4), (1, 0), (1, 1)]
    expected = tv.resize(tv.crop(views.data.load(1), 0, 23, 15, 22), 12, tv.InterpolationMode.NEAREST)
    assert np.array_equal(views.pixels(6), np.asarray(tv.center_crop(expected, [12, 12])))
    assert views.canvases == () and views.name(6) == "train/images/1.png"
    with pytest.raises(IndexError):
        views.pixels(10)


def test_labels_stay_with_their_pixels(tmp_path: Path) -> None:
    plain_tree(tmp_path, 2)
    colours = {(200, 30, 30): 0, (30, 200, 30): 1, (30, 30, 200): 2}
    for views in (
        train_views(open_cause_set("plain", str(tmp_path), "train"), 16),
        full_views(open_cause_set("plain", str(tmp_path), "val"), 16, flipped=True),
    ):
        for i in range(len(views)):
            by_colour = np.apply_along_axis(lambda p: colours[tuple(int(v) for v in p)], 2, views.pixels(i))
            labels = views.labels(i)
            assert np.array_equal(by_colour[labels != 255], labels[labels != 255])


def test_pascal_voc_is_stretched(tmp_path: Path) -> None:
    voc_tree(tmp_path)
    opened = open_cause_set("pascalvoc", str(tmp_path), "val")
    views = val_views(opened, 16)
    stretched = opened.data.load(0).resize((16, 16), Image.Resampling.NEAREST)
    assert np.array_equal(views.pixels(0), np.asarray(stretched))
    assert len(train_views(opened, 16)) == 50


def test_flipped_views_are_mirrored_squares(tmp_path: Path) -> None:
    plain_tree(tmp_path, 1)
    opened = open_cause_set("plain", str(tmp_path), "val")
    plain, flipped = val_views(opened, 16), val_views(opened, 16, flipped=True)
    assert np.array_equal(flipped.pixels(0), plain.pixels(0)[:, ::-1])
    assert np.array_equal(flipped.canvas_labels(flipped.canvases[0]), plain.labels(0))
    assert np.array_equal(flipped.canvas_pixels(flipped.canvases[0]), plain.pixels(0))


def test_windows_cover_the_whole_image(tmp_path: Path) -> None:
    assert window_offsets(20, 20) == [0] and window_offsets(21, 20) == [0, 1] and window_offsets(50, 20) == [0, 15, 30]
    plain_tree(tmp_path, 2, (20, 50))
    views = full_views(open_cause_set("plain", str(tmp_path), "val"), 20)
    assert len(views) == 6
    assert views.canvases[1] == Canvas(1, 20, 50, ((3, 0, 0), (4, 15, 0), (5, 30, 0)))
    whole = views.canvas_pixels(views.canvases[1])
    assert np.array_equal(whole, np.asarray(views.data.load(1)))
    for view, left, top in views.canvases[1].parts:
        assert np.array_equal(views.pixels(view), whole[top : top + 20, left : left + 20])
    labels = views.canvas_labels(views.canvases[0])
    assert labels.shape == (20, 50) and np.array_equal(labels[1:], blocks(100, 20, 50, 3)[1:])
    plain_tree(tmp_path / "upright", 1, (44, 20))
    tall = full_views(open_cause_set("plain", str(tmp_path / "upright"), "val"), 20)
    assert tall.canvases == [Canvas(0, 44, 20, ((0, 0, 0), (1, 0, 12), (2, 0, 24)))]


def test_digests_tell_protocol_resolution_and_images_apart(tmp_path: Path) -> None:
    plain_tree(tmp_path, 2)
    opened = open_cause_set("plain", str(tmp_path), "val")
    fewer = open_cause_set("plain", str(tmp_path), "val", limit=1)
    every = [
        val_views(opened, 16),
        val_views(opened, 16, flipped=True),
        val_views(opened, 32),
        full_views(opened, 16),
        full_views(opened, 16, flipped=True),
        train_views(opened, 16),
        val_views(fewer, 16),
        val_views(open_cause_set("plain", str(tmp_path), "train"), 16),
    ]
    digests = {v.digest() for v in every} | {v.label_digest() for v in every}
    assert len(digests) == 2 * len(every)
    assert val_views(open_cause_set("plain", str(tmp_path), "val"), 16).digest() == every[0].digest()


def test_too_small_and_empty(tmp_path: Path) -> None:
    plain_tree(tmp_path, 1, (1, 9))
    opened = open_cause_set("plain", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"train/images/0\.png: too small to be cropped"):
        train_views(opened, 8).pixels(0)
    opened.data.images.files.clear()
    with pytest.raises(UserError, match="holds no image"):
        val_views(opened, 8)
