"""What a preparation refuses: one line with the file, and nothing half-written."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from rsc_seg.data.prepare_run import prepare_split
from rsc_seg.data.prepare_sources import MissingSource, make_recipe, read_ade_index
from rsc_seg.data.segsets import segset
from rsc_seg.errors import UserError
from tests.data import prepare_trees as trees

VOC10, VOC12 = Path("VOCdevkit/VOC2010"), Path("VOCdevkit/VOC2012")
ADE = Path("ADEChallengeData2016")


def run(name: str, root: Path, subset: bool = True, workers: int = 1) -> str:
    """The message of the refusal, which must be one line; what stood there before must be all that stands there."""
    with pytest.raises(UserError) as caught:
        prepare_split(make_recipe(segset(name), root, subset), workers)
    assert "\n" not in str(caught.value)
    assert not segset(name).label_folder(root).exists() or segset(name).prepared_by == "cityscapes"
    return str(caught.value)


def put(path: Path, value: int) -> str:
    array = np.asarray(Image.open(path)).copy()
    array[2, 3] = value
    Image.fromarray(array).save(path)
    return str(path)


def test_an_id_outside_the_class_list_names_file_id_and_pixel(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[[Path], object], str, int]] = {
        "ade20k_150_val": (trees.ade20k_150, f"{ADE}/annotations/validation/ADE_val_00000001.png", 151),
        "voc_20_val": (trees.voc, f"{VOC12}/SegmentationClassAug/2007_000000.png", 21),
        "coco_stuff_171_val": (trees.coco_stuff, "coco-stuff/annotations/val2017/000000000000.png", 182),
        "cityscapes_val": (
            trees.cityscapes,
            "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
            34,
        ),
    }
    for name, (make, file, value) in cases.items():
        root = tmp_path / name
        make(root)
        where = put(root / file, value)
        assert run(name, root).startswith(f"{where}: label id {value} at pixel (3, 2) is outside the class list")
    assert not list((tmp_path / "cityscapes_val" / "cityscapes" / "gtFine" / "val").rglob("*labelTrainIds.png"))


def test_ids_outside_the_class_list_in_other_formats(tmp_path: Path) -> None:
    trees.context(tmp_path)
    first = tmp_path / VOC10 / "trainval" / "2008_000002.mat"
    savemat(first, {"LabelMap": np.full((5, 7), 460, np.uint16)})
    assert f"{first}: label id 460" in run("pascal_context_459_val", tmp_path)
    path = tmp_path / VOC10 / "trainval_merged.json"
    document = json.loads(path.read_text())
    document["annos_segmentation"][1]["category_id"] = 777
    path.write_text(json.dumps(document))
    assert f"{path}: image 2008_000002.jpg: label id" in run("pascal_context_59_val", tmp_path)

    trees.ade20k_847(tmp_path)
    seg = next((tmp_path / "ADE20K_2021_17_01").rglob("ADE_val_00000001_seg.png"))
    Image.fromarray(np.full((5, 7, 3), 250, np.uint8)).save(seg)
    assert f"{seg}: label id 6650" in run("ade20k_847_val", tmp_path)

    trees.panoptic(tmp_path, zipped=False)
    png = tmp_path / "coco" / "annotations" / "panoptic_val2017" / "000000000001.png"
    put(png, 9)
    assert f"{png}: segment 592137 has no category" in run("coco_panoptic_val", tmp_path)


def test_pairs_that_are_not_complete(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    label = tmp_path / ADE / "annotations" / "validation" / "ADE_val_00000002.png"
    image = tmp_path / ADE / "images" / "validation" / "ADE_val_00000000.jpg"
    label.unlink()
    assert "no labels for 'ADE_val_00000002'; 1 of 3 images" in run("ade20k_150_val", tmp_path)
    trees.ade20k_150(tmp_path)
    image.unlink()
    assert "no image for 'ADE_val_00000000'; 1 of 3 labels" in run("ade20k_150_val", tmp_path)

    trees.context(tmp_path)
    (tmp_path / VOC10 / "JPEGImages" / "2008_000003.jpg").unlink()
    for name in ("pascal_context_59_val", "pascal_context_459_val"):
        assert "no image for '2008_000003" in run(name, tmp_path)
    trees.voc(tmp_path)
    (tmp_path / VOC12 / "SegmentationClassAug" / "2007_000001.png").unlink()
    assert "no labels for '2007_000001'" in run("voc_20_val", tmp_path, subset=False)
    trees.ade20k_847(tmp_path)
    next((tmp_path / "ADE20K_2021_17_01").rglob("ADE_val_00000002.jpg")).unlink()
    assert "no image for 'home/ADE_val_00000002'; 1 of 2 labels" in run("ade20k_847_val", tmp_path)
    next((tmp_path / "ADE20K_2021_17_01").rglob("ADE_val_00000002_seg.png")).unlink()
    assert "index_ade20k.pkl" in run("ade20k_847_val", tmp_path, subset=False)


def test_a_split_smaller_than_the_official_one_must_be_meant(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    message = run("ade20k_150_val", tmp_path, subset=False)
    assert "3 images, but the official split has 2000" in message and "--subset" in message


def test_labels_of_another_size_than_their_image(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    trees.picture(tmp_path / ADE / "images" / "validation" / "ADE_val_00000001.jpg", (9, 5))
    message = run("ade20k_150_val", tmp_path)
    assert "ADE_val_00000001.png: labels are 7 x 5" in message and "is 9 x 5" in message


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "colour"])
def test_a_label_file_that_cannot_be_read(damage: str, tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    path = tmp_path / ADE / "annotations" / "validation" / "ADE_val_00000001.png"
    if damage == "colour":
        Image.new("RGB", trees.SIZE).save(path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:50], "empty": b"", "text": b"<html>"}[damage])
    assert run("ade20k_150_val", tmp_path).startswith(f"{path}: ")


def test_an_image_file_that_cannot_be_read(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    path = tmp_path / ADE / "images" / "validation" / "ADE_val_00000001.jpg"
    path.write_bytes(b"")
    assert run("ade20k_150_val", tmp_path) == f"{path}: not readable as an image: the file is empty."


def test_broken_annotation_files(tmp_path: Path) -> None:
    trees.context(tmp_path)
    mat = tmp_path / VOC10 / "trainval" / "2008_000002.mat"
    savemat(mat, {"Other": np.zeros((5, 7))})
    assert f"{mat}: no array LabelMap" in run("pascal_context_459_val", tmp_path)
    mat.write_bytes(b"nonsense")
    assert f"{mat}: not readable as a MATLAB file" in run("pascal_context_459_val", tmp_path)
    path = tmp_path / VOC10 / "trainval_merged.json"
    document = json.loads(path.read_text())
    document["annos_segmentation"][0]["segmentation"]["size"] = [4, 4]
    path.write_text(json.dumps(document))
    assert "image 2008_000002.jpg: a mask is [4, 4]" in run("pascal_context_59_val", tmp_path)
    document["annos_segmentation"] = document["annos_segmentation"][5:]
    document["images"][0]["image_id"] = 1234
    path.write_text(json.dumps(document))
    assert "1 of 3 images have no masks (first: 2008_000002.jpg)" in run("pascal_context_59_val", tmp_path)
    path.write_text("[]")
    assert "not trainval_merged.json" in run("pascal_context_59_val", tmp_path)
    path.write_text("{")
    assert f"{path}: not valid JSON" in run("pascal_context_59_val", tmp_path)


class Harmful:
    """A pickle that runs a command when it is read carelessly."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_the_index_of_ade20k_may_hold_plain_data_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "index_ade20k.pkl"
    path.write_bytes(pickle.dumps({"folder": ["a"], "filename": ["b.jpg"], "counts": np.arange(3)}))
    assert read_ade_index(path) == ["a/b.jpg"]
    old = pickle.dumps({"folder": ["a"], "filename": ["b.jpg"], "counts": np.arange(3)}, protocol=2)
    path.write_bytes(old.replace(b"numpy._core", b"numpy.core"))  # as numpy 1 wrote it
    assert read_ade_index(path) == ["a/b.jpg"]
    path.write_bytes(pickle.dumps({"folder": [Harmful()], "filename": ["b.jpg"]}))
    with pytest.raises(UserError, match=r"index_ade20k.pkl: not the index .*system"):
        read_ade_index(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["ade20k_150_val", "ade20k_847_val", "voc_20_val", "coco_panoptic_val", "cityscapes_val"]
)
def test_a_download_that_is_not_there_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match=r"not there, but .* needs it: get .*\(.*\.(edu|uk|org|com)"):
        make_recipe(segset(name), tmp_path)


def test_a_root_one_folder_too_deep(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    with pytest.raises(UserError, match="--root is the folder above ADEChallengeData2016/"):
        make_recipe(segset("ade20k_150_val"), tmp_path / ADE)
    with pytest.raises(UserError, match="no such folder"):
        make_recipe(segset("ade20k_150_val"), tmp_path / "nowhere")


def test_a_list_that_names_an_image_twice(tmp_path: Path) -> None:
    trees.voc(tmp_path)
    listing = tmp_path / VOC12 / "ImageSets" / "Segmentation" / "val.txt"
    listing.write_text(listing.read_text() + "2007_000001\n")
    assert "names the image '2007_000001' twice" in run("voc_20_val", tmp_path)
    shutil.rmtree(listing.parent)
    assert "val.txt: not there" in run("voc_20_val", tmp_path)
