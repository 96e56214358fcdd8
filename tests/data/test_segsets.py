"""Descriptors of Cat-Seg's sets, their class names, and class names of one's own."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rsc_seg.data import vocab
from rsc_seg.data.segset_names import check_names, read_class_names
from rsc_seg.data.segsets import PREPARED_SETS, SEGSETS, segset, splits_of
from rsc_seg.errors import UserError


def test_names_and_catalogues_are_unique_and_found() -> None:
    assert len({s.name for s in SEGSETS}) == len({s.catalog for s in SEGSETS}) == len(SEGSETS) == 13
    assert all(segset(s.name) is s and segset(s.catalog) is s for s in SEGSETS)
    assert [s.split for s in splits_of("COCO-Stuff_171")] == ["train", "val"]
    assert len(PREPARED_SETS) == 9
    with pytest.raises(UserError, match=r"must be one of .* Did you mean 'voc_20_val'"):
        segset("voc_20_vall")
    with pytest.raises(UserError, match=r"set 'ade': must be one of ade20k_150, ade20k_847"):
        splits_of("ade")


def test_the_six_columns_of_cat_segs_table() -> None:
    columns = {s.evaluation: (s.catalog, s.label_count, s.ignore_label) for s in SEGSETS if s.evaluation}
    assert columns == {
        "A-150": ("ade20k_150_test_sem_seg", 150, 255),
        "A-847": ("ade20k_full_sem_seg_freq_val_all", 847, 65535),
        "PC-59": ("context_59_test_sem_seg", 59, 255),
        "PC-459": ("context_459_test_sem_seg", 459, 459),
        "PAS-20": ("voc_2012_test_sem_seg", 20, 255),
        "PAS-20b": ("voc_2012_test_background_sem_seg", 21, 255),
    }


@pytest.mark.parametrize("name", [s.name for s in SEGSETS])
def test_class_names_are_as_many_as_labels_and_serve(name: str) -> None:
    found = segset(name)
    names = found.class_names()
    assert len(names) == (59 if found.prepared_by == "voc_20b" else found.label_count)
    assert check_names(names, name) == names


def test_known_class_names() -> None:
    assert segset("ade20k_150_val").class_names()[89] == "television receiver"
    full = segset("ade20k_847_val").class_names()
    assert full[:3] == ["wall", "building, edifice", "sky"] and full[846] == "adding machine, totalizer, totaliser"
    assert segset("voc_20_val").class_names()[10] == "diningtable"
    assert segset("pascal_context_59_val").class_names()[49] == "diningtable"
    assert segset("coco_stuff_171_val").class_names()[170] == "wood"
    assert segset("coco_panoptic_val").class_names()[:2] == ["things", "banner"]


def test_ids_of_the_new_vocabularies() -> None:
    full = vocab.load("ade20k_847")
    assert (len(full), full.ids[0], full.by_id(401).name) == (847, 2978, "car")
    shared = {name: n for name, n in Counter(full.names).items() if n > 1}
    assert set(shared) == {"bag", "pot", "basket", "screen", "pier", "control panel", "pipe", "grill", "patio"}
    assert shared["bag"] == 3 and sum(n - 1 for n in shared.values()) == 10
    large, small = vocab.load("pascal_context_459"), vocab.load("pascal_context_59")
    assert large.ids == list(range(1, 460)) and small.ids == sorted(small.ids) and len(small) == 59
    other = {large.by_id(c.id).name for c in small.classes if large.by_id(c.id).name != c.name}
    assert other == {"table"}  # which the 59 call diningtable
    with_background = vocab.load("voc_20b")
    assert with_background.names[:20] == vocab.load("voc_20").names
    assert set(with_background.names) == set(small.names)
    assert [c.extra["background"] for c in with_background.classes] == [False] * 20 + [True] * 39


def test_the_validation_images_of_pascal_context() -> None:
    names = vocab.pascal_context_val()
    assert len(names) == len(set(names)) == 5104 and list(names) == sorted(names)
    assert names[0] == "2008_000002" and {name[:5] for name in names} == {"2008_", "2009_", "2010_"}


def test_pairs_need_the_preparation_and_every_image(tmp_path: Path) -> None:
    found = segset("ade20k_150_val")
    with pytest.raises(UserError, match=r"no prepared labels .* run tools/prepare_data.py ade20k_150 --root"):
        found.pairs(tmp_path)
    labels = found.label_folder(tmp_path)
    labels.mkdir(parents=True)
    (labels / "a.png").touch()
    with pytest.raises(UserError, match=r"images/validation: no images of ADE20K-150 \(val\)"):
        found.pairs(tmp_path)
    images = tmp_path / "ADEChallengeData2016" / "images" / "validation"
    images.mkdir(parents=True)
    (images / "b.jpg").touch()
    with pytest.raises(UserError, match=r"a.jpg: no such image; 1 of 1 labels"):
        found.pairs(tmp_path)
    (images / "a.jpg").touch()
    (labels / ".b.png").touch()
    with pytest.raises(
        UserError, match=r"validation/b.png: no such labels; 1 of 2 images in .* run tools/prepare_data"
    ):
        found.pairs(tmp_path)
    (images / "b.jpg").unlink()
    assert found.pairs(tmp_path) == [(images / "a.jpg", labels / "a.png")]


def test_of_a_listed_split_labels_decide_and_its_size_is_told(tmp_path: Path) -> None:
    assert {s.prepared_by for s in SEGSETS if s.listed} == {
        "voc_20",
        "voc_20b",
        "pascal_context_59",
        "pascal_context_459",
    }
    found = segset("voc_20_val")
    images, labels = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages", found.label_folder(tmp_path)
    for path in (images / "a.jpg", images / "b.jpg", labels / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert found.pairs(tmp_path) == [(images / "a.jpg", labels / "a.png")]
    assert found.part(1) == "1 of 1449 images: a part of the set; scores compare with no published ones"
    assert found.part(1449) == "" == segset("scenes_val").part(1)
    context = segset("pascal_context_59_val")
    assert context.part(5103).startswith("5103 of 5104 images") and context.part(5104) == context.part(5105) == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(["cat", " tall  grass"])),
        ("b.json", json.dumps({"classes": [{"name": "cat", "id": 3}, {"name": "tall grass"}]})),
        ("c.json", json.dumps({"names": ["cat", "tall grass"]})),
        ("d.txt", "cat\ntall grass\n\n"),
    ],
)
def test_class_names_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name) == ["cat", "tall grass"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '["cat", "dog", "Cat "]', "classes 1 and 3 are both 'Cat'"),
        ("a.txt", "cat\n\ndog", "class 2 has an empty name"),
        ("a.json", '["cat", ""]', "class 2 has an empty name"),
        ("a.json", '["cat", 3]', "class 2 is 3, which is no text"),
        ("a.json", '{"classes": [{"id": 1}]}', "class 1 is None"),
        ("a.json", "[]", "no class name there"),
        ("a.txt", "\n", "no class name there"),
        ("a.json", '"cat"', "not a list of class names"),
        ("a.json", "{", "not valid JSON"),
    ],
)
def test_class_names_that_cannot_serve(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_class_names(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and message in str(caught.value)


def test_a_file_of_class_names_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.txt: class names cannot be read \(No such file"):
        read_class_names(tmp_path / "x.txt")
    (tmp_path / "y.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"y.txt: class names cannot be read \(not UTF-8 text"):
        read_class_names(tmp_path / "y.txt")
