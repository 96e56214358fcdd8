"""The regions of region-language alignment, as the training data gives them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.config import DataConfig, RlaConfig
from rsc_seg.data.crops import CropDataset
from rsc_seg.data.ground_truth import ground_truth
from rsc_seg.data.images import PackagedPhotographs, open_images
from rsc_seg.data.nouns import Nouns, PseudoLabels
from rsc_seg.data.photos import photo_paths
from rsc_seg.data.rla import RlaRegions, box_source, distillation_boxes, rla_kind
from rsc_seg.data.sampler import StepLoader, keyed_rng
from rsc_seg.data.source import ImageSource
from rsc_seg.errors import UserError
from tests.data.test_crops import CROPS, DATA, MEAN, STD, raw

RLA = RlaConfig(per_image=6, crop_size=[28, 28])
KEYS = ("rla_boxes", "rla_valid", "rla_crops")


def regions(source: ImageSource, config: RlaConfig = RLA, data: DataConfig = DATA, **more: Any) -> RlaRegions:
    given = {"source": source, "kind": "clipself", "seed": 0, "mean": MEAN, "std": STD, **more}
    return RlaRegions(config, data, CROPS, **given)


def dataset(folder: Path, config: RlaConfig = RLA, data: DataConfig = DATA, **more: Any) -> CropDataset:
    source = open_images(data.kind, data.root or str(folder), data.split)
    options = {k: more.pop(k) for k in ("kind", "labels") if k in more}
    rla = regions(source, config, data, **options)
    given = {"seed": 0, "mean": MEAN, "std": STD, "patch_size": 14, "stage": "distill", **more}
    return CropDataset(source, data, given.pop("crops", CROPS), rla=rla, **given)


def write_boxes(path: Path, boxes: dict[int, list[list[float]]], **more: Any) -> str:
    rows = [{"image_id": i, "bbox": box, "category_id": k} for i, many in boxes.items() for k, box in enumerate(many)]
    path.write_text(json.dumps({"annotations": rows, **more} if more else rows))
    return str(path)


def test_objectives_name_their_kind():
    kinds = {"rvs": None, "scd": None, "r-sc-clipself": "clipself", "regiontext": "regiontext", "rscv": None}
    assert {name: rla_kind(name) for name in kinds} == kinds


def test_auto_is_proposals_where_a_file_is_given():
    assert box_source(RLA, DATA) == "grid"
    assert box_source(RLA, dataclasses.replace(DATA, proposals="x.json")) == "proposals"
    for boxes in ("random", "gt", "grid"):
        assert box_source(dataclasses.replace(RLA, boxes=boxes), DATA) == boxes


def test_a_sample_of_grid_cells(folder):
    data = dataset(folder)
    counts = set()
    for epoch in range(12):
        sample = data.sample(epoch, 2)
        assert [tuple(sample[k].shape) for k in KEYS] == [(6, 4), (6,), (6, 3, 28, 28)]
        count = int(sample["rla_valid"].sum())
        counts.add(count)
        assert sample["rla_valid"].tolist() == [True] * count + [False] * (6 - count)
        assert not sample["rla_boxes"][count:].any() and not sample["rla_crops"][count:].any()
        boxes = sample["rla_boxes"][:count]
        assert (boxes[:, 2] <= 75.01).all() and (boxes[:, 3] <= 56.01).all()  # the un-padded part is 75 x 56
        assert len({tuple(b) for b in boxes.tolist()}) == count
        for (x0, y0, x1, y1), crop in zip(boxes.tolist(), raw(sample["rla_crops"][:count]), strict=True):
            at = crop[:, 14, 14]  # the letterbox is centred, so its middle shows the middle of the cell
            assert abs(float(at[0]) - (x0 + x1) / 2 * 160 / 75) < 6 and abs(float(at[1]) - (y0 + y1) / 2 * 120 / 56) < 6
    assert max(counts) == 6 and len(counts) > 1


def test_cells_are_never_enlarged_and_boxes_are(folder, tmp_path_factory):
    given = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {0: [[60, 40, 40, 40]], 1: [[60, 40, 40, 40]]})
    data = dataclasses.replace(DATA, proposals=given)
    spans = []
    for enlarge in (1.0, 1.5):
        crop = raw(dataset(folder, dataclasses.replace(RLA, enlarge=enlarge), data).sample(0, 0)["rla_crops"][0])
        spans.append((round(float(crop[0, 14, 0])), round(float(crop[0, 14, -1]))))
    assert spans == [(60, 99), (51, 108)]  # red is the column; the resize blurs
    boxes = dataset(folder, RLA, data).sample(0, 0)["rla_boxes"][0]
    assert boxes.tolist() == pytest.approx([60 * 56 / 120, 40 * 56 / 120, 100 * 56 / 120, 80 * 56 / 120])
    grids = [dataset(folder, dataclasses.replace(RLA, enlarge=e)).sample(3, 0) for e in (1.0, 3.0)]
    assert torch.equal(grids[0]["rla_crops"], grids[1]["rla_crops"])


def test_random_boxes_follow_crops_ratio(folder):
    sample = dataset(folder, dataclasses.replace(RLA, boxes="random", per_image=40)).sample(0, 0)
    assert sample["rla_valid"].all()
    share = (sample["rla_boxes"][:, 2] - sample["rla_boxes"][:, 0]) / (160 * 56 / 120)
    assert 0.3 <= share.min() < 0.4 and 0.6 < share.max() <= 0.7001


def test_an_image_without_a_fitting_box_has_the_fallback(folder, tmp_path_factory):
    given = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {0: [[5, 5, 4, 4]], 1: [[5, 5, 40, 40]]})
    data = dataset(folder, RLA, dataclasses.replace(DATA, proposals=given))
    for index in (0, 2):  # one box that is too small, and no box at all
        sample = data.sample(0, index)
        assert sample["rla_valid"].tolist() == [True] + [False] * 5
        assert sample["rla_boxes"][0].tolist() == pytest.approx([0, 0, 40 * 56 / 120, 30 * 56 / 120])
    wide = dataset(folder, dataclasses.replace(RLA, min_area=10), dataclasses.replace(DATA, proposals=given))
    assert wide.sample(0, 0)["rla_boxes"][0].tolist() == pytest.approx([5 * 56 / 120] * 2 + [9 * 56 / 120] * 2)


def test_samples_depend_on_seed_epoch_and_image_alone(folder):
    first, second = dataset(folder), dataset(folder)
    second.sample(4, 0)
    assert all(torch.equal(first.sample(3, 1)[k], second.sample(3, 1)[k]) for k in KEYS)
    seen = {tuple(first.sample(e, i)["rla_boxes"].flatten().tolist()) for e, i in ((0, 0), (1, 0), (0, 1), (2, 0))}
    assert len(seen) == 4
    other = regions(first.source, seed=1)
    first.rla = other
    assert not torch.equal(first.sample(3, 1)["rla_boxes"], second.sample(3, 1)["rla_boxes"])


@pytest.mark.parametrize("boxes", ["grid", "proposals", "random"])
def test_a_flip_mirrors_boxes_and_crops(folder, tmp_path_factory, boxes):
    given = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {i: [[20, 40, 40, 30]] for i in range(5)})
    data = dataclasses.replace(DATA, proposals=given, hflip=True)
    made = dataset(folder, dataclasses.replace(RLA, boxes=boxes), data)
    flips = 0
    for epoch in range(8):
        sample = made.sample(epoch, 1)
        flipped = bool(raw(sample["image"])[0, 0, 0] > 100)  # red is the column; the resize blurs of the original
        flips += flipped
        x = sample["rla_boxes"][0, ::2].mean() * 120 / 56
        red = raw(sample["rla_crops"][0])[0, 14, 14]
        assert abs(float(red) - float(160 - x if flipped else x)) < (4 if boxes == "grid" else 14)
        if boxes == "proposals":
            assert float(x) == pytest.approx(120 if flipped else 40, abs=0.1)
    assert 0 < flips < 8


def test_regions_are_equal_in_workers_and_batches(folder):
    data = dataset(folder)
    alone = list(StepLoader(data, range(3), batch_size=2, seed=0))
    workers = list(StepLoader(data, range(3), batch_size=2, seed=0, workers=2))
    for a, b in zip(alone, workers, strict=True):
        assert a["rla_crops"].shape == (2, 6, 3, 28, 28)
        assert all(torch.equal(a[k], b[k]) for k in (*KEYS, "image", "boxes"))


def test_distillation_takes_its_own_boxes_or_those_of_the_regions(folder, tmp_path_factory):
    given = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {0: [[20, 40, 40, 30], [0, 0, 100, 121]]})
    data = dataclasses.replace(DATA, proposals=given)
    own = dataset(folder, dataclasses.replace(RLA, boxes="grid"), data)
    plain = CropDataset(own.source, data, CROPS, seed=0, mean=MEAN, std=STD, patch_size=14, stage="distill")
    assert torch.equal(own.sample(1, 0)["boxes"], plain.sample(1, 0)["boxes"])
    shared = dataset(folder, RLA, data, boxes_from="rla", crops=dataclasses.replace(CROPS, per_image=5))
    sample = shared.sample(1, 0)
    assert int(sample["rla_valid"].sum()) == 2 and sample["bank_ids"].tolist() == [-1] * 5
    assert torch.equal(sample["boxes"][:2], sample["rla_boxes"][:2].clamp(max=56.0).minimum(sample["boxes"][:2] + 1))
    assert torch.equal(sample["boxes"][[0, 1, 0]], sample["boxes"][2:])
    assert (sample["boxes"][:, 3] <= 56).all()
    with pytest.raises(UserError, match=r"distill\.boxes_from=rla: this objective has no RLA regions"):
        CropDataset(
            own.source, data, CROPS, seed=0, mean=MEAN, std=STD, patch_size=14, stage="distill", boxes_from="rla"
        )


def labelled(folder: Path, tmp: Path, boxes: dict[int, list[list[float]]], per_image: int = 3) -> CropDataset:
    labels = PseudoLabels(write_boxes(tmp / "l.json", boxes), Nouns(("a", "b", "c", "d", "e"), "test"))
    return dataset(folder, dataclasses.replace(RLA, per_image=per_image), kind="regiontext", labels=labels)


def test_nouns_come_with_the_first_boxes_of_the_file(folder, tmp_path_factory):
    many = [[5.0, 5, 1, 1], [10, 10, 30, 20], [0, 0, 160, 120], [1, 1, 50, 50]]
    data = labelled(folder, tmp_path_factory.mktemp("l"), {0: many, 1: many[:1]})
    for epoch in range(3):  # not shuffled, not filtered
        sample = data.sample(epoch, 0)
        assert sample["rla_nouns"].tolist() == [0, 1, 2] and sample["rla_valid"].all() and "rla_crops" not in sample
        expected = np.array([[x, y, x + w, y + h] for x, y, w, h in many[:3]]) * 56 / 120
        assert np.allclose(sample["rla_boxes"], expected, atol=1e-4)
    assert data.sample(0, 1)["rla_nouns"].tolist() == [0, -1, -1]
    none = data.sample(0, 3)
    assert not none["rla_valid"].any() and none["rla_nouns"].tolist() == [-1] * 3


def test_distillation_of_an_image_without_nouns_sees_all_of_it(folder, tmp_path_factory):
    data = labelled(folder, tmp_path_factory.mktemp("l"), {0: [[10, 10, 30, 20]]})
    data.boxes_from = "rla"
    assert data.sample(0, 3)["boxes"].tolist() == [[0, 0, 75, 56]] * 3


def test_crop_fit_shows_boxes_of_what_is_left(folder, tmp_path_factory):
    given = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {0: [[0, 0, 16, 16], [60, 40, 40, 40]]})
    config = dataclasses.replace(DATA, proposals=given, fit="crop", image_size=[56, 56])
    sample = dataset(folder, RLA, config).sample(0, 0)  # the centre square: columns 20 to 140
    assert sample["rla_valid"].sum() == 1
    scale = 56 / 120
    expected = [40 * scale, 40 * scale, 80 * scale, 80 * scale]
    assert sample["rla_boxes"][0].tolist() == pytest.approx(expected, abs=1e-3)
    cells = dataset(folder, RLA, dataclasses.replace(DATA, fit="crop", image_size=[56, 56])).sample(0, 0)
    assert (cells["rla_boxes"] >= -1e-3).all() and (cells["rla_boxes"] <= 56.001).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": "boxes"}, r"rla\.boxes=boxes: must be one of"),
        ({"boxes": "proposals"}, r"rla\.boxes=proposals: data\.proposals is not set"),
        (
            {"boxes": "gt"},
            r"none of the 5 selected pictures has .* \(rla\.boxes=gt\): .* no annotations/instances_train2017\.json",
        ),
        ({"per_image": 0}, r"rla\.per_image=0"),
        ({"enlarge": 0.5}, r"rla\.enlarge=0\.5"),
        ({"min_area": 9, "max_area": 4}, r"rla\.min_area=9, rla\.max_area=4"),
        ({"crop_size": [28]}, r"rla\.crop_size=\[28\]"),
    ],
)
def test_options_that_do_not_fit(folder, change, message):
    with pytest.raises(UserError, match=message):
        dataset(folder, dataclasses.replace(RLA, **change))


def test_regiontext_needs_labels(folder):
    with pytest.raises(UserError, match=r"rla\.pseudo_labels is not set"):
        dataset(folder, kind="regiontext")


def test_boxes_of_other_images_are_refused_with_counts(folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("b")
    given = write_boxes(tmp / "b.json", {70: [[5, 5, 30, 30]], 71: [[5, 5, 30, 30]]})
    with pytest.raises(UserError, match=r"no box for any of the 5 images.*boxes for 2 other images.*image_id 70"):
        dataset(folder, RLA, dataclasses.replace(DATA, proposals=given))
    with pytest.raises(UserError, match=r"no box for any of the 5 images.*rla\.pseudo_labels"):
        labelled(folder, tmp, {70: [[5, 5, 30, 30]]})


def test_boxes_outside_their_image_name_it(folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("b")
    given = write_boxes(tmp / "b.json", {1: [[5, 5, 300, 30]]})
    with pytest.raises(UserError, match=r"'1\.png'.*lies outside the image of 160 x 120"):
        dataset(folder, dataclasses.replace(RLA, boxes="proposals"), dataclasses.replace(DATA, proposals=given)).sample(
            0, 1
        )
    with pytest.raises(UserError, match=r"'1\.png'.*lies outside"):
        labelled(folder, tmp, {1: [[5, 5, 300, 30]]}).sample(0, 1)


def test_ground_truth_of_coco(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    images = []
    for i in (1, 2):
        Image.new("RGB", (160, 120), (i, i, i)).save(tmp_path / "train2017" / f"{i:012d}.jpg")
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "width": 160, "height": 120})
    rows = [
        {"image_id": 1, "bbox": [10, 20, 30, 40], "category_id": 3, "iscrowd": 0},
        {"image_id": 1, "bbox": [0, 0, 100, 100], "category_id": 3, "iscrowd": 1},
    ]
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 3, "name": "car"}]}))
    config = dataclasses.replace(RLA, boxes="gt")
    data = dataset(tmp_path, config, dataclasses.replace(DATA, kind="coco", root=str(tmp_path)))
    sample = data.sample(0, 0)
    assert int(sample["rla_valid"].sum()) == 1  # without the crowd
    assert sample["rla_boxes"][0].tolist() == pytest.approx([v * 56 / 120 for v in (10, 20, 40, 60)], abs=1e-4)
    assert int(data.sample(0, 1)["rla_valid"].sum()) == 1  # no box: the fallback


def test_ground_truth_of_the_embedded_scenes(tmp_path):
    from rsc_seg.data.scenes import SceneSet, compose_scene, scene_seed, write_scenes

    write_scenes(tmp_path / "s", SceneSet(train=2, val=1, size=(160, 120), layouts=("plain", "coco")))
    config = dataclasses.replace(RLA, boxes="gt", per_image=20, min_area=0)
    plain = dataclasses.replace(DATA, kind="scenes", root=str(tmp_path / "s"), split="val")
    coco = dataclasses.replace(DATA, kind="coco", root=str(tmp_path / "s" / "coco"), split="val")
    things = compose_scene(scene_seed(0, "val", 0), (160, 120), "val").objects
    expected = {tuple(float(v) for v in (x, y, x + w, y + h)) for x, y, w, h in (t.bbox for t in things)}
    for data in (plain, coco):
        sample = dataset(tmp_path, config, data).sample(0, 0)
        boxes = sample["rla_boxes"][sample["rla_valid"]] * 120 / 56
        assert {tuple(round(v, 2) for v in box) for box in boxes.tolist()} == expected
    empty = dataclasses.replace(plain, split="train", limit=None)
    assert int(dataset(tmp_path, config, empty).sample(0, 0)["rla_valid"].sum()) == 1  # a photograph: the fallback


def test_photographs_have_no_ground_truth():
    photographs = PackagedPhotographs(photo_paths())
    with pytest.raises(UserError, match=rf"scenes: none of the {len(photographs)} selected pictures has ground-truth"):
        ground_truth(photographs, DataConfig(kind="scenes"))


def test_boxes_without_area_take_places_in_the_draw(folder, tmp_path_factory):
    """As officially: all boxes are shuffled, the first ones taken, and what has no area falls out of these."""
    given = [[10.0 + k, 20, 0 if k % 2 else 20, 30] for k in range(12)]
    path = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {i: given for i in range(5)})
    data, counts = dataset(folder, RLA, dataclasses.replace(DATA, proposals=path)), set()
    for epoch in range(6):
        sample = data.sample(epoch, 0)
        order = keyed_rng("rla", 0, epoch, 0).permutation(12)[:6]
        wanted = [given[k][0] * 56 / 120 for k in order if not k % 2]
        kept = sample["rla_boxes"][sample["rla_valid"]]
        assert kept[:, 0].tolist() == pytest.approx(wanted)
        counts.add(len(wanted))
    assert len(counts) > 1


def test_regiontext_keeps_boxes_without_area_in_their_places(folder, tmp_path_factory):
    boxes = [[10.0, 10, 0, 20], [10, 10, 40, 20], [30, 30, -5, 9], [20, 10, 30, 20]]
    path = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {i: boxes for i in range(5)})
    labels = PseudoLabels(path, Nouns(("a", "b", "c", "d"), "x"))
    sample = dataset(folder, dataclasses.replace(RLA, per_image=3), kind="regiontext", labels=labels).sample(0, 0)
    assert sample["rla_nouns"].tolist() == [0, 1, 2] and sample["rla_valid"].all()
    sides = sample["rla_boxes"][:, 2:] - sample["rla_boxes"][:, :2]
    assert (sides.prod(dim=1) > 0).tolist() == [False, True, False] and (sides >= 0).all()
    inside = distillation_boxes(sample, 4)  # correlations need an area
    assert torch.equal(inside, sample["rla_boxes"][1].expand(4, 4))


def test_sizes_come_from_the_pictures_where_the_file_has_none(folder, tmp_path_factory):
    path = write_boxes(tmp_path_factory.mktemp("b") / "b.json", {1: [[150, 5, 30, 30]], 0: [[5, 5, 9, 9]]})
    with pytest.raises(UserError, match=r"b\.json, image '1\.png' \(data\.proposals\): box \[150\.0"):
        regions(open_images("folder", str(folder), "train"), RLA, dataclasses.replace(DATA, proposals=path))
    with pytest.raises(UserError, match=r"b\.json, image '1\.png' \(rla\.pseudo_labels\): box \[150\.0"):
        labels = PseudoLabels(path, Nouns(("a",), "x"))
        regions(open_images("folder", str(folder), "train"), RLA, kind="regiontext", labels=labels)
