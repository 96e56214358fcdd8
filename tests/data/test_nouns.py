"""Nouns and boxes labelled with them."""

import json
from pathlib import Path

import pytest

from rsc_seg.config import RlaConfig
from rsc_seg.data.nouns import Nouns, PseudoLabels, coco_things, open_nouns, read_nouns
from rsc_seg.errors import UserError

THREE = Nouns(("cat", "dog", "traffic light"), "three.txt")
BOX = [1, 2, 30, 40]


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def labels(tmp_path: Path, categories: list[int], rows: list[dict] | None = None, nouns: Nouns = THREE) -> PseudoLabels:
    annotations = [{"image_id": 7, "bbox": BOX, "category_id": c} for c in categories]
    document = {"annotations": annotations, "images": [{"id": 7, "file_name": "x.jpg"}]}
    return PseudoLabels(write(tmp_path / "l.json", document | ({"categories": rows} if rows else {})), nouns)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("n.json", ["cat", "dog", "traffic  light"]),
        ("n.json", {"classes": [{"name": "cat"}, {"name": "dog"}, {"name": "traffic light"}]}),
        ("n.json", {"names": ["cat", "dog", "traffic light"]}),
        ("n.txt", "cat\ndog\ntraffic light\n"),
    ],
)
def test_the_forms_of_a_noun_file(tmp_path, name, document):
    nouns = read_nouns(write(tmp_path / name, document))
    assert nouns.names == THREE.names and len(nouns) == 3
    assert nouns.number("Traffic  Light") == 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (["cat", "Cat"], r"classes 1 and 2 are both 'Cat'"),
        (["cat", " "], "class 2 has an empty name"),
        ([], "no class name there"),
        (["cat", 3], "class 2 is 3, which is no text"),
        ({"nouns": ["cat"]}, "not a list of class names"),
        ("[", "not valid JSON"),
    ],
)
def test_bad_noun_files(tmp_path, document, message):
    with pytest.raises(UserError, match=rf"n\.json: .*{message}"):
        read_nouns(write(tmp_path / "n.json", document))


def test_a_missing_noun_file(tmp_path):
    with pytest.raises(UserError, match=r"n\.json: no such file \(rla\.nouns\)"):
        read_nouns(tmp_path / "n.json")
    with pytest.raises(UserError, match=r"l\.json: no such file \(rla\.pseudo_labels\)"):
        open_nouns(RlaConfig(pseudo_labels=str(tmp_path / "l.json")))


def test_nouns_are_those_of_the_file_then_of_the_labels_then_coco(tmp_path):
    assert len(coco_things()) == 80 and coco_things().names[:2] == ("person", "bicycle")
    assert open_nouns(RlaConfig()).names == coco_things().names
    rows = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]
    file = write(
        tmp_path / "l.json", {"annotations": [{"image_id": 7, "bbox": BOX, "category_id": 4}], "categories": rows}
    )
    assert open_nouns(RlaConfig(pseudo_labels=str(file))).names == ("cat", "dog")
    own = write(tmp_path / "n.txt", "tree")
    assert open_nouns(RlaConfig(pseudo_labels=str(file), nouns=str(own))).names == ("tree",)
    bare = write(tmp_path / "b.json", [{"image_id": 7, "bbox": BOX, "category_id": 4}])
    assert len(open_nouns(RlaConfig(pseudo_labels=str(bare)))) == 80
    unnamed = write(tmp_path / "u.json", {"annotations": [], "categories": [{"id": 1}]})
    assert len(open_nouns(RlaConfig(pseudo_labels=str(unnamed)))) == 80
    twice = write(
        tmp_path / "t.json", {"annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "A"}]}
    )
    with pytest.raises(UserError, match=r"t\.json \(rla\.pseudo_labels\): classes 1 and 2 are both"):
        open_nouns(RlaConfig(pseudo_labels=str(twice)))


def test_category_ids_are_the_numbers_of_nouns(tmp_path):
    found = labels(tmp_path, [2, 0, 2]).labelled("x.jpg")
    assert found.categories.tolist() == [2, 0, 2] and found.boxes.tolist() == [BOX] * 3
    assert labels(tmp_path, [2]).labelled("y.jpg").boxes.shape == (0, 4)


def test_categories_are_found_by_name(tmp_path):
    rows = [{"id": 90, "name": "Cat"}, {"id": 5, "name": "traffic light"}]
    assert labels(tmp_path, [90, 5], rows).labelled("x.jpg").categories.tolist() == [0, 2]


def test_categories_without_names_go_by_their_sorted_ids(tmp_path):
    rows = [{"id": 90}, {"id": 5}, {"id": 7}]
    assert labels(tmp_path, [90, 5, 7], rows).labelled("x.jpg").categories.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("categories", "rows", "message"),
    [
        ([0, 3], None, r"category id 3 is beyond the 3 nouns of three\.txt \(1 unknown ids; known are 0 to 2\)"),
        ([5, 9], [{"id": 5}, {"id": 6}, {"id": 7}], r"category id 9 is beyond the 3 nouns"),
        ([5], [{"id": 5}], r"1 categories without names for the 3 nouns of three\.txt"),
        ([5], [{"id": 5, "name": "cot"}], r"category 'cot' .*is no noun: three\.txt.*Did you mean 'cat'"),
        ([5], [{"id": 5, "name": "cat"}, {"id": 5, "name": "dog"}], r"a category id comes twice"),
        ([5], [{"name": "cat"}], r"its categories are not COCO's"),
    ],
)
def test_labels_that_do_not_fit_the_nouns(tmp_path, categories, rows, message):
    with pytest.raises(UserError, match=rf"l\.json: {message}"):
        labels(tmp_path, categories, rows)


def test_boxes_without_a_category_are_no_labels(tmp_path):
    with pytest.raises(UserError, match=r"holds boxes without a category_id \(rla\.pseudo_labels\)"):
        PseudoLabels(write(tmp_path / "l.json", [{"image_id": 7, "bbox": BOX}]), THREE)
