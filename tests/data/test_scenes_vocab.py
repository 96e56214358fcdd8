import pytest

from rsc_seg.data import vocab
from rsc_seg.data.scenes import CLASS_TABLE, SCENE_CLASSES, SCENE_PALETTE
from rsc_seg.errors import UserError

COUNTS = {
    "coco_panoptic_133": 133,
    "coco_stuff_171": 171,
    "ade20k_150": 150,
    "cityscapes": 35,
    "cityscapes_19": 19,
    "cityscapes_27": 27,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_counts_and_unique_ids(name: str, count: int) -> None:
    found = vocab.load(name)
    assert (
        len(found) == count and len(set(found.ids)) == count and found.ids == sorted(found.ids, key=lambda i: i % 256)
    )
    assert all(n and n == n.strip() for n in found.names)


@pytest.mark.parametrize(
    ("name", "class_id", "class_name"),
    [
        ("coco_panoptic_133", 1, "person"),
        ("coco_panoptic_133", 90, "toothbrush"),
        ("coco_panoptic_133", 92, "banner"),
        ("coco_panoptic_133", 200, "rug-merged"),
        ("coco_stuff_171", 0, "person"),
        ("coco_stuff_171", 89, "toothbrush"),
        ("coco_stuff_171", 91, "banner"),
        ("coco_stuff_171", 181, "wood"),
        ("ade20k_150", 1, "wall"),
        ("ade20k_150", 13, "person"),
        ("ade20k_150", 150, "flag"),
        ("cityscapes", 7, "road"),
        ("cityscapes", -1, "license plate"),
        ("cityscapes_19", 0, "road"),
        ("cityscapes_19", 18, "bicycle"),
        ("cityscapes_27", 0, "road"),
        ("cityscapes_27", 2, "parking"),
        ("cityscapes_27", 26, "bicycle"),
    ],
)
def test_known_pairs(name: str, class_id: int, class_name: str) -> None:
    assert vocab.load(name).by_id(class_id).name == class_name
    assert vocab.load(name).by_name(class_name).id == class_id


def test_things_and_gaps() -> None:
    panoptic = vocab.load("coco_panoptic_133").classes
    assert sum(c.extra["isthing"] for c in panoptic) == 80
    stuff = vocab.load("coco_stuff_171")
    assert sum(c.extra["isthing"] for c in stuff.classes) == 80
    assert set(range(182)) - set(stuff.ids) == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    things = {c.id: c.name for c in panoptic if c.extra["isthing"]}
    assert things == {c.id + 1: c.name for c in stuff.classes if c.extra["isthing"]}


def test_cityscapes_train_ids() -> None:
    full = vocab.load("cityscapes")
    assert full.by_name("road").extra["train_id"] == 0 and full.by_name("bicycle").extra["train_id"] == 18
    assert full.by_name("parking").extra["train_id"] == 255
    assert [c.name for c in full.classes if c.extra["has_instances"]] == [
        "person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
    ]  # fmt: skip
    for c in vocab.load("cityscapes_19").classes:
        assert full.by_id(c.extra["label_id"]).extra["train_id"] == c.id
    for c in vocab.load("cityscapes_27").classes:
        assert c.extra["label_id"] == c.id + 7 and full.by_id(c.id + 7).name == c.name


def test_scene_classes_stand_under_like_names_in_every_set() -> None:
    expected = {
        "sky": ("sky-other-merged", "sky-other", "sky", "sky"),
        "building": ("building-other-merged", "building-other", "building", "building"),
        "wall": ("wall-other-merged", "wall-other", "wall", "wall"),
        "tree": ("tree-merged", "tree", "tree", "vegetation"),
        "grass": ("grass-merged", "grass", "grass", "terrain"),
        "road": ("road", "road", "road", "road"),
        "water": ("water-other", "water-other", "water", "unlabeled"),
        "flower": ("flower", "flower", "flower", "unlabeled"),
        "person": ("person", "person", "person", "person"),
        "car": ("car", "car", "car", "car"),
        "motorcycle": ("motorcycle", "motorcycle", "minibike", "motorcycle"),
        "boat": ("boat", "boat", "boat", "unlabeled"),
        "cat": ("cat", "cat", "animal", "unlabeled"),
        "ball": ("sports ball", "sports ball", "ball", "unlabeled"),
    }
    sets = [vocab.load(n) for n in ("coco_panoptic_133", "coco_stuff_171", "ade20k_150", "cityscapes")]
    for c in CLASS_TABLE:
        ids = (c.coco_panoptic, c.coco_stuff, c.ade20k, c.cityscapes)
        assert tuple(s.by_id(i).name for s, i in zip(sets, ids, strict=True)) == expected[c.name]
        assert sets[0].by_id(c.coco_panoptic).extra["isthing"] == c.thing
    assert len(SCENE_CLASSES) == len(set(SCENE_CLASSES)) == len(set(SCENE_PALETTE)) == 14


def test_errors_name_the_list_and_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'ade20k_150'"):
        vocab.load("ade20k150")
    with pytest.raises(UserError, match="ade20k_150: no class is called 'flagg'. Did you mean 'flag'"):
        vocab.load("ade20k_150").by_name("flagg")
    with pytest.raises(UserError, match="no class has the id 0"):
        vocab.load("ade20k_150").by_id(0)
