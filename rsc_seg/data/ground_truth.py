"""Ground-truth boxes of a set: COCO's instance annotations, or the instance maps of the embedded scenes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from rsc_seg.config import DataConfig
from rsc_seg.data.coco import split_names
from rsc_seg.data.proposals import Annotated, BoxFile
from rsc_seg.data.segmentation import read_ids
from rsc_seg.data.source import ImageSource
from rsc_seg.errors import UserError

KEY = "rla.boxes=gt"
BoxesOf = Callable[[int], Annotated]


def instances_file(root: str | None, split: str) -> Path | None:
    """`annotations/instances_<split>.json` of COCO's layout; None when there is none."""
    if root is None:
        return None
    places = [Path(root).expanduser() / "annotations" / f"instances_{name}.json" for name in split_names(split)]
    return next((path for path in places if path.is_file()), None)


def _instance_map(where: str) -> Path:
    """The map of instances beside a scene's image: `.../images/x.jpg` and `.../instances/x.png`."""
    image = Path(where)
    return image.parent.parent / "instances" / f"{image.stem}.png"


def instance_boxes(ids: np.ndarray) -> np.ndarray:
    """(N,4) float64 tight boxes x, y, width, height of the instances 1..N of an (H,W) map, in order."""
    found = [cut for cut in ndimage.find_objects(ids) if cut is not None]
    rows = [[x.start, y.start, x.stop - x.start, y.stop - y.start] for y, x in found]
    return np.array(rows, np.float64).reshape(-1, 4)


def ground_truth(source: ImageSource, data: DataConfig) -> BoxesOf:
    """A function from an image's number in `source` to its ground-truth boxes.

    COCO's come from `annotations/instances_<split>.json` below data.root, without crowds; the embedded scenes' from
    the maps of instances beside their images (their photographs have none; categories are -1). Raises UserError where
    none of the images has either.
    """
    path = instances_file(data.root, data.split)
    if path is not None:
        file = BoxFile(path, KEY, crowds=False)
        file.coverage([source.name(i) for i in range(len(source))])
        file.check_pictures(source)
        return lambda i: file.annotated(source.name(i))
    if not any(_instance_map(source.where(i)).is_file() for i in range(len(source))):
        raise UserError(
            f"{data.root or data.kind}: none of the {len(source)} selected pictures has ground-truth boxes ({KEY}): "
            f"the set has no annotations/instances_{split_names(data.split)[0]}.json, and only the embedded scenes "
            "themselves, not the photographs before them, have maps of instances; select other pictures (data.split, "
            "data.limit, data.every), or take proposals, grid or random."
        )
    return lambda i: _from_map(source, i)


def _from_map(source: ImageSource, i: int) -> Annotated:
    path = _instance_map(source.where(i))
    boxes = instance_boxes(read_ids(path.read_bytes(), str(path))) if path.is_file() else np.zeros((0, 4))
    return Annotated(boxes, np.full(len(boxes), -1, np.int64))
