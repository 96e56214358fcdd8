"""A file of boxes held against the images it is for: counts, sizes, recall of ground truth, pictures."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torchvision.ops import box_iou

from rsc_seg.config import DataConfig
from rsc_seg.data.ground_truth import BoxesOf, ground_truth
from rsc_seg.data.images import open_images
from rsc_seg.data.proposals import MAX_AREA, MIN_AREA, Annotated, BoxFile, Coverage
from rsc_seg.data.source import ImageSource
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.viz.boxes import boxes_picture

COUNTS = (20, 50, 100)
_IOU = 0.5


def _open(data: DataConfig, path: Path) -> tuple[ImageSource, BoxFile, Coverage]:
    source = open_images(data.kind, data.root, data.split, data.limit, data.every)
    file = BoxFile(path, "--check")
    return source, file, file.coverage([source.name(i) for i in range(len(source))])


def _corners(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def recall(found: Sequence[np.ndarray], truth: Sequence[np.ndarray], count: int) -> float:
    """The share of ground-truth boxes that one of the first `count` boxes of their image meets at an IoU of 0.5.

    Both are x, y, width, height, image by image. NaN without ground truth.
    """
    hits = total = 0
    for boxes, wanted in zip(found, truth, strict=True):
        total += len(wanted)
        if len(wanted) and len(boxes):
            best = box_iou(_corners(wanted), _corners(boxes[:count])).max(dim=1).values
            hits += int((best >= _IOU).sum())
    return hits / total if total else float("nan")


def _with_area(given: np.ndarray) -> np.ndarray:
    kept: np.ndarray = given[(given[:, 2:] > 0).all(axis=1)]
    return kept


def _truth(source: ImageSource, data: DataConfig) -> BoxesOf | None:
    try:
        return ground_truth(source, data)
    except UserError:
        return None  # a set without boxes: nothing to measure


def check_proposals(data: DataConfig, path: Path) -> list[str]:
    """What a file of boxes holds for the images of `data`, in lines; its boxes count in the file's order.

    Raises UserError for a file of another form or of other images, and for a box outside its image (every image's size
    is looked at).
    """
    source, file, fit = _open(data, path)
    rows, bad = [], 0
    for i in range(len(source)):
        rows.append(_with_area(file.annotated(source.name(i)).boxes))
        try:
            file.check_size(source.name(i), source.size(i))
        except ImageError:
            bad += 1
    counts = np.array([len(boxes) for boxes in rows])
    area = np.concatenate([boxes[:, 2] * boxes[:, 3] for boxes in rows])
    outside = int(((area < MIN_AREA) | (area > MAX_AREA)).sum())
    lines = [
        f"{path}: {counts.sum()} boxes for {len(source) - fit.without} of {len(source)} images, "
        f"{counts.min()} to {counts.max()} an image, {np.median(counts):g} in the middle",
        f"side of a square of the median box: {np.sqrt(np.median(area)):.0f} pixels; "
        f"{outside} boxes below 8 x 8 or above 1024 x 1024 pixels of area",
        f"unreadable images: {bad}; other images in the file: {fit.others}",
    ]
    truth = _truth(source, data)
    if truth is not None:
        wanted = [_with_area(truth(i).boxes) for i in range(len(source))]
        parts = ", ".join(f"{100 * recall(rows, wanted, count):.1f} % by the first {count}" for count in COUNTS)
        lines.append(f"ground-truth boxes met at IoU {_IOU}: {parts} ({sum(map(len, wanted))} boxes)")
    return lines


def _captions(given: Annotated, names: dict[int, str]) -> list[str]:
    known = [names.get(int(c), "") for c in given.categories]
    return ["" if len(names) < 2 else name for name in known]  # one class says nothing


def draw_proposals(data: DataConfig, path: Path, folder: Path, *, pictures: int, boxes: int) -> list[Path]:
    """Draws the first `boxes` boxes of evenly spread images as PNG files in `folder`; returns them.

    Raises UserError as `check_proposals` does, and for numbers below 1.
    """
    if pictures < 1 or boxes < 1:
        raise UserError(f"--pictures {pictures}, --draw-boxes {boxes}: must be 1 or more.")
    source, file, _ = _open(data, path)
    names = {int(row["id"]): str(row.get("name", row["id"])) for row in file.category_rows if "id" in row}
    written = []
    for i in sorted({int(p) for p in np.linspace(0, len(source) - 1, min(pictures, len(source)))}):
        image, given = source.load(i), file.annotated(source.name(i))
        file.check_size(source.name(i), image.size)
        first = [(x, y, x + w, y + h) for x, y, w, h in given.boxes[:boxes].tolist()]
        drawn = boxes_picture(image, first, _captions(given, names)[:boxes])
        target = folder / f"{i:06d}_{PurePosixPath(source.name(i)).stem}.png"
        atomic_write(target, lambda place, drawn=drawn: drawn.save(place))  # type: ignore[misc]
        written.append(target)
    return written
