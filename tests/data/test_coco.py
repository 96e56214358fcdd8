"""COCO's layout: images as folders or zip files, panoptic labels."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.images import open_images
from rsc_seg.data.segmentation import open_labelled
from rsc_seg.errors import UserError


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def grey(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


@pytest.mark.parametrize("base", ["", "images/"])
@pytest.mark.parametrize("kind", ["auto", "coco"])
def test_folders(tmp_path, base, kind):
    for i in (7, 3):
        put(tmp_path / f"{base}train2017/{i:012d}.png", png(grey(i)))
    source = open_images(kind, str(tmp_path), "train")
    assert [source.name(i) for i in range(2)] == [f"{base}train2017/{i:012d}.png" for i in (3, 7)]
    assert np.asarray(source.load(1))[0, 0, 0] == 7
    assert len(open_images(kind, str(tmp_path), "train2017")) == 2
    with pytest.raises(UserError, match=r"no split 'val' \(data\.split\); there are: train\."):
        open_images(kind, str(tmp_path), "val")


def test_zip_beside_and_zip_of_all(tmp_path):
    (tmp_path / "images").mkdir()
    with zipfile.ZipFile(tmp_path / "images/val2017.zip", "w") as archive:
        archive.writestr("val2017/000000000001.png", png(grey(1)))
    source = open_images("auto", str(tmp_path), "val")
    assert source.name(0) == "val2017/000000000001.png" and np.asarray(source.load(0))[0, 0, 0] == 1
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("coco/readme", b"")
        archive.writestr("images/train2017/2.png", png(grey(2)))
        archive.writestr("images/val2017/3.png", png(grey(3)))
    whole = open_images("auto", str(tmp_path / "all.zip"), "val")
    assert [whole.name(i) for i in range(len(whole))] == ["images/val2017/3.png"]


def test_no_coco(tmp_path):
    put(tmp_path / "1.png", png(grey(1)))
    with pytest.raises(UserError, match="not COCO's layout .* expected train2017/, images/train2017/ or train2017.zip"):
        open_images("coco", str(tmp_path), "train")


def panoptic(root: Path, category: int = 200) -> np.ndarray:
    """One image with the segments 5 (person) and 70000 (`category`, 200 is the last stuff class), and void."""
    ids = np.zeros((4, 6), np.int64)
    ids[1:3], ids[3] = 5, 70000
    put(root / "val2017/000000000009.png", png(grey(9)))
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    put(root / "annotations/panoptic_val2017/000000000009.png", png(rgb))
    segments = [{"id": 5, "category_id": 1}, {"id": 70000, "category_id": category}]
    annotation = {"image_id": 9, "file_name": "000000000009.png", "segments_info": segments}
    document = {"images": [{"id": 9, "file_name": "000000000009.png"}], "annotations": [annotation]}
    put(root / "annotations/panoptic_val2017.json", json.dumps(document).encode())
    return ids


@pytest.mark.parametrize("kind", ["auto", "coco"])
def test_panoptic_classes_are_contiguous(tmp_path, kind):
    ids = panoptic(tmp_path)
    labelled = open_labelled(kind, str(tmp_path), "val")
    assert len(labelled.classes) == len(labelled.palette) == 133
    assert labelled.classes[0] == "person" and labelled.classes[132] == "rug-merged"
    expected = np.select([ids == 5, ids == 70000], [0, 132], 255)
    assert labelled.labels(0).dtype == np.uint8 and np.array_equal(labelled.labels(0), expected)
    assert np.asarray(labelled.load(0))[0, 0, 0] == 9


def test_panoptic_pngs_in_a_zip(tmp_path):
    ids = panoptic(tmp_path)
    inner = tmp_path / "annotations/panoptic_val2017/000000000009.png"
    with zipfile.ZipFile(tmp_path / "annotations/panoptic_val2017.zip", "w") as archive:
        archive.write(inner, "panoptic_val2017/000000000009.png")
    inner.unlink()
    inner.parent.rmdir()
    assert ((open_labelled("coco", str(tmp_path), "val").labels(0) == 0) == (ids == 5)).all()


def test_panoptic_errors(tmp_path):
    panoptic(tmp_path, category=12)
    with pytest.raises(UserError, match=r"000000000009\.png: segment 70000 has no category of COCO panoptic"):
        open_labelled("coco", str(tmp_path), "val").labels(0)
    (tmp_path / "annotations/panoptic_val2017.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"panoptic_val2017\.json: not COCO panoptic annotations"):
        open_labelled("coco", str(tmp_path), "val")
    (tmp_path / "annotations/panoptic_val2017.json").write_text("{")
    with pytest.raises(UserError, match=r"panoptic_val2017\.json: not valid JSON"):
        open_labelled("coco", str(tmp_path), "val")
    (tmp_path / "annotations/panoptic_val2017.json").unlink()
    with pytest.raises(UserError, match=r"no annotations/panoptic_val2017\.json"):
        open_labelled("coco", str(tmp_path), "val")
