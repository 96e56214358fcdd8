"""Boxes from COCO-format files."""

import json
from pathlib import Path

import numpy as np
import pytest

from rsc_seg.data.proposals import Proposals
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
