"""The sets of CAUSE: classes, label tables, image lists, stored crops, and clear errors."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rsc_seg.cause.labels import CAUSE_SETS, open_cause_set, open_stored_crops
from rsc_seg.data import vocab
from rsc_seg.data.scenes import SceneSet, layout_root, write_scenes
from rsc_seg.data.segmentation import open_labelled
from rsc_seg.errors import UserError
from tests.cause.trees import blocks, cityscapes_tree, coco_tree, plain_tree, put, voc_tree


@pytest.mark.parametrize("below", ["", "cityscapes"])
def test_cityscapes_classes_are_label_ids_less_seven(tmp_path: Path, below: str) -> None:
    cityscapes_tree(tmp_path / below)
    opened = open_cause_set("cityscapes", str(tmp_path), "val")
    raw = blocks(11, 32, 64, 34).astype(int)
    assert len(opened.data) == 2 and len(opened.data.classes) == 27
    assert opened.data.classes[0] == "road" and opened.data.classes[2] == "parking"
    assert np.array_equal(opened.data.labels(1), np.where(raw < 7, 255, raw - 7))


def test_every_coco_id_has_one_of_27_classes(tmp_path: Path) -> None:
    every = np.arange(182, dtype=np.uint8).reshape(14, 13)
    put(tmp_path / "images/val2017/1.png", np.zeros((14, 13, 3), np.uint8))
    put(tmp_path / "annotations/val2017/1.png", every)
    found = open_cause_set("cocostuff27", str(tmp_path), "val").data
    labels = found.labels(0).reshape(-1)
    assert sorted(set(labels.tolist())) == list(range(27))
    facts = {0: "person", 2: "vehicle", 15: "animal", 156: "sky", 95: "building", 123: "plant", 148: "ground"}
    assert {i: found.classes[labels[i]] for i in facts} == facts
    assert np.bincount(labels)[:12].sum() == 91  # all ids of things, unused ones included
    assert np.bincount(labels)[12:].sum() == 91
    assert vocab.load("coco_stuff_27").by_name("sky").extra["fine_ids"] == [105, 156]


def test_171_and_81_classes_leave_the_unused_ids_out(tmp_path: Path) -> None:
    put(tmp_path / "images/val2017/1.png", np.zeros((1, 4, 3), np.uint8))
    put(tmp_path / "annotations/val2017/1.png", np.array([[10, 12, 181, 255]], np.uint8))
    assert open_cause_set("cocostuff171", str(tmp_path), "val").data.labels(0).tolist() == [[10, 11, 170, 255]]
    eighty_one = open_cause_set("coco81", str(tmp_path), "val").data
    assert len(eighty_one.classes) == 81 and eighty_one.classes[:2] == ["stuff", "person"]
    assert eighty_one.labels(0).tolist() == [[11, 12, 0, 255]]


def test_the_curated_list_names_the_images_and_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco_tree(tmp_path / "cocostuff")
    opened = open_cause_set("cocostuff27", str(tmp_path), "val")
    assert opened.images == "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
    names = [opened.data.name(i) for i in range(len(opened.data))]
    assert names == [f"images/val2017/{i:012d}.png" for i in (1, 0)]
    assert open_cause_set("cocostuff171", str(tmp_path), "val").images.endswith("Coarse.txt")
    assert open_cause_set("cocostuff27", str(tmp_path), "train").images.endswith("Coarse.txt")
    (tmp_path / "cocostuff/images/val2017/000000000001.png").unlink()
    with pytest.raises(UserError, match=r"Coarse_7\.txt: names 1 images of 2 that are not in .*first: 000000000001"):
        open_cause_set("cocostuff27", str(tmp_path), "val")


def test_without_a_list_all_images_are_taken_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco_tree(tmp_path, listed=False)
    with caplog.at_level(logging.WARNING, logger="rsc_seg"):
        opened = open_cause_set("cocostuff27", str(tmp_path), "val", limit=2)
    assert len(opened.data) == 2 and opened.images == "all images of the split, every 1, limit 2"
    assert "Coarse_7.txt: no such list of images" in caplog.text


def test_pascal_voc_by_its_lists(tmp_path: Path) -> None:
    voc_tree(tmp_path / "pascalvoc")
    train = open_cause_set("pascalvoc", str(tmp_path), "train")
    assert [train.data.name(i).rpartition("/")[2] for i in range(2)] == ["2007_000002.jpg", "2007_000000.jpg"]
    assert train.images == "ImageSets/Segmentation/train.txt" and train.rule.squash
    same = open_labelled("auto", str(tmp_path / "pascalvoc"), "val")
    assert len(same) == 1 and same.classes[:2] == ["background", "aeroplane"] and same.palette[1] == (128, 0, 0)
    expected = blocks(1, 20, 30, 21)
    expected[0] = 255
    assert np.array_equal(same.labels(0), expected)
    with pytest.raises(UserError, match=r"no split 'test' .*there are: train, val"):
        open_cause_set("pascalvoc", str(tmp_path), "test")


def test_embedded_scenes_in_each_layout(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "s", SceneSet(0, 1, 1, (96, 72), ("plain", "cocostuff", "cityscapes")))
    plain = open_cause_set("scenes", str(root), "val").data
    coarse = open_cause_set("cocostuff27", str(layout_root(root, "cocostuff")), "val").data
    streets = open_cause_set("cityscapes", str(layout_root(root, "cityscapes")), "val").data
    assert (len(plain.classes), len(coarse.classes), len(streets.classes)) == (14, 27, 27)
    sky = plain.labels(0) == plain.classes.index("sky")
    assert sky.any()
    assert np.array_equal(coarse.labels(0) == coarse.classes.index("sky"), sky)
    assert np.array_equal(streets.labels(0) == streets.classes.index("sky"), sky)


def test_stored_crops_in_their_order(tmp_path: Path) -> None:
    base = tmp_path / "cocostuff/cropped/cocostuff_five_crop_0.5"
    for i in range(11):
        put(base / f"img/train/{i}.jpg", np.zeros((4, 6, 3), np.uint8))
        put(base / f"label/train/{i}.png", np.array([[0, 1, i + 1, 27, 255, 3]] * 4, np.uint8))
    opened = open_stored_crops("cocostuff27", str(tmp_path))
    assert opened.stored_crops and opened.images.endswith("(JPEG, quality 75)") and len(opened.data) == 11
    assert [int(opened.data.labels(i)[0, 2]) for i in range(11)] == list(range(11))
    assert opened.data.labels(0)[0].tolist() == [255, 0, 0, 26, 255, 2]
    assert len(open_stored_crops("cocostuff27", str(tmp_path / "cocostuff"), limit=3).data) == 3
    with pytest.raises(UserError, match=r"no stored crops of cityscapes: expected cityscapes/cropped/"):
        open_stored_crops("cityscapes", str(tmp_path))
    with pytest.raises(UserError, match="stored crops are known for cityscapes, cocostuff27"):
        open_stored_crops("scenes", str(tmp_path))
    put(base / "img/train/x.jpg", np.zeros((4, 6, 3), np.uint8))
    put(base / "label/train/x.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match=r"x\.jpg: stored crops are numbered"):
        open_stored_crops("cocostuff27", str(tmp_path))


def test_wrong_layouts_and_labels_of_another_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.*one of .*cityscapes"):
        open_cause_set("cityscape", str(tmp_path), "val")
    for name, expected in (
        ("cityscapes", "leftImg8bit/val/ and gtFine/val/"),
        ("cocostuff27", "images/val2017/ and annotations/val2017/"),
        ("pascalvoc", "VOCdevkit/VOC2012/JPEGImages/ and VOCdevkit/VOC2012/SegmentationClass/"),
    ):
        with pytest.raises(UserError, match=f"not the layout of .*expected {expected}"):
            open_cause_set(name, str(tmp_path), "val")
    cityscapes_tree(tmp_path, 1)
    name = "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
    put(tmp_path / name, np.full((32, 64), 90, np.uint8))
    with pytest.raises(UserError, match=r"labelIds\.png: label id 90 is outside the class list of Cityscapes"):
        open_cause_set("cityscapes", str(tmp_path), "val").data.labels(0)
    with pytest.raises(UserError, match=r"data\.limit=0"):
        open_cause_set("cityscapes", str(tmp_path), "val", limit=0)


def test_digests_tell_images_labels_and_class_lists_apart(tmp_path: Path) -> None:
    plain_tree(tmp_path, 1)
    first = open_cause_set("plain", str(tmp_path), "val")
    put(tmp_path / "val/labels/0.png", np.zeros((30, 45), np.uint8))
    second = open_cause_set("plain", str(tmp_path), "val")
    # the digest of `first` is taken now too, of the same files: a digest is read when it is first asked for
    assert first.image_digest == second.image_digest and first.label_digest == second.label_digest
    put(tmp_path / "val/labels/0.png", np.ones((30, 45), np.uint8))
    third = open_cause_set("plain", str(tmp_path), "val")
    assert third.image_digest == second.image_digest and third.label_digest != second.label_digest
    assert all(rule.crops for rule in CAUSE_SETS.values())


def test_another_layout_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    with caplog.at_level("WARNING", "rsc_seg"), pytest.raises(UserError, match=r"not the layout of COCO-Stuff"):
        open_cause_set("cocostuff27", str(tmp_path), "val")
    assert caplog.records == []  # no line about the list of images of a set that is not there
