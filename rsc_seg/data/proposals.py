"""Boxes from a COCO-format file, such as the proposals of an RPN."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rsc_seg.data.coco import read_json
from rsc_seg.errors import UserError

MIN_AREA = 8**2
MAX_AREA = 1024**2


def _id_in(name: str) -> int | None:
    # COCO's image id is the number in its file name: 000000000139.jpg, COCO_val2014_000000000139.jpg
    digits = PurePosixPath(name).stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else None


class Proposals:
    """Boxes of images, found by file name or by the image id in it.

    The file is COCO's: a list of annotations with `image_id` and `bbox` (x, y, width, height in original pixels), or a
    dict with `annotations` and `images` (`id`, `file_name`). Category and score are not used. Boxes of less than 8 x 8
    or more than 1024 x 1024 pixels of area are left out, as in CLIPSelf. Raises UserError for a file of another form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file (data.proposals).")
        document = read_json(self.path, "data.proposals: boxes in COCO's format")
        try:
            bare = isinstance(document, list)
            self._boxes = self._by_image(document if bare else document["annotations"])
            images = [] if bare else document.get("images", [])
            self._ids = {str(image["file_name"]): image["id"] for image in images}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(
                f"{self.path}: not boxes in COCO's format (data.proposals): expected annotations with image_id "
                f"and bbox [x, y, width, height] ({e!r})."
            ) from e
        self._add_base_names()

    def _by_image(self, annotations: list[dict[str, Any]]) -> dict[Any, np.ndarray]:
        rows: dict[Any, list[list[float]]] = {}
        for a in annotations:
            x, y, w, h = (float(v) for v in a["bbox"])
            if w > 0 and h > 0 and MIN_AREA <= w * h <= MAX_AREA:
                rows.setdefault(a["image_id"], []).append([x, y, x + w, y + h])
        return {image: np.array(boxes, np.float64) for image, boxes in rows.items()}

    def _add_base_names(self) -> None:
        base: dict[str, list[Any]] = {}
        for file_name, image in self._ids.items():
            base.setdefault(PurePosixPath(file_name).name, []).append(image)
        for name, ids in base.items():
            if len(ids) == 1:  # the same name in two folders would be ambiguous
                self._ids.setdefault(name, ids[0])

    def boxes(self, name: str) -> np.ndarray:
        """(N,4) float64 xyxy in original pixels for an image of a source, in the file's order; N may be 0."""
        image = self._ids.get(name, self._ids.get(PurePosixPath(name).name))
        if image is None and not self._ids:
            image = _id_in(name)
        return self._boxes.get(image, np.zeros((0, 4)))
