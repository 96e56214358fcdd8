"""Our sets in detectron2's catalogues."""

import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg

from rsc_seg.d2.catalog import register, register_all
from rsc_seg.data.segsets import SEGSETS, segset
from rsc_seg.errors import UserError
from tests.d2.sets import NAMES, open_both, options, write_set

# catalogue name -> images, labels, ignored value, classes, kind of evaluator, as the official code registers them
OFFICIAL = {
    "coco_2017_train_stuff_all_sem_seg": ("coco-stuff", "images/train2017", "train2017", 255, 171, "sem_seg"),
    "coco_2017_test_stuff_all_sem_seg": ("coco-stuff", "images/val2017", "val2017", 255, 171, "sem_seg"),
    "ade20k_150_test_sem_seg": ("ADEChallengeData2016", "images/validation", "validation", 255, 150, "sem_seg"),
    "ade20k_full_sem_seg_freq_val_all": (
        "ADE20K_2021_17_01",
        "images_detectron2/validation",
        "validation",
        65535,
        847,
        "sem_seg",
    ),
    "context_59_test_sem_seg": ("VOCdevkit/VOC2010", "JPEGImages", "pc59_val", 255, 59, "sem_seg"),
    "context_459_test_sem_seg": ("VOCdevkit/VOC2010", "JPEGImages", "pc459_val", 459, 459, "sem_seg"),
    "voc_2012_test_sem_seg": ("VOCdevkit/VOC2012", "JPEGImages", "val", 255, 20, "sem_seg"),
}


@pytest.fixture(scope="module")
def registered() -> list[str]:
    return register_all(Path("/sets"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_set_is_registered_as_officially(name: str, registered: list[str]) -> None:
    base, images, labels, ignore, classes, evaluator = OFFICIAL[name]
    facts = MetadataCatalog.get(name)
    assert facts.image_root == f"/sets/{base}/{images}"
    assert facts.sem_seg_root == f"/sets/{base}/annotations_detectron2/{labels}"
    assert (facts.ignore_label, len(facts.stuff_classes), facts.evaluator_type) == (ignore, classes, evaluator)
    assert len(facts.stuff_colors) == classes


def test_all_sets_are_there_once_and_again_at_another_root(registered: list[str]) -> None:
    assert registered == [s.catalog for s in SEGSETS] and set(registered) <= set(DatasetCatalog.list())
    assert register_all(Path("/elsewhere")) == registered
    assert MetadataCatalog.get("voc_2012_test_sem_seg").image_root == "/elsewhere/VOCdevkit/VOC2012/JPEGImages"
    register_all(Path("/sets"))


def test_the_set_with_background_and_the_ids_of_coco(registered: list[str]) -> None:
    facts = MetadataCatalog.get("voc_2012_test_background_sem_seg")
    assert facts.evaluator_type == "sem_seg_background" and facts.sem_seg_root.endswith("annotations_detectron2_bg/val")
    assert facts.stuff_classes[0] == "aeroplane" and facts.stuff_classes[19:] == ["tvmonitor", "background"]
    ids = MetadataCatalog.get("coco_2017_train_stuff_all_sem_seg").stuff_dataset_id_to_contiguous_id
    assert (len(ids), ids[1], ids[13], ids[182]) == (171, 0, 11, 170)  # 12 is no class


def test_what_detectron2_knows_of_its_own_sets_stays(registered: list[str]) -> None:
    facts = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert facts.evaluator_type == "cityscapes_sem_seg" and len(facts.thing_classes) == 8
    assert (facts.image_dir, facts.gt_dir) == ("/sets/cityscapes/leftImg8bit/val", "/sets/cityscapes/gtFine/val")
    panoptic = MetadataCatalog.get("coco_2017_val_panoptic_stuffonly")
    assert (len(panoptic.stuff_classes), len(panoptic.thing_classes)) == (54, 80)


def test_records_are_those_of_load_sem_seg(tmp_path: Path) -> None:
    write_set(tmp_path)
    register_all(tmp_path)
    found = segset("ade20k_150_val")
    images, labels = found.image_folder(tmp_path), found.label_folder(tmp_path)
    assert DatasetCatalog.get(found.catalog) == load_sem_seg(str(labels), str(images))
    assert len(DatasetCatalog.get("ade20k_150_train_sem_seg")) == 7
    with pytest.raises(UserError, match="no prepared labels of COCO-Stuff 171"):
        DatasetCatalog.get("coco_2017_train_stuff_all_sem_seg")


def test_a_set_of_a_run_has_the_official_name_only_with_the_official_classes(tmp_path: Path) -> None:
    write_set(tmp_path)
    whole = register(open_both(options(tmp_path, classes=[]))[1])
    assert whole == "scenes_val_sem_seg" and len(MetadataCatalog.get(whole).stuff_classes) == 150
    few = register(open_both(options(tmp_path))[1])
    assert few.startswith("scenes_val_sem_seg_") and few == register(open_both(options(tmp_path))[1])
    facts = MetadataCatalog.get(few)
    assert facts.stuff_classes == NAMES and facts.ignore_label == 255
    assert few != register(open_both(options(tmp_path, classes=NAMES[1:]))[1])
    record = DatasetCatalog.get(few)[0]
    assert set(record) == {"file_name", "sem_seg_file_name"} and all(os.path.isfile(v) for v in record.values())
