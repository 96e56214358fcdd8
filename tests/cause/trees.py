"""Small labelled sets on disk in the layouts that CAUSE reads, and work for the CRF's pool (kept clear of torch)."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def blocks(seed: int, height: int, width: int, high: int, channels: int = 0) -> np.ndarray:
    """Random values 0..high-1 in blocks of four pixels."""
    shape = (-(-height // 4), -(-width // 4), *([channels] if channels else []))
    coarse = np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def cityscapes_tree(root: Path, count: int = 2, size: tuple[int, int] = (32, 64)) -> Path:
    """`count` images a split, label ids 0..33."""
    for split in ("train", "val"):
        for i in range(count):
            stem = f"ulm_{i:06d}_000019"
            put(root / f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png", blocks(i, *size, 256, 3))
            put(root / f"gtFine/{split}/ulm/{stem}_gtFine_labelIds.png", blocks(10 + i, *size, 34))
    return root


def coco_tree(root: Path, count: int = 3, listed: bool = True) -> Path:
    """`count` images a split, ids 0..181 and 255; curated lists that name all but the last, in reverse."""
    for split, lists in (("train2017", ("Coarse",)), ("val2017", ("Coarse", "Coarse_7"))):
        for i in range(count):
            ids = blocks(20 + i, 24, 36, 183)
            ids[ids == 182] = 255
            put(root / f"images/{split}/{i:012d}.png", blocks(i, 24, 36, 256, 3))
            put(root / f"annotations/{split}/{i:012d}.png", ids)
        for name in lists if listed else ():
            path = root / f"curated/{split}/Coco164kFull_Stuff_{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{i:012d}\n" for i in reversed(range(count - 1))))
    return root


def voc_tree(root: Path) -> Path:
    """Three images, of which each split's list names some."""
    base = root / "VOCdevkit/VOC2012"
    for i in range(3):
        ids = blocks(i, 20, 30, 21)
        ids[0] = 255
        put(base / f"JPEGImages/2007_{i:06d}.jpg", blocks(i, 20, 30, 256, 3))
        put(base / f"SegmentationClass/2007_{i:06d}.png", ids)
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000002\n2007_000000\n")
    (lists / "val.txt").write_text("2007_000001\n")
    return root


def plain_tree(root: Path, count: int = 3, size: tuple[int, int] = (30, 45), classes: int = 3) -> Path:
    """Images of blocks in one colour a class; a label's first row is void."""
    colours = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)], np.uint8)[:classes]
    for split in ("train", "val"):
        for i in range(count):
            labels = blocks(100 + i, *size, classes)
            put(root / f"{split}/images/{i}.png", colours[labels])
            labels[0] = 255
            put(root / f"{split}/labels/{i}.png", labels)
    names = ", ".join(f'"class {t}"' for t in range(classes))
    (root / "classes.json").write_text(f'{{"names": [{names}]}}')
    return root


def slow_when_first(probabilities: np.ndarray, image: np.ndarray, settings: Any) -> np.ndarray:
    """The argmax; late for images whose first pixel is 1."""
    time.sleep(0.4 if image[0, 0, 0] == 1 else 0.0)
    return probabilities.argmax(0).astype(np.uint8)


def failing(probabilities: np.ndarray, image: np.ndarray, settings: Any) -> np.ndarray:
    """An error inside the work."""
    raise ValueError(f"no CRF for {image.shape}")


def dying(probabilities: np.ndarray, image: np.ndarray, settings: Any) -> np.ndarray:
    """A process that is killed."""
    os._exit(9)
