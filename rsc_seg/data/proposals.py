"""Boxes from COCO-format files, such as the proposals of an RPN or a set's ground truth."""

import functools
import itertools
import logging
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from rsc_seg.data.coco import read_json
from rsc_seg.data.region_boxes import check_inside
from rsc_seg.data.source import ImageSource
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)

MIN_AREA = 8**2
MAX_AREA = 1024**2
NO_CATEGORY = -1
LOOKED_AT = 2000  # pictures whose headers are read before a run


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
    used. Boxes without width or height are kept in their places, since CLIPSelf's draw counts them; a negative side
    becomes 0. With `crowds=False` those of crowds are left out, and a category that is no number counts as none unless
    `labelled`. `key` is the option that named the file, for messages. Raises UserError for a file of another form, a
    box that is not finite, a box outside its image (where the file gives its size), and a file without any box that
    has an area.
    """

    def __init__(
        self, path: str | Path, key: str = "data.proposals", *, crowds: bool = True, labelled: bool = False
    ) -> None:
        self.path, self.key, self._labelled = Path(path).expanduser(), key, labelled
        self._looked_at: set[str] = set()
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
        self._boxed = {image for image, own in self._by_image.items() if (own.boxes[:, 2:] > 0).all(axis=1).any()}
        if not self._boxed:
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
            if crowds or not a.get("iscrowd"):
                box = [x, y, max(w, 0.0), max(h, 0.0)]
                rows.setdefault(a["image_id"], []).append((box, self._category(a.get("category_id", NO_CATEGORY))))
        return {
            image: Annotated(np.array([b for b, _ in many], np.float64), np.array([c for _, c in many], np.int64))
            for image, many in rows.items()
        }

    def _category(self, given: Any) -> int:
        try:
            return int(given)
        except (TypeError, ValueError):
            if self._labelled:
                raise
            return NO_CATEGORY

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

    def check_pictures(self, source: ImageSource, most: int = LOOKED_AT) -> None:
        """Raises UserError when a box lies outside one of the first `most` pictures of which the file gives no size.

        Sizes come from the pictures' headers; unreadable ones are passed over, and nothing is read twice.
        """
        unknown = (
            i
            for i in range(len(source))
            if (image := self._image(source.name(i))) in self._boxed and image not in self._sizes
        )
        for i in itertools.islice(unknown, most):
            if source.where(i) in self._looked_at:
                continue
            self._looked_at.add(source.where(i))
            try:
                size = source.size(i)
            except ImageError:
                continue
            self.check_size(source.name(i), size)

    def coverage(self, names: Iterable[str]) -> Coverage:
        """How the file fits images of these names; raises UserError when it has a box for none of them.

        Boxes without width or height do not count.
        """
        wanted = list(names)
        found = {image for image in map(self._image, wanted) if image in self._boxed}
        without = sum(self._image(name) not in self._boxed for name in wanted)
        if not found:
            of_file = [name for name, image in self._ids.items() if image in self._boxed]
            other = f"'{of_file[0]}'" if of_file else f"image_id {next(i for i in self._by_image if i in self._boxed)}"
            raise UserError(
                f"{self.path}: no box for any of the {len(wanted)} images, for example '{wanted[0]}' ({self.key}): "
                f"the file has boxes for {len(self._boxed)} other images, for example {other}; "
                "file names or image ids must agree."
            )
        return Coverage(without, len(self._boxed) - len(found), len(self._boxed))

    def warn_of_others(self, names: Iterable[str]) -> None:
        """Logs how many images with boxes are not among `names`, if any; raises UserError as `coverage` does."""
        wanted = list(names)
        found = self.coverage(wanted)
        if found.others:
            _log.warning(
                "%s: %d of its %d images with boxes are none of the %d images of this run (%s).",
                *(self.path, found.others, found.boxed, len(wanted), self.key),
            )


class Proposals(BoxFile):
    """A file of boxes as the crops take it: those of less than 8 x 8 or more than 1024 x 1024 pixels of area are left
    out (before any are picked, and at once those without width or height); categories are not used."""

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
