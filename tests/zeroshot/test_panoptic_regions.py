"""Panoptic sets: what is read, and what is refused by which words."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsc_seg.cli.make_scenes import main as make_scenes
from rsc_seg.data import vocab
from rsc_seg.errors import UserError
from rsc_seg.zeroshot.panoptic_regions import PanopticRegions, open_panoptic_regions
from tests.zeroshot.sample import PICTURES, drawn_segments, save_ids, write_set

JSON = "annotations/panoptic_val2017.json"
PNG = "annotations/panoptic_val2017/000000000001.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures 0 and 1 of the sample, to be damaged."""
    write_set(tmp_path / "set", {number: drawn_segments(number) for number in (0, 1)})
    return tmp_path / "set"


def opened(root: Path, *rest: Any) -> PanopticRegions:
    return open_panoptic_regions("coco", str(root), "val", *rest)


def rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((root / JSON).read_text())
    change(document)
    (root / JSON).write_text(json.dumps(document))


def test_segments_classes_and_pixels(root: Path) -> None:
    source, drawn = opened(root), drawn_segments(1)
    assert len(source) == 2 and source.name(1) == "val2017/000000000002.png"
    assert [category.id for category in source.categories] == vocab.load("coco_panoptic_133").ids
    assert [segment.id for segment in source.segments[1]] == [info["id"] for info in drawn.info]  # the file's order
    for segment, info in zip(source.segments[1], drawn.info, strict=True):
        category = source.categories[segment.label]
        assert (category.id, list(segment.box)) == (info["category_id"], info["bbox"])
        assert segment.thing == category.thing == (segment.label < 80)
    image, ids = source.load(1)
    assert image.size == PICTURES[1] and np.array_equal(ids, drawn.ids)
    assert len(opened(root, 1)) == 1 and opened(root, None, 2).name(0) == source.name(0)


def test_pngs_and_pictures_in_zip_files(root: Path) -> None:
    before = opened(root).load(0)[1]
    for folder in ("annotations/panoptic_val2017", "val2017"):
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for path in sorted((root / folder).iterdir()):
                archive.write(path, f"{path.parent.name}/{path.name}")
        shutil.rmtree(root / folder)
    assert np.array_equal(opened(root).load(0)[1], before)


def test_classes_are_those_of_the_file_and_else_cocos(root: Path) -> None:
    rewrite(root, lambda d: d.update(categories=[c for c in reversed(d["categories"])]))
    assert [category.id for category in opened(root).categories] == vocab.load("coco_panoptic_133").ids
    rewrite(root, lambda d: d.pop("categories"))
    names = [category.name for category in opened(root).categories]
    assert names == vocab.load("coco_panoptic_133").names
    rewrite(root, lambda d: d.update(categories=[{"id": 3, "name": "b", "isthing": 0}, {"id": 1, "name": "a"}]))
    with pytest.raises(UserError, match=r"panoptic_val2017.json: categories need id, name and isthing \(KeyError"):
        opened(root)
    rewrite(root, lambda d: d.update(categories=[{"id": 3, "name": n, "isthing": 0} for n in "ab"]))
    with pytest.raises(UserError, match="category id 3 is listed twice"):
        opened(root)


def first(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["annotations"][0]["segments_info"][0]
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: first(d).update(category_id=12), "000000000001.png has category_id 12, which is none of the 133"),
        (lambda d: first(d).update(category_id=[1]), r"000000000001.png: its category_id \[1\] must be a whole number"),
        (lambda d: first(d).pop("category_id"), r"segment \d+ of 000000000001.png has no category_id"),
        (lambda d: first(d).pop("id"), "segment number 1 of 000000000001.png has no id"),
        (lambda d: d["annotations"][0].update(image_id=77), "000000000001.png has image_id 77, which no picture"),
        (lambda d: d["annotations"][0].pop("image_id"), "000000000001.png has image_id None, which no picture"),
        (lambda d: d["images"].append(d["images"][0]), "is listed twice under images"),
        (lambda d: d["images"].append({**d["images"][0], "id": 9}), "file_name 000000000001.png is listed twice"),
        (
            lambda d: d["annotations"][0].update(image_id=d["annotations"][1]["image_id"]),
            r"image_id \d+ has more than one entry",
        ),
        (lambda d: first(d).pop("bbox"), r"000000000001.png has no bbox of four numbers \(KeyError"),
        (lambda d: first(d).update(bbox=[1, 2, 3]), "000000000001.png has no bbox of four numbers"),
        (lambda d: first(d).update(bbox=[1, 2, -3, 4]), "it must be x, y, width, height"),
        (lambda d: first(d).update(bbox=[1, 2, float("inf"), 4]), "none of them infinite"),
        (lambda d: first(d).update(id="seven"), "segment seven of 000000000001.png: its id must be a whole number"),
        (
            lambda d: d["annotations"][0]["segments_info"].append(dict(first(d))),
            "of 000000000001.png is listed twice",
        ),
        (lambda d: d["annotations"].append(d["annotations"][0]), "000000000001.png has more than one entry"),
        (lambda d: d.update(annotations=[]), "lists no picture with segments"),
        (lambda d: d.pop("images"), "not COCO panoptic annotations"),
    ],
)
def test_annotations_that_cannot_be_used(root: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    rewrite(root, change)
    with pytest.raises(UserError, match=said) as error:
        opened(root)
    assert str(root / JSON) in str(error.value) and "\n" not in str(error.value)


def test_png_and_json_that_disagree(root: Path) -> None:
    ids = drawn_segments(0).ids
    ids[:9, :9] = 999
    save_ids(root / PNG, ids)
    with pytest.raises(UserError, match=rf"{root / PNG}: holds segment 999 \(1 in all\), which .*{JSON} does not list"):
        opened(root).load(0)
    save_ids(root / PNG, drawn_segments(0).ids[:-1])
    with pytest.raises(UserError, match=rf"{root / PNG}: segments of 200 x 149 pixels .* is 200 x 150"):
        opened(root).load(0)
    (root / PNG).write_bytes((root / PNG).read_bytes()[:300])
    with pytest.raises(UserError, match=rf"{root / PNG}: not readable"):
        opened(root).load(0)
    (root / PNG).unlink()
    with pytest.raises(UserError, match=rf"{root / PNG}: cannot be read"):
        opened(root).load(0)


def test_a_set_without_panoptic_labels(root: Path, tmp_path: Path) -> None:
    (root / JSON).rename(tmp_path / "away.json")
    with pytest.raises(UserError, match="no annotations/panoptic_val2017.json, which the labels of kind coco need"):
        opened(root)
    (tmp_path / "away.json").rename(root / JSON)
    shutil.rmtree(root / "annotations/panoptic_val2017")
    with pytest.raises(UserError, match=r"no annotations/panoptic_val2017/ or .*panoptic_val2017.zip"):
        opened(root)
    with pytest.raises(UserError, match="no split 'train'"):
        open_panoptic_regions("coco", str(root), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no split 'val'"):
        open_panoptic_regions("auto", str(tmp_path / "empty"), "val")
    with pytest.raises(UserError, match="data.kind=folder: must be one of auto, coco, scenes"):
        open_panoptic_regions("folder", str(root), "val")


def test_the_fingerprint_sees_every_byte(root: Path) -> None:
    before = opened(root).fingerprint()
    assert opened(root).fingerprint() == before
    Image.new("RGB", PICTURES[0]).save(root / "val2017/000000000001.png")
    changed = opened(root).fingerprint()
    rewrite(root, lambda d: first(d).update(area=5))
    assert len({before, changed, opened(root).fingerprint()}) == 3


def test_embedded_scenes_in_cocos_layout(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    small = ["--train", "1", "--val", "2", "--size", "240x180", "--layouts", "plain,coco"]
    assert make_scenes(["--output", str(folder), *small]) == 0
    found = [open_panoptic_regions(kind, str(folder), "val") for kind in ("scenes", "auto")]
    found.append(open_panoptic_regions("coco", str(folder / "coco"), "val"))
    assert len({source.fingerprint() for source in found}) == 1
    for i in range(2):
        _, ids = found[0].load(i)
        assert set(np.unique(ids)) - {0} == {segment.id for segment in found[0].segments[i]}
    shutil.rmtree(folder / "coco")
    with pytest.raises(UserError, match="no scenes in COCO's layout .* tools/make_scenes.py --layouts coco"):
        open_panoptic_regions("scenes", str(folder), "val")
