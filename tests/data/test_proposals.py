"""Boxes from COCO-format files."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rsc_seg.data.proposals import BoxFile, Proposals, open_proposals
from rsc_seg.errors import UserError


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_found_by_file_name_or_base_name(tmp_path):
    annotations = [
        {"image_id": 4, "bbox": [1, 2, 30, 40], "category_id": 1, "score": 0.5},
        {"image_id": 9, "bbox": [5, 5, 10.5, 20]},
        {"image_id": 4, "bbox": [0, 0, 8, 8]},
    ]
    images = [{"id": 4, "file_name": "a/x.jpg"}, {"id": 9, "file_name": "b/y.jpg"}, {"id": 5, "file_name": "b/x.jpg"}]
    proposals = Proposals(write(tmp_path / "p.json", {"images": images, "annotations": annotations}))
    assert proposals.boxes("a/x.jpg").tolist() == [[1, 2, 31, 42], [0, 0, 8, 8]]
    assert proposals.boxes("train2017/y.jpg").tolist() == [[5, 5, 15.5, 25]]
    assert proposals.boxes("c/x.jpg").shape == (0, 4)  # two images are called so
    assert proposals.boxes("b/x.jpg").shape == (0, 4)  # known, without a box


def test_found_by_the_id_in_the_name(tmp_path):
    proposals = Proposals(write(tmp_path / "p.json", [{"image_id": 139, "bbox": [1, 1, 20, 20]}]))
    for name in ("train2017/000000000139.jpg", "COCO_val2014_000000000139.jpg"):
        assert proposals.boxes(name).tolist() == [[1, 1, 21, 21]]
    assert proposals.boxes("street.jpg").shape == (0, 4)


def test_area_filter(tmp_path):
    sides = [(7.9, 8), (8, 8), (1024, 1024), (1025, 1024), (0, 500), (-9, -9)]
    rows = [{"image_id": 1, "bbox": [0, 0, w, h]} for w, h in sides]
    boxes = Proposals(write(tmp_path / "p.json", rows)).boxes("1.jpg")
    assert np.array_equal(boxes[:, 2:], [[8, 8], [1024, 1024]])


@pytest.mark.parametrize(
    "document",
    [{"boxes": []}, [{"image_id": 1}], [{"image_id": 1, "bbox": [1, 2, 3]}], [{"image_id": 1, "bbox": "abcd"}], 3],
)
def test_other_files_are_refused(tmp_path, document):
    with pytest.raises(UserError, match=r"p\.json: not boxes in COCO's format \(data\.proposals\)"):
        Proposals(write(tmp_path / "p.json", document))


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(UserError, match=r"p\.json: no such file \(data\.proposals\)"):
        Proposals(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[{")
    with pytest.raises(UserError, match=r"p\.json: not valid JSON \(data\.proposals"):
        Proposals(tmp_path / "p.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_boxes_that_are_not_finite_are_named(tmp_path, value):
    path = tmp_path / "p.json"
    path.write_text(f'[{{"image_id": 1, "bbox": [1, 1, 9, 9]}}, {{"image_id": 7, "bbox": [1, {value}, 9, 9]}}]')
    with pytest.raises(UserError, match=r"p\.json: annotation 1 \(image_id 7\) has the box .* not finite"):
        Proposals(path)


@pytest.mark.parametrize("document", [[], {"annotations": [], "images": []}, [{"image_id": 1, "bbox": [1, 1, 0, 5]}]])
def test_a_file_without_boxes_is_refused(tmp_path, document):
    with pytest.raises(UserError, match=r"p\.json: holds no box \(data\.proposals; [01] annotations\)"):
        Proposals(write(tmp_path / "p.json", document))


def test_a_box_outside_the_size_that_the_file_states(tmp_path):
    images = [{"id": 4, "file_name": "x.jpg", "width": 100, "height": 50}]
    inside = {"annotations": [{"image_id": 4, "bbox": [0, 0, 102, 52]}], "images": images}
    assert len(Proposals(write(tmp_path / "p.json", inside)).boxes("x.jpg")) == 1
    outside = {"annotations": [{"image_id": 4, "bbox": [90, 0, 30, 20]}], "images": images}
    with pytest.raises(UserError, match=r"p\.json, image_id 4 \(data\.proposals\): box \[90.0, .* outside .*100 x 50"):
        Proposals(write(tmp_path / "p.json", outside))


def test_coverage_counts_both_ways(tmp_path):
    rows = [{"image_id": i, "bbox": [1, 1, 20, 20]} for i in (1, 2, 3)]
    file = Proposals(write(tmp_path / "p.json", rows))
    assert file.coverage(["1.jpg", "2.jpg", "8.jpg"]) == (1, 1, 3)
    with pytest.raises(UserError, match=r"no box for any of the 2 images, for example '8\.jpg'.*for 3 other images"):
        file.coverage(["8.jpg", "9.jpg"])
    images = [{"id": i, "file_name": f"a{i}.jpg"} for i in (1, 2, 3)]
    named = Proposals(write(tmp_path / "q.json", {"annotations": rows, "images": images}))
    with pytest.raises(UserError, match=r"for 3 other images, for example 'a1\.jpg'"):
        named.coverage(["1.jpg"])


def test_categories_and_crowds(tmp_path):
    rows = [{"image_id": 1, "bbox": [1, 1, 20, 20], "category_id": c, "iscrowd": c == 5} for c in (3, 5, 3)]
    path = write(tmp_path / "p.json", [*rows, {"image_id": 1, "bbox": [0, 0, 5, 5]}])
    assert BoxFile(path).annotated("1.jpg").categories.tolist() == [3, 5, 3, -1]
    assert BoxFile(path, crowds=False).categories() == {3, -1}


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path = write(tmp_path / "p.json", [{"image_id": 1, "bbox": [1, 1, 20, 20]}])
    first = open_proposals(path)
    assert open_proposals(path) is first
    write(tmp_path / "p.json", [{"image_id": 1, "bbox": [1, 1, 20, 200]}])
    assert open_proposals(path).boxes("1.jpg")[0, 3] == 201
    with pytest.raises(UserError, match=r"other\.json: no such file \(data\.proposals\)"):
        open_proposals(tmp_path / "other.json")


def test_categories_may_be_anything_where_they_are_not_used(tmp_path):
    rows = [{"image_id": 1, "bbox": [1, 1, 20, 20], "category_id": c} for c in ("thing", None, "4")]
    path = write(tmp_path / "p.json", rows)
    assert BoxFile(path).annotated("1.jpg").categories.tolist() == [-1, -1, 4]
    with pytest.raises(UserError, match=r"p\.json: not boxes in COCO's format \(rla\.pseudo_labels\).*thing"):
        BoxFile(path, "rla.pseudo_labels", labelled=True)


def test_boxes_without_area_keep_their_places_and_count_for_nothing(tmp_path):
    rows = [{"image_id": 1, "bbox": [1, 2, w, h]} for w, h in ((0, 9), (9, 9), (9, -3))]
    file = Proposals(write(tmp_path / "p.json", [*rows, {"image_id": 2, "bbox": [1, 1, 0, 5]}]))
    assert file.annotated("1.jpg").boxes[:, 2:].tolist() == [[0, 9], [9, 9], [9, 0]]
    assert len(file.boxes("1.jpg")) == 1 and file.coverage(["1.jpg", "2.jpg"]) == (1, 0, 1)


def test_images_that_are_not_in_the_set_are_counted(tmp_path, caplog):
    file = Proposals(write(tmp_path / "p.json", [{"image_id": i, "bbox": [1, 1, 20, 20]} for i in (1, 2, 3)]))
    with caplog.at_level(logging.WARNING):
        file.warn_of_others(["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
        assert not caplog.text
        file.warn_of_others(["1.jpg"])
    assert "2 of its 3 images with boxes are none of the 1 images of this run (data.proposals)" in caplog.text
