"""Boxes of many images written as one COCO-format file, by a run that may be broken off."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rsc_seg.data.source import ImageSource
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write

log = logging.getLogger(__name__)

_EVERY = 60.0  # seconds between lines of progress
Found = list[dict[str, Any]]  # annotations of an image without ids, best first


@dataclass(frozen=True)
class Written:
    """What was written: the file, its images and boxes, and the unreadable images that were left out."""

    path: Path
    images: int
    boxes: int
    left_out: int


class _Progress:
    """Lines of what was found so far, beside the file to be: a run that was broken off goes on behind them."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path.with_name(f".{path.name}.partial"), key
        self.rows: dict[int, dict[str, Any]] = self._read()

    def _read(self) -> dict[int, dict[str, Any]]:
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return {}
        if lines[0] != self.key:
            return {}
        try:
            rows = [json.loads(line) for line in lines[1:-1]]  # behind the last line break a line was cut off
            return {int(row["i"]): row for row in rows}
        except (ValueError, KeyError, TypeError):
            log.warning("%s: damaged; all images are looked at anew.", self.path)
            return {}

    def add(self, rows: Iterator[dict[str, Any]]) -> None:
        """Appends rows as they come; the file is written anew first, without a line that was cut off."""
        text = "\n".join([self.key, *map(json.dumps, self.rows.values()), ""])
        atomic_write(self.path, lambda place: place.write_text(text, encoding="utf-8"))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    self.rows[row["i"]] = row
        except OSError as e:
            reason = e.strerror or e
            raise UserError(f"{self.path}: not written ({reason}); free space or choose another place.") from e


def _scan(source: ImageSource, todo: list[int], make: Callable[[Image.Image, int], Found]) -> Iterator[dict[str, Any]]:
    began = said = time.monotonic()
    for done, i in enumerate(todo, 1):
        try:
            image = source.load(i)
            yield {"i": i, "size": list(image.size), "found": make(image, i)}
        except ImageError as e:
            log.warning("left out: %s", e)
            yield {"i": i, "left_out": str(e)}
        now = time.monotonic()
        if now - said > _EVERY:
            said, left = now, (now - began) / done * (len(todo) - done) / 60
            log.info("boxes: %d of %d images, %.0f minutes to go", done, len(todo), left)


def coco_document(source: ImageSource, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A COCO-format document of rows {i, size, found}.

    Image ids are the numbers in `source` plus one, annotation ids count from one, category ids are places in `names`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in rows:
        image, (width, height) = row["i"] + 1, row["size"]
        images.append({"id": image, "file_name": source.name(row["i"]), "width": width, "height": height})
        for one in row["found"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image, **one})
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_boxes(
    path: Path,
    source: ImageSource,
    make: Callable[[Image.Image, int], Found],
    *,
    key: str,
    names: Sequence[str],
    info: dict[str, Any],
) -> Written:
    """Writes what `make` finds on every image of `source` (given the image and its number) into `path`.

    Each image leaves a line in a hidden file beside `path`; a call with the same `key`, which must name all that the
    boxes depend on, goes on behind them. `path` itself is written as a whole or not at all. An unreadable image is
    named in the log and left out. Raises UserError when no box was found, or the files cannot be written.
    """
    progress = _Progress(path, key)
    todo = [i for i in range(len(source)) if i not in progress.rows]
    if len(todo) < len(source):
        log.info("going on behind %d of %d images", len(source) - len(todo), len(source))
    progress.add(_scan(source, todo, make))
    whole = [row for row in (progress.rows[i] for i in range(len(source))) if "found" in row]
    left_out = len(source) - len(whole)
    document = {"info": info, **coco_document(source, whole, names)}
    count = len(document["annotations"])
    if not count:
        progress.path.unlink(missing_ok=True)
        raise UserError(f"{path}: not written: no box was found in {len(source)} images ({left_out} unreadable).")
    text = json.dumps(document)
    atomic_write(path, lambda place: place.write_text(text, encoding="utf-8"))
    progress.path.unlink(missing_ok=True)
    return Written(path, len(whole), count, left_out)
