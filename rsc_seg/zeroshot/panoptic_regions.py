"""Pictures with their panoptic segments, one by one, in COCO's layout; the embedded scenes have it, too."""

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from jaxtyping import Int64
from PIL import Image

from rsc_seg.cache_dir import cache_dir
from rsc_seg.config import require_choice
from rsc_seg.data import vocab
from rsc_seg.data.coco import coco_panoptic, read_json, split_names
from rsc_seg.data.segmentation import read_ids
from rsc_seg.data.source import StoredImages, thinned
from rsc_seg.data.storage import Storage, open_storage
from rsc_seg.errors import UserError

KINDS = ("auto", "coco", "scenes")
COCO_CLASSES = "coco_panoptic_133"
_MAKE_SCENES = "make them with tools/make_scenes.py --layouts coco, or leave data.root out"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Category:
    """A class of the set; things have instances and boxes of their own."""

    id: int
    name: str
    thing: bool


@dataclass(frozen=True)
class Segment:
    """A segment that the annotations list: its id in the PNG, its class 0..T-1, and its box x, y, width, height."""

    id: int
    label: int
    thing: bool
    box: Box


class PanopticRegions:
    """Pictures and their segments in the order of the annotations, sorted by the pictures' names.

    `categories` are the set's classes by ascending id. Nothing but the annotations is kept in memory.
    """

    def __init__(
        self,
        images: StoredImages,
        maps: StoredImages,
        segments: list[tuple[Segment, ...]],
        categories: list[Category],
        annotations: Path,
    ) -> None:
        self.images, self.maps, self.segments, self.categories = images, maps, segments, categories
        self.annotations = annotations
        self._fingerprint: Optional[str] = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Path of picture `i` inside the set."""
        return self.images.name(i)

    def where(self, i: int) -> str:
        """Full place of the PNG of picture `i`, for messages."""
        return self.maps.where(i)

    def fingerprint(self) -> str:
        """A hash of annotations, pictures and PNGs, byte by byte, made once."""
        if self._fingerprint is None:
            digest = hashlib.sha256(hashlib.sha256(self.annotations.read_bytes()).digest())
            for files in (self.images, self.maps):
                digest.update(files.fingerprint().encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def load(self, i: int) -> tuple[Image.Image, Int64[np.ndarray, "H W"]]:
        """Picture `i` in RGB and the segment id of every pixel, 0 for none.

        Raises UserError naming the PNG when it is unreadable, of another size than the picture, or holds a segment that
        the annotations do not list.
        """
        image, where = self.images.load(i), self.where(i)
        ids = read_ids(self.maps.read(i), where)
        width, height = image.size
        if ids.shape != (height, width):
            raise UserError(
                f"{where}: segments of {ids.shape[1]} x {ids.shape[0]} pixels (width x height), but the picture "
                f"{self.images.where(i)} is {width} x {height}; they must be equal."
            )
        unlisted = sorted(set(np.unique(ids).tolist()) - {0} - {segment.id for segment in self.segments[i]})
        if unlisted:
            raise UserError(
                f"{where}: holds segment {unlisted[0]} ({len(unlisted)} in all), which {self.annotations} does not "
                "list for this picture; PNG and JSON must belong together."
            )
        return image, ids


def _category(row: Any) -> Category:
    return Category(int(row["id"]), str(row["name"]), bool(row["isthing"]))


def _categories(document: dict[str, Any], path: Path) -> list[Category]:
    """The file's classes by ascending id; COCO's 133 where it has none."""
    if not document.get("categories"):
        return [Category(c.id, c.name, bool(c.extra["isthing"])) for c in vocab.load(COCO_CLASSES).classes]
    try:
        found = sorted((_category(row) for row in document["categories"]), key=lambda c: c.id)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: categories need id, name and isthing ({e!r}).") from e
    twice = [number for number, count in Counter(c.id for c in found).items() if count > 1]
    if twice:
        raise UserError(f"{path}: category id {twice[0]} is listed twice.")
    return found


def _box(row: dict[str, Any], where: str) -> Box:
    try:
        x, y, width, height = (float(value) for value in row["bbox"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{where} has no bbox of four numbers ({e!r}).") from e
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
        raise UserError(f"{where} has the bbox {row['bbox']}; it must be x, y, width, height, none of them infinite.")
    return x, y, width, height


def _repeated(values: list[Any]) -> list[Any]:
    """What occurs more than once, by its JSON text: a malformed value need not be hashable."""
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return [values[texts.index(text)] for text, count in Counter(texts).items() if count > 1]


def _explain(path: Path) -> None:
    """Raises UserError for a segment, an annotation or a picture that is malformed, by its name."""
    document = read_json(path, "panoptic annotations")
    try:
        images, annotations = document["images"], document["annotations"]
        for key in ("id", "file_name"):
            twice = _repeated([image[key] for image in images])
            if twice:
                raise UserError(f"{path}: the picture with {key} {twice[0]} is listed twice under images; remove one.")
        known = [json.dumps(image["id"]) for image in images]
        for annotation in annotations:
            file = annotation["file_name"]
            for number, row in enumerate(annotation["segments_info"], start=1):
                _check_segment(row, f"{path}: segment", f"of {file}", number)
    except (KeyError, TypeError, AttributeError):
        return  # not this layout at all: said by the reader of the layout
    ids = set(known)
    for annotation in annotations:
        if "image_id" not in annotation or json.dumps(annotation["image_id"]) not in ids:
            raise UserError(
                f"{path}: {annotation['file_name']} has image_id {annotation.get('image_id')}, which no picture under "
                "images has; mend the file."
            )
    twice = _repeated([annotation["image_id"] for annotation in annotations])
    if twice and len({a["file_name"] for a in annotations}) == len(annotations):
        raise UserError(f"{path}: image_id {twice[0]} has more than one entry under annotations; join them.")


def _check_segment(row: dict[str, Any], start: str, end: str, number: int) -> None:
    for key in ("id", "category_id"):
        name = row.get("id", f"number {number}")
        if key not in row:
            raise UserError(f"{start} {name} {end} has no {key}; mend the file.")
        if not isinstance(row[key], int) or isinstance(row[key], bool):
            what = "id" if key == "id" else f"category_id {row[key]}"
            raise UserError(f"{start} {name} {end}: its {what} must be a whole number.")


def _annotations_path(storage: Storage, split: str) -> Optional[Path]:
    paths = (storage.root / "annotations" / f"panoptic_{name}.json" for name in split_names(split))
    return next((path for path in paths if path.is_file()), None)


def _segments(annotation: dict[str, Any], by_id: dict[int, tuple[int, Category]], path: Path) -> tuple[Segment, ...]:
    file, found = annotation["file_name"], []
    for row in annotation["segments_info"]:
        where = f"{path}: segment {row['id']} of {file}"
        if row["category_id"] not in by_id:
            raise UserError(
                f"{where} has category_id {row['category_id']}, which is none of the {len(by_id)} categories of this "
                "set; mend the file."
            )
        label, category = by_id[row["category_id"]]
        found.append(Segment(int(row["id"]), label, category.thing, _box(row, where)))
    twice = [number for number, count in Counter(segment.id for segment in found).items() if count > 1]
    if twice:
        raise UserError(f"{path}: segment {twice[0]} of {file} is listed twice.")
    return tuple(found)


def _scenes_root(root: Optional[str]) -> Path:
    """The folder of the embedded scenes in COCO's layout; composed in the cache folder when `root` is None."""
    from rsc_seg.data import scenes  # composes pictures: needs the packages of the extra `demo`

    if root is None:
        wanted = scenes.SceneSet(layouts=("plain", "coco"))
        folder = cache_dir() / "scenes" / wanted.folder_name()
        if scenes.read_manifest(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            scenes.write_scenes(folder, wanted)
        return scenes.layout_root(folder, "coco")
    folder = Path(root).expanduser()
    for found in (scenes.layout_root(folder, "coco"), folder):
        if (found / "annotations").is_dir():
            return found
    raise UserError(f"{folder}: no scenes in COCO's layout (data.kind=scenes); {_MAKE_SCENES}.")


def open_panoptic_regions(
    kind: str, root: Optional[str], split: str, limit: Optional[int] = None, every: int = 1
) -> PanopticRegions:
    """Pictures with panoptic segments of `auto`, `coco` or `scenes`; docs/regions_eval.md shows the layout.

    `every` keeps each n-th picture and `limit` the first so many of those. Classes are those of the annotations, by
    ascending id; COCO's 133 where the file lists none. Raises UserError for a set without panoptic labels, pictures or
    PNGs that are not there, an unknown category id, a picture or a segment listed twice, a segment without id,
    category_id or box, an image_id of no picture.
    """
    require_choice("data.kind", kind, KINDS)
    if kind == "auto":
        storage = open_storage(root)
        kind = "scenes" if storage.has("scenes.json") else "coco"
    storage = open_storage(_scenes_root(root) if kind == "scenes" else root)
    described = _annotations_path(storage, split)
    if described is not None:
        _explain(described)
    images, maps, decode = coco_panoptic(storage, split)
    path = decode.path
    document = read_json(path, "panoptic annotations")
    categories = _categories(document, path)
    by_id = {category.id: (label, category) for label, category in enumerate(categories)}
    by_file = {annotation["file_name"]: annotation for annotation in document["annotations"]}
    if len(by_file) != len(document["annotations"]):
        twice = Counter(a["file_name"] for a in document["annotations"]).most_common(1)[0][0]
        raise UserError(f"{path}: {twice} has more than one entry under annotations; join them.")
    kept = thinned(len(images), limit, every)
    if not len(kept):
        raise UserError(f"{path}: lists no picture with segments.")
    pngs = [decode.pairs[i][1] for i in kept]
    images.files, maps.files = [images.files[i] for i in kept], [maps.files[i] for i in kept]
    segments = [_segments(by_file[png], by_id, path) for png in pngs]
    return PanopticRegions(images, maps, segments, categories, path)
