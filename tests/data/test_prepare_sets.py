"""Every set from its download's layout to labels whose values are known."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.prepare_convert import resize_linear, resize_nearest, shortened_size
from rsc_seg.data.prepare_run import check_split, prepare_split, unready
from rsc_seg.data.prepare_sources import make_recipe
from rsc_seg.data.segsets import segset
from tests.data import prepare_trees as trees

MAKERS: dict[str, Callable[[Path], trees.Labels]] = {
    "ade20k_150_val": trees.ade20k_150,
    "ade20k_150_train": lambda root: trees.ade20k_150(root, folder="training"),
    "ade20k_847_val": trees.ade20k_847,
    "pascal_context_59_val": lambda root: trees.context(root)[0],
    "pascal_context_459_val": lambda root: trees.context(root)[1],
    "voc_20_val": lambda root: trees.voc(root)[0],
    "voc_20b_val": lambda root: trees.voc(root, "SegmentationClass")[1],
    "coco_stuff_171_val": trees.coco_stuff,
    "coco_panoptic_val": lambda root: trees.panoptic(root, zipped=False),
    "cityscapes_val": trees.cityscapes,
}


def read(name: str, root: Path) -> trees.Labels:
    found = segset(name)
    labels = found.label_folder(root)
    end = found.label_end
    return {
        path.relative_to(labels).as_posix().removesuffix(end): np.asarray(Image.open(path))
        for _, path in found.pairs(root)
    }


@pytest.mark.parametrize("name", MAKERS)
def test_labels_have_the_values_that_detectron2_and_cat_seg_read(name: str, tmp_path: Path) -> None:
    wanted = MAKERS[name](tmp_path)
    found = segset(name)
    recipe = make_recipe(found, tmp_path, subset=True)
    before = check_split(recipe)
    assert (before.kept, before.converted) == (0, len(wanted)) and "lack prepared labels" in str(unready(before))
    assert not [
        p for p in tmp_path.rglob("*") if "detectron2" in p.name or "partial" in p.name or "stuff_val" in p.name
    ]

    outcome = prepare_split(recipe)
    assert (outcome.converted, outcome.kept) == (len(wanted), 0)
    got = read(name, tmp_path)
    assert set(got) == set(wanted)
    for key, labels in wanted.items():
        assert np.array_equal(got[key], labels), key
        assert got[key].dtype == (np.uint16 if found.label_end == ".tif" else np.uint8)
    assert max(v[v != found.ignore_label].max() for v in got.values()) < found.label_count
    assert unready(check_split(make_recipe(found, tmp_path, subset=True))) is None
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.tmp"))


def test_voc_leaves_out_pictures_without_any_class_and_keeps_them_with_background(tmp_path: Path) -> None:
    trees.voc(tmp_path)
    plain = prepare_split(make_recipe(segset("voc_20_val"), tmp_path, subset=True))
    whole = prepare_split(make_recipe(segset("voc_20b_val"), tmp_path, subset=True))
    assert (plain.converted, plain.empty) == (2, 1) and (whole.converted, whole.empty) == (3, 0)
    assert len(segset("voc_20_val").pairs(tmp_path)) == 2 and len(segset("voc_20b_val").pairs(tmp_path)) == 3
    again = prepare_split(make_recipe(segset("voc_20_val"), tmp_path, subset=True))
    assert (again.kept, again.converted, again.empty) == (2, 0, 1)
    assert unready(check_split(make_recipe(segset("voc_20_val"), tmp_path, subset=True))) is None


def test_coco_stuff_is_found_in_the_folders_of_the_zip_files_too(tmp_path: Path) -> None:
    wanted = trees.coco_stuff(tmp_path, "coco")
    outcome = prepare_split(make_recipe(segset("coco_stuff_171_val"), tmp_path, subset=True))
    assert outcome.labels == tmp_path / "coco" / "annotations_detectron2" / "val2017"
    got = read("coco_stuff_171_val", tmp_path)
    assert all(np.array_equal(got[key], labels) for key, labels in wanted.items())


def test_panoptic_pngs_come_out_of_the_zip_file_to_where_detectron2_looks(tmp_path: Path) -> None:
    wanted = trees.panoptic(tmp_path, zipped=True)
    assert prepare_split(make_recipe(segset("coco_panoptic_val"), tmp_path, subset=True)).converted == 2
    got = read("coco_panoptic_val", tmp_path)
    assert all(np.array_equal(got[key], labels) for key, labels in wanted.items())
    copied = tmp_path / "coco" / "panoptic_val2017"
    assert sorted(p.stem for p in copied.iterdir()) == sorted(wanted)
    (tmp_path / "coco" / "annotations" / "panoptic_val2017.zip").unlink()  # no longer needed
    assert prepare_split(make_recipe(segset("coco_panoptic_val"), tmp_path, subset=True)).kept == 2


def test_the_full_ade20k_is_saved_with_a_short_side_of_512_at_most(tmp_path: Path) -> None:
    trees.ade20k_847(tmp_path)
    prepare_split(make_recipe(segset("ade20k_847_val"), tmp_path, subset=True))
    sizes = {}
    for image, labels in segset("ade20k_847_val").pairs(tmp_path):
        assert Image.open(image).size == Image.open(labels).size and Image.open(image).format == "JPEG"
        sizes[image.stem] = Image.open(image).size
    assert sizes == {"ADE_val_00000001": (7, 5), "ADE_val_00000002": (569, 512)}


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((683, 512), (683, 512)), ((1024, 768), (683, 512)), ((768, 1024), (512, 683)), ((9000, 300), (9000, 300))],
)
def test_sizes_follow_the_short_side(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert shortened_size(*size) == wanted


def test_resizing_by_hand_computed_values() -> None:
    row = np.repeat(np.array([0, 100, 200, 40], np.uint8)[None, :, None], 3, 2)
    # halved: both centres lie between two pixels; to 3: centres at 1/6, 3/2 and 17/6 of the old axis
    assert resize_linear(row, 2, 1)[0, :, 0].tolist() == [50, 120]
    assert resize_linear(row, 3, 1)[0, :, 0].tolist() == [17, 150, 67]
    assert resize_linear(row, 4, 1)[0].tolist() == row[0].tolist()
    assert resize_nearest(np.arange(10)[None], 4, 1)[0].tolist() == [0, 2, 5, 7]


def test_moved_coco_images_are_found_beside_the_labels(tmp_path: Path) -> None:
    """Labels in coco-stuff/, images in coco/: one copy of the images serves both sets."""
    trees.coco_stuff(tmp_path)
    (tmp_path / "coco").mkdir()
    shutil.move(tmp_path / "coco-stuff" / "images" / "val2017", tmp_path / "coco" / "val2017")
    prepare_split(make_recipe(segset("coco_stuff_171_val"), tmp_path, subset=True))
    assert segset("coco_stuff_171_val").pairs(tmp_path)[0][0].parent == tmp_path / "coco" / "val2017"
