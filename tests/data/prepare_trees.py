"""Tiny downloads in the true layouts of the public sets, each with the labels that must come of it."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as masks
from scipy.io import savemat

from rsc_seg.data import vocab

Labels = dict[str, np.ndarray]
SIZE = (7, 5)  # width, height


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def values(seed: int, choices: list[int], dtype: type = np.uint8) -> np.ndarray:
    """(5,7) values of `choices`, of which the first stand at the start for certain."""
    found = np.random.default_rng(seed).choice(choices, SIZE[::-1]).astype(dtype)
    found.flat[: min(len(choices), 10)] = choices[:10]
    return found


def ade20k_150(root: Path, count: int = 3, folder: str = "validation") -> Labels:
    base = root / "ADEChallengeData2016"
    wanted = {}
    for i in range(count):
        name = f"ADE_{folder[:3]}_{i:08d}"
        raw = values(i, [0, 1, 150, 20, 33])
        picture(base / "images" / folder / f"{name}.jpg")
        grey(base / "annotations" / folder / f"{name}.png", raw)
        wanted[name] = np.where(raw == 0, 255, raw.astype(int) - 1)
    return wanted


def ade20k_847(root: Path, index: bool = True) -> Labels:
    """One small picture, and one above 512 on its short side; codes of wall, building, a rare class, and none."""
    base = root / "ADE20K_2021_17_01"
    wanted, names, folders = {}, [], []
    for name, scene, size in (("ADE_val_00000001", "urban/street", SIZE), ("ADE_val_00000002", "home", (600, 540))):
        codes = np.random.default_rng(size[0]).choice([2978, 312, 1, 0], size[::-1])
        folder = base / "images" / "ADE" / "validation" / scene
        picture(folder / f"{name}.jpg", size)
        instances = np.full_like(codes, 3)
        grey(folder / f"{name}_seg.png", np.stack([codes // 256 * 10 + 4, codes % 256, instances], -1).astype(np.uint8))
        grey(folder / f"{name}_parts_1.png", np.zeros((3, 3), np.uint8))
        grey(folder / name / f"instance_000_{name}.png", np.zeros((3, 3), np.uint8))
        if size != SIZE:
            rows, cols = np.arange(512) * 540 // 512, np.arange(569) * 600 // 569
            codes = codes[rows][:, cols]
        wanted[name] = np.select([codes == 2978, codes == 312], [0, 1], 65535)
        names.append(f"{name}.jpg")
        folders.append(f"ADE20K_2021_17_01/images/ADE/validation/{scene}")
    if index:
        listing = {"filename": names, "folder": folders, "objectPresence": np.zeros((2, 2)), "description": "x"}
        (base / "index_ade20k.pkl").write_bytes(pickle.dumps(listing))
    return wanted


def context(root: Path) -> tuple[Labels, Labels]:
    """Pictures, .mat files and trainval_merged.json; labels of 59 and of 459 classes."""
    base = root / "VOCdevkit" / "VOC2010"
    (base / "trainval").mkdir(parents=True)
    small, large, images, notes = {}, {}, [], []
    frequent = {c: i for i, c in enumerate(vocab.load("pascal_context_59").ids)}
    for number, name in enumerate(vocab.pascal_context_val()[:3]):
        ids = values(number, [1, 2, 459, 458, 9, 430], np.uint16)
        picture(base / "JPEGImages" / f"{name}.jpg")
        savemat(base / "trainval" / f"{name}.mat", {"LabelMap": ids})
        large[name] = ids.astype(int) - 1
        small[name] = np.vectorize(lambda c: frequent.get(int(c), 255))(ids)
        images.append({"image_id": number, "file_name": f"{name}.jpg", "phase": "val", "height": 5, "width": 7})
        everywhere = [(2, np.ones_like(ids))]  # what later masks must cover
        for category, mask in everywhere + [(int(c), ids == c) for c in np.unique(ids)]:
            packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            packed["counts"] = packed["counts"].decode()
            notes.append({"image_id": number, "category_id": category, "segmentation": packed})
    images.append({"image_id": 99, "file_name": "2008_000001.jpg", "phase": "train", "height": 5, "width": 7})
    notes.append({"image_id": 99, "category_id": 2, "segmentation": {"size": [1, 1], "counts": "01"}})
    (base / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": notes}))
    picture(base / "JPEGImages" / "2008_000001.jpg")  # a training picture
    return small, large


def voc(root: Path, folder: str = "SegmentationClassAug") -> tuple[Labels, Labels]:
    """Labels without and with background; the last picture has background and void only."""
    base = root / "VOCdevkit" / "VOC2012"
    plain, background = {}, {}
    for number, choices in enumerate([[0, 1, 20, 255], [0, 7, 255], [0, 255]]):
        name, raw = f"2007_{number:06d}", values(number, choices)
        picture(base / "JPEGImages" / f"{name}.jpg")
        paletted = Image.fromarray(raw, "P") if folder == "SegmentationClass" else Image.fromarray(raw)
        if folder == "SegmentationClass":
            paletted.putpalette([v % 256 for v in range(768)])
        (base / folder).mkdir(exist_ok=True)
        paletted.save(base / folder / f"{name}.png")
        plain[name] = np.where((raw == 0) | (raw == 255), 255, raw.astype(int) - 1)
        background[name] = np.where(raw == 0, 20, plain[name])
    plain.popitem()
    listing = base / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name in background))
    return plain, background


def coco_stuff(root: Path, base: str = "coco-stuff") -> Labels:
    """Official folders below coco-stuff/, or those of the zip files below coco/."""
    images, labels = ("images", "annotations") if base == "coco-stuff" else (".", "stuffthingmaps")
    order = {c: i for i, c in enumerate(vocab.load("coco_stuff_171").ids)}
    wanted = {}
    for i in range(2):
        raw = values(i, [0, 181, 11, 255, 10, 12])
        picture(root / base / images / "val2017" / f"{i:012d}.jpg")
        grey(root / base / labels / "val2017" / f"{i:012d}.png", raw)
        wanted[f"{i:012d}"] = np.vectorize(lambda c: order.get(int(c), 255))(raw)
    return wanted


def panoptic(root: Path, zipped: bool) -> Labels:
    """Person (1), banner (92, the first stuff class), rug-merged (200, the last) and void."""
    base = root / "coco"
    wanted, notes = {}, []
    ids = np.array([0, 70000, 92, 3 * 65536 + 5])
    for i in range(2):
        name, which = f"{i:012d}", values(i, [0, 1, 2, 3])
        picture(base / "val2017" / f"{name}.jpg")
        segments = ids[which]
        rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1).astype(np.uint8)
        grey(base / "annotations" / "panoptic_val2017" / f"{name}.png", rgb)
        listed = [{"id": int(s), "category_id": c} for s, c in zip(ids[1:], (1, 92, 200), strict=True)]
        notes.append({"image_id": i, "file_name": f"{name}.png", "segments_info": listed})
        wanted[name] = np.array([255, 0, 1, 53])[which]
    (base / "annotations" / "panoptic_val2017.json").write_text(json.dumps({"images": [], "annotations": notes}))
    if zipped:
        folder = base / "annotations" / "panoptic_val2017"
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"panoptic_val2017/{file.name}")
                file.unlink()
        folder.rmdir()
    return wanted


def cityscapes(root: Path) -> Labels:
    base, wanted = root / "cityscapes", {}
    train_id = {c.id: c.extra["train_id"] for c in vocab.load("cityscapes").classes}
    for city in ("lindau", "munster"):
        stem = f"{city}/{city}_000000_000019"
        raw = values(len(city), [0, 7, 33, 6, 26])
        picture(base / "leftImg8bit" / "val" / f"{stem}_leftImg8bit.png")
        grey(base / "gtFine" / "val" / f"{stem}_gtFine_labelIds.png", raw)
        wanted[stem] = np.vectorize(lambda c: train_id[int(c)])(raw)
    return wanted
