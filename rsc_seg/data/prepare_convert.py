"""From the labels that public sets are downloaded with to those that detectron2 and Cat-Seg read."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np

from rsc_seg.data import vocab
from rsc_seg.data.prepare_files import encode, read_pixels, read_values, require_size, stored_size
from rsc_seg.data.segmentation import read_ids
from rsc_seg.data.storage import FolderStorage, ImageError, Storage, ZipStorage, first_line
from rsc_seg.errors import UserError

IGNORE = 255
ADE_FULL_CLASSES = 3688  # of release 2021_17_01
ADE_FULL_SHORT_SIDE = 512
CONTEXT_CLASSES = 459


@dataclass(frozen=True)
class Item:
    """One image's labels: the image, the raw labels, the files to write (the labels last), and what else it takes."""

    image: Path
    labels: Path
    outs: tuple[Path, ...]
    extra: Any = None


class Convert(Protocol):
    """Bytes of each of an item's files, or None when no pixel has a class and the set leaves such images out."""

    def __call__(self, item: Item) -> Optional[list[bytes]]: ...


def lookup_table(table: dict[int, int], size: int = 256) -> np.ndarray:
    """(size,) classes by id, -1 for ids that must not occur."""
    lookup = np.full(size, -1, np.int32)
    lookup[list(table)] = list(table.values())
    return lookup


def looked_up(lookup: np.ndarray, ids: np.ndarray, where: Path | str, title: str) -> np.ndarray:
    """(H,W) int32 classes of (H,W) ids; raises UserError, with the file, the id and its pixel, for an unknown one."""
    classes = lookup[np.clip(ids, 0, len(lookup) - 1)]
    wrong = (classes < 0) | (ids < 0) | (ids >= len(lookup))
    if wrong.any():
        y, x = (int(v) for v in np.argwhere(wrong)[0])
        raise UserError(
            f"{where}: label id {int(ids[y, x])} at pixel ({x}, {y}) is outside the class list of {title}; "
            "download the file anew."
        )
    return classes


@dataclass(frozen=True)
class ByTable:
    """One-channel files by a table of 256; `drop_empty` leaves out images in which no pixel has a class."""

    title: str
    lookup: np.ndarray = field(repr=False)
    drop_empty: bool = False

    def __call__(self, item: Item) -> Optional[list[bytes]]:
        """The PNG file of labels."""
        ids = read_values(item.labels)
        require_size(ids.shape, item.labels, item.image)
        classes = looked_up(self.lookup, ids, item.labels, self.title).astype(np.uint8)
        return None if self.drop_empty and (classes == IGNORE).all() else [encode(classes, "PNG")]


def ade20k_150() -> ByTable:
    """1..150 to 0..149, 0 (other) to 255."""
    return ByTable("ADE20K-150", lookup_table({0: IGNORE, **{i: i - 1 for i in range(1, 151)}}))


def coco_stuff_171() -> ByTable:
    """0..181 to 0..170; the 11 ids that COCO-Stuff dropped, and 255, to 255."""
    kept = {c: i for i, c in enumerate(vocab.load("coco_stuff_171").ids)}
    return ByTable("COCO-Stuff", lookup_table({**dict.fromkeys(range(182), IGNORE), **kept, IGNORE: IGNORE}))


def cityscapes() -> ByTable:
    """Label ids 0..33 to train ids 0..18, the rest to 255."""
    labels = vocab.load("cityscapes").classes
    return ByTable("Cityscapes", lookup_table({c.id: c.extra["train_id"] % 256 for c in labels if c.id >= 0}))


def voc(background: int) -> ByTable:
    """1..20 to 0..19, void to 255, 0 to `background`: 255 for VOC 20, 20 for VOC 20b."""
    objects = {i: i - 1 for i in range(1, 21)}
    return ByTable("PASCAL VOC", lookup_table({0: background, IGNORE: IGNORE, **objects}), drop_empty=True)


def shortened_size(width: int, height: int, short_side: int = ADE_FULL_SHORT_SIDE) -> tuple[int, int]:
    """(width, height) with the short side at `short_side` when it is longer than that, else unchanged."""
    if min(width, height) <= short_side:
        return width, height
    if width >= height:
        return round(width / height * short_side), short_side
    return short_side, round(height / width * short_side)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two pixels of the old axis for each of the new one, and their weights in 2048ths, rounded as OpenCV rounds."""
    at = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    part = np.where((low < 0) | (low >= old - 1), 0, at - low).astype(np.float32)
    low = low.clip(0, old - 1)
    weights = [np.rint(w * np.float32(2048)).astype(np.int64) for w in (np.float32(1) - part, part)]
    return low, np.minimum(low + 1, old - 1), weights[0], weights[1]


def resize_linear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H,W,3) uint8 to another size from the two nearest pixels of each axis, without smoothing.

    Equal to OpenCV's INTER_LINEAR, by which the official files are made: its integer steps are followed one by one.
    """
    left, right, left_weight, right_weight = _taps(image.shape[1], width)
    top, bottom, top_weight, bottom_weight = _taps(image.shape[0], height)
    pixels = image.astype(np.int64)
    rows = (pixels[:, left] * left_weight[:, None] + pixels[:, right] * right_weight[:, None]) >> 4  # (H,width,3)
    upper = (rows[top] * top_weight[:, None, None]) >> 16
    lower = (rows[bottom] * bottom_weight[:, None, None]) >> 16
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _before(old: int, new: int) -> np.ndarray:
    step = 1 / (new / old)  # in this order: the rounding of both divisions decides exact ties as OpenCV does
    return np.minimum(np.floor(np.arange(new) * step), old - 1).astype(np.int64)


def resize_nearest(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H,W) integers to another size by the pixel at or before each place, OpenCV's INTER_NEAREST."""
    return labels[_before(labels.shape[0], height)][:, _before(labels.shape[1], width)]


@dataclass(frozen=True)
class AdeFull:
    """ADE20K's full annotation: (R // 10) * 256 + G is the class; image and labels with a short side of at most 512."""

    @staticmethod
    @functools.cache
    def lookup() -> np.ndarray:
        """Classes 0..846 by code, 65535 for the other classes of the release and for pixels without one."""
        frequent = {c: i for i, c in enumerate(vocab.load("ade20k_847").ids)}
        return lookup_table({**dict.fromkeys(range(ADE_FULL_CLASSES + 1), 65535), **frequent}, 26 * 256)

    def __call__(self, item: Item) -> Optional[list[bytes]]:
        """The JPEG file of the image and the 16-bit TIFF file of labels."""
        colours = read_ids(_bytes_of(item.labels), str(item.labels))
        red, green = colours & 255, colours >> 8 & 255
        codes = red // 10 * 256 + green
        require_size(codes.shape, item.labels, item.image, turned=False)
        classes = looked_up(self.lookup(), codes, item.labels, "ADE20K 2021_17_01").astype(np.uint16)
        image = read_pixels(item.image)
        size = shortened_size(classes.shape[1], classes.shape[0])
        if size != (classes.shape[1], classes.shape[0]):
            image, classes = resize_linear(image, *size), resize_nearest(classes, *size)
        return [encode(image, "JPEG"), encode(classes, "TIFF")]


def _bytes_of(path: Path) -> bytes:
    return FolderStorage(path.parent).read(path.name)


@dataclass(frozen=True)
class ContextMat:
    """PASCAL-Context's `LabelMap`, 1..459, in MATLAB files: 0..458, and 459 for pixels with 0."""

    def __call__(self, item: Item) -> Optional[list[bytes]]:
        """The 16-bit TIFF file of labels."""
        from scipy.io import loadmat

        _bytes_of(item.labels)  # an absent or forbidden file has a clearer error of its own
        try:
            ids = np.asarray(loadmat(item.labels)["LabelMap"])
        except KeyError as e:
            raise ImageError(f"{item.labels}: no array LabelMap in this file; take trainval/ of PASCAL-Context.") from e
        except Exception as e:  # a broken file fails in many ways
            raise ImageError(f"{item.labels}: not readable as a MATLAB file: {first_line(e)}.") from e
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ImageError(f"{item.labels}: LabelMap is {ids.dtype} {ids.shape}; it must be a table of integers.")
        require_size(ids.shape, item.labels, item.image)
        table = {0: CONTEXT_CLASSES, **{i: i - 1 for i in range(1, CONTEXT_CLASSES + 1)}}
        classes = looked_up(lookup_table(table, 512), ids.astype(np.int64), item.labels, "PASCAL-Context")
        return [encode(classes.astype(np.uint16), "TIFF")]


@dataclass(frozen=True)
class ContextMasks:
    """PASCAL-Context's run-length masks in trainval_merged.json; later ones lie above earlier ones.

    `Item.extra` holds pairs (category id, mask). Categories beside the 59 cover what lies below them with 255.
    """

    def __call__(self, item: Item) -> Optional[list[bytes]]:
        """The PNG file of labels."""
        from pycocotools import mask as masks

        width, height = stored_size(item.image)
        where = f"{item.labels}: image {item.image.name}"
        ids = np.zeros((height, width), np.int64)
        for category, encoded in item.extra:
            try:
                if list(encoded["size"]) != [height, width]:
                    raise UserError(f"{where}: a mask is {encoded['size']}, but the image is [{height}, {width}].")
                packed = masks.frPyObjects(encoded, height, width) if isinstance(encoded["counts"], list) else encoded
                ids[masks.decode(packed) > 0] = int(category)
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(f"{where}: a mask is not readable ({first_line(e)}); download the file anew.") from e
        table = {i: IGNORE for i in range(CONTEXT_CLASSES + 1)}
        table |= {c: i for i, c in enumerate(vocab.load("pascal_context_59").ids)}
        classes = looked_up(lookup_table(table, 512), ids, where, "PASCAL-Context")
        return [encode(classes.astype(np.uint8), "PNG")]


@functools.cache
def _open_zip(path: Path) -> ZipStorage:
    return ZipStorage(path)


@dataclass(frozen=True)
class PanopticStuff:
    """COCO panoptic PNGs: things are 0, stuff classes 1..53, unlabelled 255; also copied to where detectron2 looks.

    `Item.extra` holds the segments, id to category.
    """

    source: Path

    def __call__(self, item: Item) -> Optional[list[bytes]]:
        """A copy of the panoptic PNG when `item.outs` names one, and the PNG file of labels."""
        storage: Storage = _open_zip(self.source) if self.source.suffix == ".zip" else FolderStorage(self.source)
        name = item.labels.name
        if isinstance(storage, ZipStorage) and not storage.has(name):
            name = f"{self.source.stem}/{name}"
        data = storage.read(name)
        ids = read_ids(data, storage.where(name))
        require_size(ids.shape, storage.where(name), item.image)
        found, inverse = np.unique(ids, return_inverse=True)
        classes = np.full(len(found), IGNORE, np.uint8)
        for k, segment in enumerate(found.tolist()):
            category = item.extra.get(segment, -1)
            if segment and category not in _panoptic_classes():
                raise UserError(f"{storage.where(name)}: segment {segment} has no category in the JSON file beside it.")
            classes[k] = _panoptic_classes()[category] if segment else IGNORE
        labels = encode(classes[inverse].reshape(ids.shape), "PNG")
        return [data, labels] if len(item.outs) > 1 else [labels]


@functools.cache
def _panoptic_classes() -> dict[int, int]:
    classes = vocab.load("coco_panoptic_133").classes
    stuff = {c.id: i + 1 for i, c in enumerate(c for c in classes if not c.extra["isthing"])}
    return {**{c.id: 0 for c in classes}, **stuff}
