"""Writes golden/clipself_boxes.npz: what the official CLIPSelf data code makes of seeded pictures.

    python tests/parity/make_boxes_golden.py CHECKOUT [--out DIR]

CHECKOUT is a clone of github.com/wusize/CLIPSelf; its imports need einops, ftfy and regex besides this project's
packages. What the official code draws (shuffles, layouts) is recorded beside its results, so that a test can give the
same draws. Tests take pictures and annotations from this file. The official code is called here and is no part of this
project.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CROP, MOST = 20, 20  # pixels of a crop's side, boxes of an image
# name: width, height, side of the frame, boxes, seed of the draws
PICTURES = {
    "wide": (200, 150, 80, 26, 5),
    "tall": (97, 213, 112, 9, 1),
    "square": (64, 64, 96, 3, 0),
    "street": (333, 88, 64, 24, 7),
    "bare": (103, 77, 56, 0, 2),
}
NOUNS = 7


def picture(name: str) -> Image.Image:
    """A smooth picture with a little noise, from numpy's RandomState, whose numbers never change between versions."""
    width, height = PICTURES[name][:2]
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 110 * np.sin(columns / (7 + 3 * k) + k) * np.cos(rows / (9 - 2 * k)) for k in range(3)]
    noise = np.random.RandomState(width).uniform(-3, 3, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8))


def annotations(name: str) -> list[dict[str, Any]]:
    """Boxes inside the picture, among them thin, tiny and whole ones, each with one of `NOUNS` classes."""
    width, height, _, count, _ = PICTURES[name]
    rng = np.random.RandomState(height)
    rows: list[list[float]] = []
    for k in range(count):
        share = rng.uniform(0.02, 0.9, 2) ** (2 if k % 3 else 1)
        w, h = np.maximum(1.0, share * (width, height))
        w, h = max(w, h / 12), max(h, w / 12)  # the official code fails on a crop that is resized to no pixel
        x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
        rows.append([round(float(v), 2) for v in (x, y, w, h)])
    if count:
        rows[1], rows[2] = [3.0, 5.0, 8.0, 8.0], [0.0, 0.0, float(width), float(height)]
    if count > 5:
        rows[4], rows[5] = [1.5, 2.5, 6.3, height / 2], [3.0, 5.0, 8.0, 7.99]
    return [
        {"id": i + 1, "image_id": 1, "category_id": int(rng.randint(NOUNS)) * 3 + 2, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(rows)
    ]


@contextmanager
def _recorded(draws: dict[str, list[Any]]) -> Iterator[None]:
    """Python's shuffle and choice as they are, with their results kept."""
    shuffle, choice = random.shuffle, random.choice

    def noted_shuffle(values: list[Any]) -> None:
        shuffle(values)
        draws["orders"].append(list(values))

    def noted_choice(values: Any) -> Any:
        draws["choices"].append(choice(values))
        return draws["choices"][-1]

    random.shuffle, random.choice = noted_shuffle, noted_choice  # type: ignore[assignment]
    try:
        yield
    finally:
        random.shuffle, random.choice = shuffle, choice


def _grey_levels(x: Any) -> np.ndarray:
    """(...,3,H,W) normalised to (...,H,W,3) bytes."""
    values = x.double().numpy() * np.array(STD).reshape(3, 1, 1) + np.array(MEAN).reshape(3, 1, 1)
    return np.moveaxis(np.rint(values * 255), -3, -1).astype(np.uint8)


def _one(name: str, official: Any, transforms: Callable[[int], Any], folder: Path) -> dict[str, np.ndarray]:
    """What the three official data sets give for a picture, and the draws behind it."""
    width, height, side, count, seed = PICTURES[name]
    picture(name).save(folder / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": annotations(name),
        "categories": [{"id": 3 * k + 2, "name": f"noun {k}"} for k in range(NOUNS)],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    args = SimpleNamespace(
        min_size=8, max_size=1024, train_ceph_root="", train_ratio=1.0, max_boxes=MOST, crop_scale=1.0
    )
    both, found = transforms(side), {}
    for kind, make in {
        "proposals": lambda: official.ProposalDistillDataset(path, both, folder, crop_size=CROP, args=args),
        "grid": lambda: official.GridDistillDataset(path, both, folder, max_split=6, crop_size=CROP, args=args),
    }.items():
        draws: dict[str, list[Any]] = {"orders": [], "choices": []}
        with _recorded(draws):
            random.seed(seed)
            frame, boxes, crops = make()[0]
        valid = boxes[:, 4] > 0.5
        found |= {f"{name}/{kind}/boxes": boxes[valid, :4].numpy(), f"{name}/{kind}/crops": _grey_levels(crops[valid])}
        found[f"{name}/{kind}/order"] = np.array(draws["orders"][-1], np.int64)
        found[f"{name}/frame"] = _grey_levels(frame)
        if kind == "grid":
            found[f"{name}/grid/layout"] = np.array(draws["choices"][-1])
    if count:
        found[f"{name}/nouns"] = official.COCORegionCLIPDataset(path, both, folder, args=args)[0][1].numpy()
    return found


def _stand_ins() -> None:
    """Packages that the official data code imports but does not need here."""
    panoptic, utils = ModuleType("panopticapi"), ModuleType("panopticapi.utils")
    six, moves = ModuleType("six"), ModuleType("six.moves")
    panoptic.utils, six.moves, moves.map, moves.zip = utils, moves, map, zip  # type: ignore[attr-defined]
    for module in (panoptic, utils, six, moves):
        sys.modules.setdefault(module.__name__, module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="clone of github.com/wusize/CLIPSelf")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder for the file")
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout.resolve() / "src"))
    _stand_ins()
    from open_clip.transform import det_image_transform, image_transform  # the checkout's own
    from training import data as official

    def transforms(side: int) -> list[Any]:
        return [
            det_image_transform(side, is_train=False),
            image_transform(CROP, is_train=False, resize_longest_max=True),
        ]

    commit = subprocess.check_output(["git", "-C", str(args.checkout), "rev-parse", "HEAD"], text=True).strip()
    arrays: dict[str, Any] = {"commit": np.array(commit)}
    with tempfile.TemporaryDirectory() as folder:
        for name in PICTURES:
            arrays |= _one(name, official, transforms, Path(folder))
        grid = official.GridDistillDataset(
            Path(folder) / "boxes.json",
            transforms(64),
            folder,
            max_split=6,
            args=SimpleNamespace(train_ratio=1.0, max_boxes=MOST),
        )
    arrays["layouts"] = np.array(grid.choices)
    arrays |= {f"cells/{m}x{n}": cells.numpy() for (m, n), cells in grid.box_templates.items()}
    np.savez_compressed(args.out / "clipself_boxes.npz", **arrays)


if __name__ == "__main__":
    main()
