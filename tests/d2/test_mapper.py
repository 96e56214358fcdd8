"""Training views against detectron2's own transforms in the official order; test images."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image

from rsc_seg.d2 import mapper
from rsc_seg.d2.color import ColorDraw
from rsc_seg.d2.mapper import TrainMapper, ViewDraw
from rsc_seg.data.sampler import keyed_rng
from rsc_seg.data.seg_task import TaskSet
from rsc_seg.errors import UserError
from tests.d2.sets import open_both, options, write_pair


def a_task(root: Path, size: tuple[int, int], **changes: Any) -> tuple[TaskSet, TaskSet, dict[str, str]]:
    for split in ("train", "val"):
        image, labels = write_pair(root, split, "one", size, seed=3)
    train, test = open_both(options(root, **changes))
    return train, test, {"file_name": str(image), "sem_seg_file_name": str(labels)}


def official_view(
    record: dict[str, str], task: TaskSet, draw: ViewDraw, *, sizes: list[int], crop: list[int], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """detectron2's augmentations as Cat-Seg's mapper lists them, with the values of `draw` for its random ones."""
    augmentations = [
        T.ResizeShortestEdge(sizes, most, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", crop, 1.0, 255),
        T.RandomFlip(),
    ]
    image = read_image(record["file_name"], format="RGB")
    sem_seg = task.labels(Path(record["sem_seg_file_name"])).astype("double")
    with (
        mock.patch("numpy.random.choice", return_value=draw.short_side),
        mock.patch("numpy.random.randint", side_effect=[draw.top, draw.left]) as offsets,
        mock.patch("numpy.random.uniform", return_value=0.0 if draw.flip else 0.9),
    ):
        given, _ = T.apply_transform_gens(augmentations, T.AugInput(image, sem_seg=sem_seg))
    assert offsets.call_count == 2
    planes = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
    labels = torch.as_tensor(given.sem_seg.astype("long"))
    padding = [0, crop[1] - labels.shape[1], 0, crop[0] - labels.shape[0]]
    return F.pad(planes, padding, value=128), F.pad(labels, padding, value=255)


@pytest.mark.parametrize(
    ("size", "crop", "sizes", "most"),
    [
        ((60, 90), [32, 32], [40], 1333),
        ((90, 60), [32, 48], [24, 40, 56], 1333),
        ((37, 53), [64, 64], [48], 1333),  # both sides below the crop
        ((30, 200), [48, 48], [40], 90),  # the long side is held to 90
    ],
)
def test_geometry_and_labels_are_those_of_the_official_pipeline(
    size: tuple[int, int], crop: list[int], sizes: list[int], most: int, tmp_path: Path
) -> None:
    task, _, record = a_task(tmp_path, size, crop=crop, min_size=sizes, max_size=most, color=False)
    view = TrainMapper(task, options(tmp_path, crop=crop, min_size=sizes, max_size=most, color=False), seed=5)
    flips, starts = set(), set()
    for place in range(12):
        draw = view.draw(keyed_rng("view", 5, place), *size)
        found = view({**record, "place": place})
        image, labels = official_view(record, task, draw, sizes=sizes, crop=crop, most=most)
        assert torch.equal(found["image"], image) and torch.equal(found["sem_seg"], labels)
        assert found["image"].shape == (3, *crop) and found["image"].dtype == torch.uint8
        assert (found["height"], found["width"]) == size and found["sem_seg"].dtype == torch.int64
        flips.add(draw.flip)
        starts.add((draw.top, draw.left))
    assert flips == {True, False} and (len(starts) > 6 or max(crop) > min(size))


def test_colours_change_after_the_crop_and_not_the_padding(tmp_path: Path) -> None:
    task, _, _ = a_task(tmp_path, (20, 30))
    view = TrainMapper(task, options(tmp_path, min_size=[20]))
    image, labels = task.load(*task.pairs()[0])
    plain, _ = view.view(image, labels, ViewDraw(20, 0, 0, ColorDraw(), False))
    bright, found = view.view(image, labels, ViewDraw(20, 0, 0, ColorDraw(brightness=30.0), False))
    assert torch.equal(bright[:, :20, :30], (plain[:, :20, :30].int() + 30).clamp(max=255).to(torch.uint8))
    assert bool((bright[:, 20:] == 128).all()) and bool((bright[:, :, 30:] == 128).all())
    assert bool((found[20:] == 255).all()) and bool((found[:, 30:] == 255).all())


def test_options_switch_colours_and_mirror_off(tmp_path: Path) -> None:
    task, _, _ = a_task(tmp_path, (40, 60))
    off = TrainMapper(task, options(tmp_path, color=False, hflip=False))
    on = TrainMapper(task, options(tmp_path))
    draws = [(off.draw(keyed_rng(i), 40, 60), on.draw(keyed_rng(i), 40, 60)) for i in range(30)]
    assert all(a.color == ColorDraw() and not a.flip for a, _ in draws)
    assert len({b.flip for _, b in draws}) == 2 and sum(b.color != ColorDraw() for _, b in draws) > 20
    # what else is drawn stays the same
    assert all((a.short_side, a.top, a.left) == (b.short_side, b.top, b.left) for a, b in draws)


def test_a_view_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    task, _, record = a_task(tmp_path, (60, 90))
    first, again, other = (TrainMapper(task, options(tmp_path), seed)({**record, "place": 4}) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"]) and not torch.equal(first["image"], other["image"])
    moved = TrainMapper(task, options(tmp_path), 1)({**record, "place": 5})
    assert not torch.equal(first["image"], moved["image"])


def test_a_test_image_is_resized_and_its_labels_are_not(tmp_path: Path) -> None:
    _, task, record = a_task(tmp_path, (30, 60))
    found = mapper.TestMapper(task, options(tmp_path, min_size_test=45))(record)
    expected = T.ResizeTransform(30, 60, 45, 90).apply_image(read_image(record["file_name"], format="RGB"))
    assert torch.equal(found["image"], torch.as_tensor(expected.transpose(2, 0, 1).copy()))
    assert np.array_equal(found["sem_seg"].numpy(), task.labels(Path(record["sem_seg_file_name"])))
    assert (found["height"], found["width"]) == (30, 60)
    assert mapper.TestMapper(task, options(tmp_path, max_size_test=50))(record)["image"].shape == (3, 25, 50)


def test_labels_of_the_image_as_stored_get_the_image_as_stored(tmp_path: Path) -> None:
    _, task, record = a_task(tmp_path, (30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter when it is shown
    with Image.open(record["file_name"]) as image:
        image.load()
        image.save(record["file_name"], exif=exif, quality=95)
    stored, _ = task.load(Path(record["file_name"]), Path(record["sem_seg_file_name"]))
    assert stored.shape == (30, 60, 3)
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    Image.fromarray(np.rot90(labels, -1).copy()).save(record["sem_seg_file_name"])
    upright, turned = task.load(Path(record["file_name"]), Path(record["sem_seg_file_name"]))
    assert turned.shape == (60, 30) and np.array_equal(upright, np.rot90(stored, -1))


def test_bad_files_are_named(tmp_path: Path) -> None:
    train, test, record = a_task(tmp_path, (30, 60))
    image, labels = Path(record["file_name"]), Path(record["sem_seg_file_name"])
    Image.fromarray(np.zeros((30, 59), np.uint8)).save(labels)
    with pytest.raises(UserError, match=rf"{labels}: labels are 59 x 30 .* the image {image} is 60 x 30"):
        mapper.TestMapper(test, options(tmp_path))(record)
    values = np.zeros((30, 60), np.uint8)
    values[7, 9] = 180
    Image.fromarray(values).save(labels)
    with pytest.raises(UserError, match=rf"{labels}: label 180 at pixel \(9, 7\) is neither below 150 nor 255"):
        TrainMapper(train, options(tmp_path))({**record, "place": 0})
    image.write_bytes(image.read_bytes()[:200])
    Image.fromarray(np.zeros((30, 60), np.uint8)).save(labels)
    with pytest.raises(UserError, match=rf"{image}: not readable as an image"):
        mapper.TestMapper(test, options(tmp_path))(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": [32]}, r"data.crop=\[32\]: give height and width"),
        ({"crop": [32, 0]}, r"data.crop=\[32, 0\]"),
        ({"min_size": []}, r"data.min_size=\[\]: give at least one"),
        ({"max_size": 0}, r"data.max_size=0: must be 1 or more"),
        ({"min_size_test": -1}, r"data.min_size_test=-1: must be 1 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    train, test, _ = a_task(tmp_path, (30, 60))
    for make in (lambda d: TrainMapper(train, d), lambda d: mapper.TestMapper(test, d)):
        with pytest.raises(UserError, match=message):
            make(options(tmp_path, **change))
