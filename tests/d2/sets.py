"""A small set on disk in ADE20K's prepared layout, under the names of the embedded scenes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.data.seg_task import TaskSet, open_task_set

RAW = (0, 1, 2, 4, 6, 9)  # prepared values in the label files
NAMES = ["wall", "building", "sky", "tree", "road", "grass"]  # which ADE20K calls so
SIZES = ((40, 60), (60, 40), (48, 48), (33, 71))  # height, width
FOLDERS = {"train": "training", "val": "validation"}


def write_pair(root: Path, split: str, stem: str, size: tuple[int, int], seed: int = 0) -> tuple[Path, Path]:
    """An image of blocks and labels of blocks, with a row of 255."""
    draw = np.random.default_rng(seed)
    base = root / "ADEChallengeData2016"
    image = base / "images" / FOLDERS[split] / f"{stem}.jpg"
    labels = base / "annotations_detectron2" / FOLDERS[split] / f"{stem}.png"
    cells = (size[0] // 6 + 1, size[1] // 6 + 1)
    values = np.kron(draw.choice(RAW, cells), np.ones((6, 6)))[: size[0], : size[1]].astype(np.uint8)
    values[-3:] = 255
    pixels = np.kron(draw.integers(0, 256, (*cells, 3)), np.ones((6, 6, 1)))[: size[0], : size[1]].astype(np.uint8)
    for path, array in ((image, pixels), (labels, values)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return image, labels


def write_set(root: Path, train: int = 7, val: int = 5) -> Path:
    """Both splits; returns `root`."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            write_pair(root, split, f"{split}{i}", SIZES[i % len(SIZES)], seed=i + 100 * (split == "val"))
    return root


def options(root: Path, **changes: Any) -> CatSegDataConfig:
    """Options for that set with its six classes and views of 32 x 48 pixels."""
    given: dict[str, Any] = {
        "root": str(root),
        "train": "scenes_train",
        "test": ["scenes_val"],
        "classes": NAMES,
        "crop": [32, 48],
        "min_size": [40],
        "min_size_test": 40,
        "workers": 0,
    }
    return CatSegDataConfig(**given | changes)


def open_both(data: CatSegDataConfig) -> tuple[TaskSet, TaskSet]:
    """The training and the test set of these options."""
    return open_task_set(data.train, data, training=True), open_task_set(data.test[0], data, training=False)


def fields(batches: Sequence[list[dict[str, Any]]], key: str) -> list[list[Any]]:
    """One field of every sample."""
    return [[sample[key] for sample in batch] for batch in batches]
