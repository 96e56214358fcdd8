"""A small panoptic set in COCO's layout, all of it from seeds: what the official evaluation was run on, too."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsc_seg.data import vocab

PICTURES = ((200, 150), (150, 200), (256, 256), (61, 300), (260, 200), (320, 97))  # width, height
GREY, CROWDED = 3, 4  # the picture in one channel, and the one with more than 100 segments
BIG_BOX = [0.0, 0.0, 1500.0, 900.0]


@dataclass
class Drawn:
    """Segment ids of one picture and its segments_info."""

    ids: np.ndarray
    info: list[dict[str, Any]] = field(default_factory=list)


def classes() -> list[Any]:
    """COCO's 133."""
    return list(vocab.load("coco_panoptic_133").classes)


def tight_box(mask: np.ndarray) -> list[float]:
    """x, y, width, height around the pixels, COCO's way."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        float(columns[0]),
        float(rows[0]),
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    ]


def _entry(number: int, category: int, box: list[float]) -> dict[str, Any]:
    return {"id": number, "category_id": category, "bbox": box, "area": 1, "iscrowd": int(number % 7 == 0)}


def _listed(drawn: Drawn, category: dict[int, int], state: np.random.RandomState) -> Drawn:
    """Adds the segments that have pixels; every second thing has a box with fractions, as some annotations do."""
    for number, chosen in category.items():
        mask = drawn.ids == number
        if mask.any():
            box = tight_box(mask)
            if number % 2:
                box = [max(box[0] - 0.37, 0.0), box[1] + 0.21, box[2] + 0.63, max(box[3] - 0.4, 1.0)]
            drawn.info.append(_entry(number, chosen, box))
    state.shuffle(drawn.info)  # type: ignore[arg-type]
    return drawn


def _scattered(size: tuple[int, int], state: np.random.RandomState) -> Drawn:
    """Rectangles and ellipses over each other, a thin and a tiny one, lone pixels, and a box that is too large."""
    width, height = size
    ids, category = np.zeros((height, width), np.int64), {}
    all_ids = [c.id for c in classes()]
    rows, columns = np.mgrid[:height, :width]
    for k in range(14):
        number = 1 + k + 256 * int(state.randint(200)) + 65536 * int(state.randint(200))
        x, y = state.randint(width), state.randint(height)
        w, h = state.randint(6, width // 2), state.randint(6, height // 2)
        inside = (abs(columns - x) < w / 2) & (abs(rows - y) < h / 2)
        if k % 2:
            inside = ((columns - x) / (w / 2)) ** 2 + ((rows - y) / (h / 2)) ** 2 < 1
        ids[inside] = number
        category[number] = all_ids[state.randint(len(all_ids))]
    ids[10:14, 10:16], category[70001] = 70001, all_ids[0]
    ids[20:22, 3:-3], category[70002] = 70002, all_ids[-1]
    drawn = _listed(Drawn(ids), category, state)
    for y, x in ((2, 2), (height // 3, width // 3), (height - 3, width // 2)):
        drawn.ids[y, x] = 70003
    drawn.info.append(_entry(70003, all_ids[0], [2.0, 2.0, width / 2, height - 5.0]))
    drawn.ids[-6:, -6:] = 70004
    drawn.info.insert(2, _entry(70004, all_ids[5], BIG_BOX))
    present = set(np.unique(drawn.ids).tolist())
    drawn.info = [entry for entry in drawn.info if entry["id"] in present]
    return drawn


def _crowded(size: tuple[int, int], state: np.random.RandomState) -> Drawn:
    """130 cells of 20 x 20 pixels, each a segment."""
    rows, columns = np.mgrid[: size[1], : size[0]] // 20
    ids = rows * 13 + columns + 1
    all_ids = [c.id for c in classes()]
    category = {number: all_ids[state.randint(len(all_ids))] for number in range(1, 131)}
    return _listed(Drawn(ids), category, state)


def drawn_segments(number: int) -> Drawn:
    """The segments of one of `PICTURES`."""
    state = np.random.RandomState(100 + number)
    return (_crowded if number == CROWDED else _scattered)(PICTURES[number], state)


def picture(number: int) -> Image.Image:
    """The pixels of one of `PICTURES`: coarse noise made smooth."""
    coarse = np.random.RandomState(200 + number).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    found = Image.fromarray(coarse).resize(PICTURES[number], Image.Resampling.BICUBIC)
    return found.convert("L") if number == GREY else found


def informed(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(133, width) class embeddings, not of unit length, that are right for some regions: what sets a class's features
    apart from the others, and as much noise."""
    apart = features - features.mean(0)
    noise = np.random.RandomState(5).standard_normal((133, features.shape[1])).astype(np.float32)
    found = noise * apart.std()
    for label in np.unique(labels):
        found[label] += apart[labels == label].mean(0)
    return found


def save_ids(path: Path, ids: np.ndarray) -> None:
    """A panoptic PNG: R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def write_set(root: Path, drawn: dict[int, Drawn], split: str = "val2017") -> Path:
    """Pictures, PNGs and JSON of these segments by number of picture; returns the JSON's path."""
    images, annotations = [], []
    (root / split).mkdir(parents=True)
    for number, one in drawn.items():
        name = f"{number + 1:012d}.png"
        picture(number).save(root / split / name)
        save_ids(root / "annotations" / f"panoptic_{split}" / name, one.ids)
        width, height = PICTURES[number]
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        annotations.append({"image_id": number + 1, "file_name": name, "segments_info": one.info})
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.extra["isthing"])} for c in classes()]
    path = root / "annotations" / f"panoptic_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_sample(root: Path) -> Path:
    """The whole sample; returns the JSON's path."""
    return write_set(root, {number: drawn_segments(number) for number in range(len(PICTURES))})
