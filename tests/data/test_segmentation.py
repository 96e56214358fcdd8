"""Labelled sets in the public layouts, each made tiny on disk."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data import vocab
from rsc_seg.data.segmentation import distinct_palette, open_labelled
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError

SIZE = (3, 8)  # height, width


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo(path: Path, value: int = 7, size: tuple[int, int] = SIZE) -> None:
    put(path, np.full((*size, 3), value, np.uint8))


def ids(*values: int) -> np.ndarray:
    """Labels that hold the given ids in a row, repeated to the full width."""
    return np.tile(np.resize(np.array(values, np.uint8), SIZE[1]), (SIZE[0], 1))


@pytest.mark.parametrize("layout", [("val", "valannot"), ("val/images", "val/labels")])
@pytest.mark.parametrize("kind", ["camvid", "auto"])
def test_camvid(tmp_path, layout, kind):
    for stem in ("b", "a"):
        photo(tmp_path / layout[0] / f"{stem}.png")
        put(tmp_path / layout[1] / f"{stem}.png", ids(0, 10, 11, 3))
    labelled = open_labelled(kind, str(tmp_path), "val")
    assert [labelled.name(i) for i in range(len(labelled))] == [f"{layout[0]}/a.png", f"{layout[0]}/b.png"]
    assert len(labelled.classes) == len(set(labelled.palette)) == 11
    assert labelled.classes[3] == "road" and labelled.palette[3] == (128, 64, 128)
    assert labelled.labels(0).dtype == np.uint8
    assert labelled.labels(0)[0, :4].tolist() == [0, 10, 255, 3]
    assert labelled.load(1).size == (8, 3) and labelled.ignore_index == 255
    with pytest.raises(UserError, match=r"no split 'train' \(data\.split\); there are: val\."):
        open_labelled(kind, str(tmp_path), "train")


def test_limit_and_every_keep_pairs_together(tmp_path):
    for i in range(7):
        photo(tmp_path / f"train/{i}.png", i)
        put(tmp_path / f"trainannot/{i}.png", ids(i))
    labelled = open_labelled("camvid", str(tmp_path), "train", limit=2, every=3)
    assert len(labelled) == 2
    assert [int(labelled.labels(i)[0, 0]) for i in range(2)] == [0, 3]
    assert [int(np.asarray(labelled.load(i))[0, 0, 0]) for i in range(2)] == [0, 3]
    assert int(pickle.loads(pickle.dumps(labelled)).labels(1)[0, 0]) == 3


def test_plain_layout_reads_its_classes(tmp_path):
    photo(tmp_path / "train/images/1.jpg")
    put(tmp_path / "train/labels/1.png", ids(0, 1, 255))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["cat", "dog"], "palette": [[1, 2, 3], [4, 5, 6]]}))
    labelled = open_labelled("auto", str(tmp_path), "train")
    assert labelled.classes == ["cat", "dog"] and labelled.palette == [(1, 2, 3), (4, 5, 6)]
    assert labelled.labels(0)[0, :3].tolist() == [0, 1, 255]
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["cat"]}))
    assert open_labelled("plain", str(tmp_path), "train").palette == distinct_palette(1)
    with pytest.raises(UserError, match=r"1\.png: label id 1 is outside the class list of .*classes\.json"):
        open_labelled("plain", str(tmp_path), "train").labels(0)
    (tmp_path / "classes.json").write_text(json.dumps(["cat"]))
    with pytest.raises(UserError, match=r'classes\.json: expected \{"names"'):
        open_labelled("plain", str(tmp_path), "train")


@pytest.mark.parametrize("base", ["", "ADEChallengeData2016/"])
@pytest.mark.parametrize("kind", ["ade20k", "auto"])
def test_ade20k(tmp_path, base, kind):
    photo(tmp_path / base / "images/validation/A_1.jpg")
    put(tmp_path / base / "annotations/validation/A_1.png", ids(0, 1, 150))
    labelled = open_labelled(kind, str(tmp_path), "val")
    assert len(labelled.classes) == len(set(labelled.palette)) == 150 and labelled.classes[0] == "wall"
    assert labelled.labels(0)[0, :3].tolist() == [255, 0, 149]
    with pytest.raises(UserError, match=r"no split 'train' .*there are: val"):
        open_labelled(kind, str(tmp_path), "train")


@pytest.mark.parametrize("folder", ["stuffthingmaps", "annotations", "stuffthingmaps_detectron2"])
def test_cocostuff(tmp_path, folder):
    contiguous = folder.endswith("detectron2")
    photo(tmp_path / "images/val2017/1.jpg")
    put(tmp_path / folder / "val2017/1.png", ids(0, 170 if contiguous else 181, 255))
    labelled = open_labelled("cocostuff", str(tmp_path), "val")
    assert len(labelled.classes) == 171 and labelled.labels(0)[0, :3].tolist() == [0, 170, 255]
    if not contiguous:
        put(tmp_path / folder / "val2017/1.png", ids(11))
        with pytest.raises(UserError, match=r"1\.png: label id 11 is outside the class list of COCO-Stuff"):
            labelled.labels(0)


@pytest.mark.parametrize("stored", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, stored):
    photo(tmp_path / "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png")
    values = ids(7, 33, 0, 9) if stored == "labelIds" else ids(0, 18, 255, 255)
    put(tmp_path / f"gtFine/val/ulm/ulm_0_1_gtFine_{stored}.png", values)
    put(tmp_path / "gtFine/val/ulm/ulm_0_1_gtFine_color.png", ids(1))
    labelled = open_labelled("auto", str(tmp_path), "val")
    assert labelled.classes == vocab.load("cityscapes_19").names and labelled.palette[0] == (128, 64, 128)
    assert labelled.labels(0)[0, :4].tolist() == [0, 18, 255, 255]


def test_palette_png_gives_indices(tmp_path):
    photo(tmp_path / "val/1.png")
    (tmp_path / "valannot").mkdir()
    image = Image.fromarray(ids(2, 5)).convert("P")
    image.putpalette([9] * 768)
    image.putdata(ids(2, 5).ravel().tolist())
    image.save(tmp_path / "valannot/1.png")
    assert open_labelled("camvid", str(tmp_path), "val").labels(0)[0, :2].tolist() == [2, 5]


def test_wrong_labels_are_named(tmp_path):
    photo(tmp_path / "val/1.png")
    photo(tmp_path / "val/2.png")
    put(tmp_path / "valannot/1.png", ids(0, 12))
    with pytest.raises(UserError, match=r"valannot/2\.png: no such label file; 1 of 2 images of 'val' have none"):
        open_labelled("camvid", str(tmp_path), "val")
    put(tmp_path / "valannot/2.png", ids(0)[:, :5])
    labelled = open_labelled("camvid", str(tmp_path), "val")
    with pytest.raises(UserError, match=r"valannot/1\.png: label id 12 is outside the class list of CamVid"):
        labelled.labels(0)
    with pytest.raises(UserError, match=r"valannot/2\.png: labels are 5 x 3 .* image .*val/2\.png is 8 x 3"):
        labelled.labels(1)
    put(tmp_path / "valannot/2.png", np.random.default_rng(0).integers(0, 11, (40, 40), dtype=np.uint8))
    (tmp_path / "valannot/2.png").write_bytes((tmp_path / "valannot/2.png").read_bytes()[:500])
    with pytest.raises(ImageError, match=r"valannot/2\.png: not readable as an image: .*truncated"):
        labelled.labels(1)


def test_size_check_follows_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "val").mkdir()
    Image.fromarray(np.zeros((8, 3, 3), np.uint8)).save(tmp_path / "val/1.png", exif=exif)
    put(tmp_path / "valannot/1.png", ids(1))
    labelled = open_labelled("camvid", str(tmp_path), "val")
    assert labelled.load(0).size == labelled.size(0) == (8, 3)
    assert labelled.labels(0).shape == SIZE


def test_missing_layouts(tmp_path):
    with pytest.raises(UserError, match="no known layout of a labelled set"):
        open_labelled("auto", str(tmp_path), "val")
    with pytest.raises(UserError, match=r"not the layout of Cityscapes .*expected leftImg8bit/val/ and gtFine/val/"):
        open_labelled("cityscapes", str(tmp_path), "val")
    with pytest.raises(UserError, match=r"no such file or folder \(data\.root\)"):
        open_labelled("camvid", str(tmp_path / "no"), "val")
    with pytest.raises(UserError, match="Did you mean 'cityscapes'"):
        open_labelled("cityscape", str(tmp_path), "val")
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(UserError, match=r"val: no images of CamVid"):
        open_labelled("camvid", str(tmp_path), "val")


def test_colours_of_a_long_list_differ():
    assert len(set(distinct_palette(171))) == 171
