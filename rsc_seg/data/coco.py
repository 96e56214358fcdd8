"""COCO's layout: where the images of a split lie, and panoptic segments as contiguous classes."""

import json
import re
from pathlib import Path
from typing import Any, Optional

import numpy as np

from rsc_seg.data import vocab
from rsc_seg.data.source import StoredImages
from rsc_seg.data.storage import FolderStorage, Storage, ZipStorage, missing_split
from rsc_seg.errors import UserError


def split_names(split: str) -> list[str]:
    """Folder names that a split may have: `train` is `train2017` first, any other name is taken as it is."""
    return [f"{split}2017", split] if split in ("train", "val", "test", "unlabeled") else [split]


def find_coco_images(storage: Storage, split: str) -> Optional[tuple[Storage, str]]:
    """The storage and folder of a split's images: `train2017/` or `train2017.zip`, at the root or below `images/`.

    None when there is none. A plain folder called `train` is COCO only beside `annotations/`.
    """
    for name in split_names(split):
        if not any(c.isdigit() for c in name) and not storage.has("annotations"):
            continue
        for base in ("", "images/"):
            if storage.has(base + name):
                return storage, base + name
            archive = storage.root / f"{base}{name}.zip"
            if isinstance(storage, FolderStorage) and archive.is_file():
                inside = ZipStorage(archive)
                return inside, name if inside.has(name) else ""
    return None


def coco_splits(storage: Storage) -> list[str]:
    """Names that look like splits of images, for messages."""
    found = set()
    for base in ("", "images"):
        for child in storage.children(base):
            stem = child.removesuffix(".zip")
            if re.fullmatch(r"(train|val|test|unlabeled)\d{4}", stem):
                found.add(stem.removesuffix("2017"))
    return sorted(found)


def coco_images(storage: Storage, split: str) -> StoredImages:
    """All images of a split, sorted by name; raises UserError when the split is missing or empty."""
    found = find_coco_images(storage, split)
    if found is None:
        if coco_splits(storage):
            raise missing_split(storage.root, split, coco_splits(storage))
        wanted = split_names(split)[0]
        places = f"{wanted}/, images/{wanted}/ or {wanted}.zip"
        raise UserError(f"{storage.root}: not COCO's layout (data.kind=coco): expected {places} there.")
    inside, folder = found
    files = inside.images(folder)
    if not files:
        raise UserError(f"{inside.where(folder)}: no images in this folder of COCO's split '{split}' (data.root).")
    return StoredImages(inside, files)


def read_json(path: Path, what: str) -> Any:
    """A JSON file; raises UserError naming the file and `what` it should hold."""
    try:
        return json.loads(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({what}): {e.strerror or e}.") from e
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({what}): {e}.") from e


class PanopticClasses:
    """Segments of a panoptic PNG to the 133 contiguous classes (80 things, 53 stuff) in the order of their ids.

    Pixels of no segment (id 0) become 255. Segments are those that `annotations/panoptic_<split>.json` lists.
    """

    def __init__(self, path: Path) -> None:
        document = read_json(path, "panoptic annotations")
        try:
            files = {i["id"]: i["file_name"] for i in document["images"]}
            self.pairs = sorted((files[a["image_id"]], a["file_name"]) for a in document["annotations"])
            self._category = {
                a["file_name"]: {s["id"]: s["category_id"] for s in a["segments_info"]} for a in document["annotations"]
            }
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{path}: not COCO panoptic annotations: needs images, and annotations with segments_info ({e!r})."
            ) from e
        self.path = path
        self._contiguous = {c: i for i, c in enumerate(vocab.load("coco_panoptic_133").ids)}

    def __call__(self, raw: np.ndarray, label: str, where: str) -> np.ndarray:
        """(H,W) segment ids, R + 256 G + 65536 B, to (H,W) uint8 classes.

        Raises UserError for a segment that the JSON does not list.
        """
        category = self._category[label.rpartition("/")[2]]
        ids, inverse = np.unique(raw, return_inverse=True)
        table = np.full(len(ids), 255, np.uint8)
        for k, segment in enumerate(ids.tolist()):
            if segment == 0:
                continue
            if category.get(segment) not in self._contiguous:
                raise UserError(f"{where}: segment {segment} has no category of COCO panoptic in {self.path}.")
            table[k] = self._contiguous[category[segment]]
        return table[inverse].reshape(raw.shape)


def coco_panoptic(storage: Storage, split: str) -> tuple[StoredImages, StoredImages, PanopticClasses]:
    """Images, panoptic PNGs and their decoding for a split; raises UserError for whatever of the three is missing."""
    images = find_coco_images(storage, split)
    if images is None:
        raise missing_split(storage.root, split, coco_splits(storage))
    for name in split_names(split):
        path = storage.root / "annotations" / f"panoptic_{name}.json"
        if path.is_file():
            break
    else:
        wanted = f"annotations/panoptic_{split_names(split)[0]}.json"
        raise UserError(f"{storage.root}: no {wanted}, which the labels of kind coco need.")
    labels = _panoptic_folder(storage, f"annotations/panoptic_{name}")
    classes = PanopticClasses(path)
    inside, folder = images
    prefix = f"{folder}/" if folder else ""
    return (
        StoredImages(inside, [prefix + image for image, _ in classes.pairs]),
        StoredImages(labels[0], [labels[1] + label for _, label in classes.pairs]),
        classes,
    )


def _panoptic_folder(storage: Storage, folder: str) -> tuple[Storage, str]:
    archive = storage.root / f"{folder}.zip"
    if storage.has(folder):
        return storage, folder + "/"
    if archive.is_file():
        inside = ZipStorage(archive)
        name = folder.rpartition("/")[2]
        return inside, f"{name}/" if inside.has(name) else ""
    raise UserError(
        f"{storage.root}: no {folder}/ or {folder}.zip (panoptic PNGs), which the labels of kind coco need."
    )
