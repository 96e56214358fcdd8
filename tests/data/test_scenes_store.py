import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rsc_seg.cache_dir import cache_dir
from rsc_seg.cli import make_scenes
from rsc_seg.data import vocab
from rsc_seg.data.scenes import (
    CLASS_TABLE,
    LAYOUT_NAMES,
    SCENE_CLASSES,
    Scene,
    SceneSet,
    compose_scene,
    ensure_scenes,
    layout_root,
    read_manifest,
    scene_seed,
    store,
    verify_scenes,
    write_scenes,
)
from rsc_seg.data.scenes.outlines import mask_polygons
from rsc_seg.data.segmentation import open_labelled
from rsc_seg.errors import UserError

SET = SceneSet(seed=3, train=6, val=3, size=(160, 120), layouts=LAYOUT_NAMES)
COUNTS = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set", SET)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {s: [compose_scene(scene_seed(3, s, i), SET.size, s) for i in range(n)] for s, n in COUNTS.items()}


def _png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _mapped(scene: Scene, field: str, void: int) -> np.ndarray:
    table = np.full(256, void)
    table[: len(CLASS_TABLE)] = [getattr(c, field) for c in CLASS_TABLE]
    return table[scene.semantic]


def test_polygons_rasterise_to_the_same_mask() -> None:
    rng = np.random.default_rng(0)
    ring = np.ones((7, 9), bool)
    ring[2:5, 3:6] = False
    masks = [ring, np.eye(6, dtype=bool), np.ones((1, 1), bool)]
    masks += [rng.random((rng.integers(2, 24), rng.integers(2, 24))) < rng.uniform(0.2, 0.95) for _ in range(60)]
    for mask in masks:
        if mask.any():
            rles = coco_mask.frPyObjects(mask_polygons(mask), *mask.shape)
            assert (coco_mask.decode(coco_mask.merge(rles)) == mask).all()


@pytest.mark.parametrize("split", COUNTS)
def test_pycocotools_reads_exactly_our_masks(root: Path, scenes: dict[str, list[Scene]], split: str) -> None:
    coco = COCO(str(root / "coco" / "annotations" / f"instances_{split}2017.json"))
    assert len(coco.getImgIds()) == COUNTS[split] and len(coco.getCatIds()) == 80
    assert coco.loadCats(90)[0]["name"] == "toothbrush"
    for image, scene in zip(coco.loadImgs(sorted(coco.getImgIds())), scenes[split], strict=True):
        picture = Image.open(root / "coco" / f"{split}2017" / image["file_name"])
        assert picture.size == (image["width"], image["height"]) == scene.image.size
        difference = np.abs(np.asarray(picture, np.float32) - np.asarray(scene.image, np.float32))
        assert difference.mean() < 2  # JPEG of quality 95
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(found) == len(scene.objects)
        for row, thing in zip(found, scene.objects, strict=True):
            assert (coco.annToMask(row) == (scene.instances == thing.instance)).all()
            assert row["area"] == thing.area and row["iscrowd"] == 0 and tuple(row["bbox"]) == thing.bbox
            assert all(len(p) >= 8 and len(p) % 2 == 0 for p in row["segmentation"])
            assert CLASS_TABLE[SCENE_CLASSES.index(thing.name)].coco_panoptic == row["category_id"]


def _panoptic(root: Path, split: str) -> dict[str, Any]:
    path = root / "coco" / "annotations" / f"panoptic_{split}2017.json"
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.mark.parametrize("split", COUNTS)
def test_panoptic_segments_agree_with_their_png(root: Path, scenes: dict[str, list[Scene]], split: str) -> None:
    document = _panoptic(root, split)
    assert [(c["id"], c["name"], bool(c["isthing"])) for c in document["categories"]] == [
        (c.id, c.name, c.extra["isthing"]) for c in vocab.load("coco_panoptic_133").classes
    ]
    for row, image, scene in zip(document["annotations"], document["images"], scenes[split], strict=True):
        assert row["image_id"] == image["id"] and Path(row["file_name"]).stem == Path(image["file_name"]).stem
        rgb = _png(root / "coco" / "annotations" / f"panoptic_{split}2017" / row["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        segments = row["segments_info"]
        assert {s["id"] for s in segments} == set(np.unique(ids).tolist()) - {0}
        categories = np.zeros(ids.shape, int)
        for s in segments:
            mask = ids == s["id"]
            rows, cols = np.nonzero(mask)
            assert s["area"] == mask.sum() and s["iscrowd"] == 0
            assert s["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            categories[mask] = s["category_id"]
        assert (categories == _mapped(scene, "coco_panoptic", 0)).all()
        for thing in scene.objects:
            assert len(np.unique(ids[scene.instances == thing.instance])) == 1
        assert len(segments) == len(scene.objects) + len({k for k in np.unique(scene.semantic) if k < 8})


@pytest.mark.parametrize("split", COUNTS)
def test_pixel_maps_hold_the_official_ids(root: Path, scenes: dict[str, list[Scene]], split: str) -> None:
    ade = {"train": "training", "val": "validation"}[split]
    stuff = sorted((root / "coco" / "stuffthingmaps" / f"{split}2017").glob("*.png"))
    scene_parsing = sorted((root / "ade20k" / "ADEChallengeData2016" / "annotations" / ade).glob("ADE_*.png"))
    plain = sorted((root / "plain" / split / "labels").glob("*.png"))
    assert len(stuff) == len(scene_parsing) == len(plain) == COUNTS[split]
    for i, scene in enumerate(scenes[split]):
        assert (_png(stuff[i]) == _mapped(scene, "coco_stuff", 255)).all()
        assert (_png(scene_parsing[i]) == _mapped(scene, "ade20k", 0)).all()
        assert (_png(plain[i]) == scene.semantic).all()
        assert (_png(root / "plain" / split / "instances" / plain[i].name) == scene.instances).all()


@pytest.mark.parametrize("split", COUNTS)
def test_cityscapes_files(root: Path, scenes: dict[str, list[Scene]], split: str) -> None:
    base = root / "cityscapes"
    pictures = sorted((base / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    assert len(pictures) == COUNTS[split]
    labels = vocab.load("cityscapes")
    for path, scene in zip(pictures, scenes[split], strict=True):
        assert (_png(path) == np.asarray(scene.image)).all()
        stem = base / "gtFine" / split / path.parent.name / path.name.replace("_leftImg8bit.png", "_gtFine")
        label_ids = _png(Path(f"{stem}_labelIds.png"))
        assert (label_ids == _mapped(scene, "cityscapes", 0)).all()
        instance_ids = _png(Path(f"{stem}_instanceIds.png")).astype(int)
        assert (np.where(instance_ids > 999, instance_ids // 1000, instance_ids) == label_ids).all()
        counted = [o for o in scene.objects if o.name in ("person", "car", "motorcycle")]
        assert len(np.unique(instance_ids[instance_ids > 999])) == len(counted)
        for k in np.unique(label_ids):
            assert (_png(Path(f"{stem}_color.png"))[label_ids == k] == labels.by_id(int(k)).extra["color"]).all()
        document = json.loads(Path(f"{stem}_polygons.json").read_text())
        assert (document["imgWidth"], document["imgHeight"]) == scene.image.size
        assert {o["label"] for o in document["objects"]} == {
            labels.by_id(int(k)).name for k in np.unique(label_ids) if k
        }


def test_object_info_has_the_official_columns(root: Path) -> None:
    lines = (root / "ade20k" / "ADEChallengeData2016" / "objectInfo150.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"] and len(lines) == 151
    assert lines[1].split("\t")[4] == "wall" and lines[2].split("\t")[4] == "building, edifice"
    assert 0.9 < sum(float(line.split("\t")[1]) for line in lines[1:]) <= 1.01


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("split", COUNTS)
def test_the_loaders_read_every_layout(root: Path, scenes: dict[str, list[Scene]], layout: str, split: str) -> None:
    found = open_labelled(layout, str(layout_root(root, layout)), split)
    assert len(found) == COUNTS[split]
    names = {
        "plain": "name",
        "coco": "coco_panoptic",
        "cocostuff": "coco_stuff",
        "ade20k": "ade20k",
        "cityscapes": "cityscapes",
    }
    for i, scene in enumerate(scenes[split]):
        assert found.load(i).size == scene.image.size
        labels = found.labels(i)
        if layout == "plain":
            assert (labels == scene.semantic).all() and found.classes == list(SCENE_CLASSES)
            continue
        official = vocab.load(
            {"coco": "coco_panoptic_133", "cocostuff": "coco_stuff_171", "ade20k": "ade20k_150"}.get(
                layout, "cityscapes"
            )
        )
        for k in np.unique(scene.semantic[scene.semantic != 255]):
            got = set(np.unique(labels[scene.semantic == k]).tolist())
            official_id = getattr(CLASS_TABLE[k], names[layout])
            expected = (
                255
                if official_id == 0 and layout == "cityscapes"
                else found.classes.index(official.by_id(official_id).name)
            )
            assert got == {expected}


def test_same_settings_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = write_scenes(tmp_path / "again", SET)
    first, second = read_manifest(root), read_manifest(again)
    assert first is not None and first == second and first["files"] > 0 and verify_scenes(again)
    path = next((again / "plain" / "val" / "images").glob("*.jpg"))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert read_manifest(again) is not None and not verify_scenes(again)


def test_default_folder_is_in_the_cache_and_used_again() -> None:
    folder = ensure_scenes(seed=1, train=2, val=1, size=(96, 64))
    assert folder.is_relative_to(cache_dir()) and (folder / "classes.json").is_file()
    label = folder / "train" / "labels" / "000000.png"
    stamp = label.stat().st_mtime_ns
    assert ensure_scenes(seed=1, train=2, val=1, size=(96, 64)) == folder and label.stat().st_mtime_ns == stamp
    assert ensure_scenes(seed=2, train=2, val=1, size=(96, 64)) != folder
    label.unlink()  # damaged: written anew
    assert ensure_scenes(seed=1, train=2, val=1, size=(96, 64)) == folder and label.is_file()


def test_given_folder_is_used_as_it_is(root: Path, tmp_path: Path) -> None:
    assert ensure_scenes(root) == root / "plain" == ensure_scenes(root, seed=3, train=6)
    assert ensure_scenes(root / "plain") == root / "plain"
    with pytest.raises(UserError, match="of other settings"):
        ensure_scenes(root, seed=4)
    new = tmp_path / "new"
    assert ensure_scenes(str(new), train=1, val=1, size=(96, 64)) == new / "plain"
    (new / "plain" / "classes.json").unlink()
    with pytest.raises(UserError, match="incomplete"):
        ensure_scenes(new)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        ensure_scenes(foreign)
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seed: int, size: tuple[int, int], split: str) -> Scene:
        if split == "val":
            raise KeyboardInterrupt
        return compose_scene(seed, size, split)

    monkeypatch.setattr(store, "compose_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "set", SceneSet(train=1, val=1, size=(96, 64)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_scenes(tmp_path / "set", SceneSet(train=1, val=1, size=(96, 64)))
    assert list(tmp_path.iterdir()) == []


def test_a_rival_that_wrote_the_same_set_first_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = SceneSet(train=1, val=1, size=(96, 64))
    rival = write_scenes(tmp_path / "rival", wanted)
    write_all = store._write_all

    def late(part: Path, settings: SceneSet) -> None:
        write_all(part, settings)
        shutil.copytree(rival, tmp_path / "set")

    monkeypatch.setattr(store, "_write_all", late)
    assert verify_scenes(write_scenes(tmp_path / "set", wanted))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rival", "set"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    flags = ["--output", str(out), "--train", "1", "--val", "1", "--size", "96x64", "--layouts", "plain,ade20k"]
    assert make_scenes.main(flags) == 0
    assert "1 + 1 scenes" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["ade20k", "plain", "scenes.json"]
    assert make_scenes.main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(out) in error and "not an empty folder" in error


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--size", "480", "expected WIDTHxHEIGHT"),
        ("--size", "8x8", "must be from 64 to 2048"),
        ("--train", "0", "train 0"),
        ("--seed", "-1", "seed -1"),
        ("--layouts", "plain,cityscape", "Did you mean 'cityscapes'"),
        ("--layouts", ",", "name at least one"),
    ],
)
def test_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, message: str
) -> None:
    assert make_scenes.main(["--output", str(tmp_path / "out"), flag, value]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []
