"""Boxes, crops and frames of RLA against the official CLIPSelf data code (make_boxes_golden.py)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsc_seg.config import CropConfig, DataConfig, RlaConfig
from rsc_seg.data import rla as module
from rsc_seg.data.images import open_images
from rsc_seg.data.nouns import Nouns, PseudoLabels
from rsc_seg.data.region_boxes import grid_cells, grid_layouts
from rsc_seg.data.rla import RlaRegions
from rsc_seg.data.transforms import fit_image, normalize
from tests.parity.make_boxes_golden import CROP, GOLDEN, MEAN, MOST, NOUNS, PICTURES, STD, annotations, picture

WITH_BOXES = [name for name, row in PICTURES.items() if row[3]]


@pytest.fixture(scope="module")
def golden() -> Iterator[Any]:
    with np.load(GOLDEN / "clipself_boxes.npz") as file:
        yield file


class GivenDraws:
    """Stands for the keyed generator: the layout and the order that the official code drew."""

    def __init__(self, layout: int, order: np.ndarray) -> None:
        self.layout, self.order = layout, order

    def integers(self, high: int) -> int:
        assert high == 24
        return self.layout

    def permutation(self, count: int) -> np.ndarray:
        assert count == len(self.order)
        return self.order


def regions(folder: Path, name: str, boxes: str, kind: str = "clipself") -> dict[str, torch.Tensor]:
    """Our sample of a picture of the golden file."""
    width, height, side, _, _ = PICTURES[name]
    picture(name).save(folder / "a.png")
    picture(name).save(folder / "other.png")
    rows = annotations(name)
    images = [{"id": 1, "file_name": "a.png", "width": width, "height": height}, {"id": 2, "file_name": "other.png"}]
    other = {"image_id": 2, "bbox": [0, 0, 50, 50], "category_id": 2}  # so that a file without boxes for `a` is one
    categories = [{"id": 3 * k + 2} for k in range(NOUNS)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [*rows, other], "categories": categories}))
    data = DataConfig(kind="folder", root=str(folder), image_size=[side, side], proposals=str(path))
    labels = None
    if kind == "regiontext":
        labels = PseudoLabels(path, Nouns(tuple(f"n{k}" for k in range(NOUNS)), "test"))
    source = open_images("folder", str(folder), "train")
    config = RlaConfig(boxes=boxes, per_image=MOST, crop_size=[CROP, CROP])
    found = RlaRegions(config, data, CropConfig(), source=source, kind=kind, seed=0, mean=MEAN, std=STD, labels=labels)
    image = source.load(0)
    frame, geometry = fit_image(image, data.image_size, "pad")
    return found.sample(image, geometry, epoch=0, index=0) | {"image": normalize(frame, MEAN, STD)}


def levels(x: torch.Tensor) -> np.ndarray:
    """Normalised (...,3,H,W) to bytes (...,H,W,3)."""
    values = x.double().numpy() * np.array(STD).reshape(3, 1, 1) + np.array(MEAN).reshape(3, 1, 1)
    return np.moveaxis(np.rint(values * 255), -3, -1).astype(np.uint8)


def draws(golden: Any, name: str, kind: str) -> GivenDraws:
    layout = tuple(golden[f"{name}/grid/layout"])
    return GivenDraws(grid_layouts().index(layout), golden[f"{name}/{kind}/order"])


def test_layouts_and_cells_are_the_official_ones(golden: Any) -> None:
    assert grid_layouts() == [tuple(row) for row in golden["layouts"]] and len(grid_layouts()) == 24
    for rows, columns in grid_layouts():
        cells = golden[f"cells/{rows}x{columns}"]
        assert np.array_equal(grid_cells((rows, columns), (1, 1)).numpy(), cells)


@pytest.mark.parametrize("kind", ["proposals", "grid"])
@pytest.mark.parametrize("name", PICTURES)
def test_official_boxes_crops_and_frames(
    golden: Any, name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draws(golden, name, kind)
    monkeypatch.setattr(module, "keyed_rng", lambda *key: given)
    sample = regions(tmp_path, name, kind)
    boxes, count = golden[f"{name}/{kind}/boxes"], int(sample["rla_valid"].sum())
    assert count == len(boxes) and sample["rla_valid"][:count].all()
    assert np.array_equal((sample["rla_boxes"][:count] / PICTURES[name][2]).numpy(), boxes)  # to the last bit
    assert np.array_equal(levels(sample["rla_crops"][:count]), golden[f"{name}/{kind}/crops"])
    assert np.array_equal(levels(sample["image"]), golden[f"{name}/frame"])
    assert not sample["rla_boxes"][count:].any() and not sample["rla_crops"][count:].any()


@pytest.mark.parametrize("name", WITH_BOXES)
def test_official_nouns_are_the_first_in_order(golden: Any, name: str, tmp_path: Path) -> None:
    sample = regions(tmp_path, name, "grid", "regiontext")
    official = golden[f"{name}/nouns"]
    count = int(sample["rla_valid"].sum())
    assert count == int(official[:, 5].sum()) == min(MOST, PICTURES[name][3])
    assert np.array_equal((sample["rla_boxes"][:count] / PICTURES[name][2]).numpy(), official[:count, :4])
    assert sample["rla_nouns"][:count].tolist() == official[:count, 4].astype(int).tolist()
    assert (sample["rla_nouns"][count:] == -1).all() and "rla_crops" not in sample


def test_the_golden_pictures_meet_every_rule(golden: Any) -> None:
    """Filters after the pick, more cells than places, a picture without boxes."""
    for name in ("wide", "street"):
        assert 0 < len(golden[f"{name}/proposals/boxes"]) < MOST < PICTURES[name][3]
    assert len(golden["wide/grid/order"]) > MOST == len(golden["wide/grid/boxes"])
    assert len(golden["bare/proposals/boxes"]) == 1 and len(golden["bare/proposals/order"]) == 0
