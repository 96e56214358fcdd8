"""Boxes from COCO-format files, such as the proposals of an RPN or a set's ground truth."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from rsc_seg.data.coco import read_json
from rsc_seg.data.region_boxes import check_inside
from rsc_seg.errors import UserError

MIN_AREA = 8**2
MAX_AREA = 1024**2
NO_CATEGORY = -1


class Annotated(NamedTuple):
    """Boxes of one image, (N,4) float64 x, y, width, height in original pixels, and (N,) int64 categories or -1."""

    boxes: np.ndarray
    categories: np.ndarray


class Coverage(NamedTuple):
    """How a file of boxes and a set of images fit: images of the set without a box, images of the file not in the set,
    and all images of the file that have boxes."""

    without: int
    others: int
    boxed: int


_NONE = Annotated(np.zeros((0, 4)), np.zeros(0, np.int64))


def _id_in(name: str) -> int | None:
    # COCO's image id is the number in its file name: 000000000139.jpg, COCO_val2014_000000000139.jpg
    digits = PurePosixPath(name).stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else None


class BoxFile:
    """Annotated boxes of images, found by file name or by the image id in it, in the file's order.

    The file is COCO's: a list of annotations with `image_id` and `bbox` (x, y, width, height in original pixels), or a
    dict with `annotations` and perhaps `images` (`id`, `file_name`, `width`, `height`) and `categories`. Scores are not
    used, boxes without a width or height are left out, with `crowds=False` those of crowds, too. `key` is the option
    that named the file, for messages. Raises UserError for a file of another form, a box that is not finite, a box
    outside its image (where the file gives its size), and a file without any box.
    """

    def __init__(self, path: str | Path, key: str = "data.proposals", *, crowds: bool = True) -> None:
        self.path, self.key = Path(path).expanduser(), key
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file ({key}).")
        document = read_json(self.path, f"{key}: boxes in COCO's format")
        try:
            bare = isinstance(document, list)
            annotations = document if bare else document["annotations"]
            images = [] if bare else document.get("images", [])
            self.category_rows: list[dict[str, Any]] = [] if bare else list(document.get("categories", []))
            self._by_image = self._collect(annotations, crowds)
            self._ids = {str(image["file_name"]): image["id"] for image in images}
            self._sizes = {
                i["id"]: (int(i["width"]), int(i["height"])) for i in images if "width" in i and "height" in i
            }
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(
                f"{self.path}: not boxes in COCO's format ({key}): expected annotations with image_id "
                f"and bbox [x, y, width, height] ({e!r})."
            ) from e
        if not self._by_image:
            count = f"{len(annotations)} annotations"
            raise UserError(f"{self.path}: holds no box ({key}; {count}); give a file with boxes, or leave it out.")
        for image, size in self._sizes.items():
            check_inside(self._of(image).boxes, size, f"{self.path}, image_id {image} ({key})")
        self._add_base_names()

    def _collect(self, annotations: list[dict[str, Any]], crowds: bool) -> dict[Any, Annotated]:
        rows: dict[Any, list[tuple[list[float], int]]] = {}
        for place, a in enumerate(annotations):
            x, y, w, h = (float(v) for v in a["bbox"])
            if not all(math.isfinite(v) for v in (x, y, w, h)):
                raise UserError(
                    f"{self.path}: annotation {place} (image_id {a['image_id']}) has the box {a['bbox']}, which is not "
                    f"finite ({self.key}); remove it or write the file anew."
                )
            if w > 0 and h > 0 and (crowds or not a.get("iscrowd")):
                rows.setdefault(a["image_id"], []).append(([x, y, w, h], int(a.get("category_id", NO_CATEGORY))))
        return {
            image: Annotated(np.array([b for b, _ in many], np.float64), np.array([c for _, c in many], np.int64))
            for image, many in rows.items()
        }

    def _add_base_names(self) -> None:
        base: dict[str, list[Any]] = {}
        for file_name, image in self._ids.items():
            base.setdefault(PurePosixPath(file_name).name, []).append(image)
        for name, ids in base.items():
            if len(ids) == 1:  # the same name in two folders would be ambiguous
                self._ids.setdefault(name, ids[0])

    def _of(self, image: Any) -> Annotated:
        return self._by_image.get(image, _NONE)

    def _image(self, name: str) -> Any:
        image = self._ids.get(name, self._ids.get(PurePosixPath(name).name))
        return _id_in(name) if image is None and not self._ids else image

    def annotated(self, name: str) -> Annotated:
        """All boxes of an image of a source, by its name; perhaps none."""
        return self._of(self._image(name))

    def categories(self) -> set[int]:
        """The category ids that occur."""
        return {int(c) for one in self._by_image.values() for c in np.unique(one.categories)}

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Raises UserError when a box of this image lies outside its `size` (width, height)."""
        check_inside(self.annotated(name).boxes, size, f"{self.path}, image '{name}' ({self.key})")

    def coverage(self, names: Iterable[str]) -> Coverage:
        """How the file fits images of these names; raises UserError when it has a box for none of them."""
        wanted = list(names)
        found = {image for image in map(self._image, wanted) if image in self._by_image}
        without = sum(self._image(name) not in self._by_image for name in wanted)
        if not found:
            of_file = [name for name, image in self._ids.items() if image in self._by_image]
            other = f"'{of_file[0]}'" if of_file else f"image_id {next(iter(self._by_image))}"
            raise UserError(
                f"{self.path}: no box for any of the {len(wanted)} images, for example '{wanted[0]}' ({self.key}): "
                f"the file has boxes for {len(self._by_image)} other images, for example {other}; "
                "file names or image ids must agree."
            )
        return Coverage(without, len(self._by_image) - len(found), len(self._by_image))


class Proposals(BoxFile):
    """A file of boxes as the crops take it: those of less than 8 x 8 or more than 1024 x 1024 pixels of area are left
    out, as in CLIPSelf; categories are not used."""

    def boxes(self, name: str) -> np.ndarray:
        """(N,4) float64 xyxy in original pixels for an image of a source, in the file's order; N may be 0."""
        given = self.annotated(name).boxes
        area = given[:, 2] * given[:, 3]
        given = given[(area >= MIN_AREA) & (area <= MAX_AREA)]
        return np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)


@functools.lru_cache(maxsize=2)
def _opened(path: str, key: str, stamp: tuple[int, int]) -> Proposals:
    return Proposals(path, key)


def open_proposals(path: str | Path, key: str = "data.proposals") -> Proposals:
    """The boxes of a file; a file that was opened before and did not change is not read again."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{place}: no such file ({key}).")
    found = place.stat()
    return _opened(str(place), key, (found.st_mtime_ns, found.st_size))
