"""Labelled sets: images with a class for every pixel, in the layouts that the public sets have on disk."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from rsc_seg.config import require_choice
from rsc_seg.data import vocab
from rsc_seg.data.coco import coco_panoptic, coco_splits, read_json
from rsc_seg.data.source import ImageSource, StoredImages, open_encoded, strict_decoding, thinned
from rsc_seg.data.storage import Storage, missing_split, open_storage
from rsc_seg.errors import UserError

IGNORE = 255
RGB = tuple[int, int, int]
Decode = Callable[[np.ndarray, str, str], np.ndarray]
KINDS = ("auto", "camvid", "plain", "scenes", "ade20k", "cocostuff", "cityscapes", "pascalvoc", "coco")

_CAMVID: dict[str, RGB] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign/symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def distinct_palette(count: int) -> list[RGB]:
    """Colours for classes that have none of their own: hues a golden angle apart, in three levels of brightness."""
    colours = []
    for i in range(count):
        r, g, b = colorsys.hsv_to_rgb((i * 0.618034) % 1.0, 0.85 - 0.25 * (i % 2), (0.95, 0.75, 0.55)[i % 3])
        colours.append((round(r * 255), round(g * 255), round(b * 255)))
    return colours


@dataclass(frozen=True)
class Place:
    """Where a split's images and labels lie, as folders with `{split}`.

    A label has its image's path below its folder, with another ending; `image_end` None means any image ending.
    `table` takes a stored id to its class, 255 for what is not scored. `listing` is a text file that names the images
    of the split, one a line without ending, in their order; None means all images of the folder.
    """

    images: str
    labels: str
    table: dict[int, int]
    image_end: Optional[str] = None
    label_end: str = ".png"
    listing: Optional[str] = None

    def splits(self, storage: Storage) -> list[str]:
        """Splits of which both folders, and the list of images where there is one, exist."""
        parts = [f for f in (self.images, self.labels, self.listing) if f is not None]
        varying = next(f for f in parts if "{split}" in f)
        head, _, tail = varying.partition("{split}")
        names = storage.children(head.rstrip("/"))
        if tail and not tail.startswith("/"):  # a file name that ends after the split
            names = [n.removesuffix(tail) for n in names if n.endswith(tail)]
        return [s for s in names if all(storage.has(f.format(split=s)) for f in parts)]


@dataclass(frozen=True)
class MaskSpec:
    """A set whose labels are one-channel PNG files."""

    title: str
    classes: list[str]
    palette: list[RGB]
    places: tuple[Place, ...]
    split_names: tuple[tuple[str, str], ...] = ()  # ours, theirs


class LabelledSet(ImageSource):
    """Images with a class for every pixel.

    `classes` and `palette` have one entry for each class 0..T-1; `ignore_index` marks pixels that are not scored.
    """

    ignore_index = IGNORE

    def __init__(
        self, images: StoredImages, labels: StoredImages, *, classes: list[str], palette: list[RGB], decode: Decode
    ) -> None:
        self.images = images
        self.label_files = labels
        self.classes = classes
        self.palette = palette
        self._decode = decode

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        return self.images.name(i)

    def where(self, i: int) -> str:
        return self.images.where(i)

    def read(self, i: int) -> bytes:
        return self.images.read(i)

    def labels(self, i: int) -> np.ndarray:
        """(H,W) uint8 classes of image `i`: 0..T-1 and 255.

        Raises UserError when the label file is unreadable, of another size than the image, or holds an unknown id.
        """
        where = self.label_files.where(i)
        raw = read_ids(self.label_files.read(i), where)
        width, height = self.size(i)
        if raw.shape != (height, width):
            raise UserError(
                f"{where}: labels are {raw.shape[1]} x {raw.shape[0]} pixels (width x height), "
                f"but the image {self.where(i)} is {width} x {height}; they must be equal."
            )
        return self._decode(raw, self.label_files.name(i), where)


def read_ids(data: bytes, where: str) -> np.ndarray:
    """(H,W) ids of a label file: grey or palette values as stored, RGB as R + 256 G + 65536 B. Raises ImageError."""
    image = open_encoded(data, where)
    with strict_decoding(where):
        raw = np.asarray(image).astype(np.int64)
    if raw.ndim == 2:
        return raw
    return raw[..., 0] + 256 * raw[..., 1] + 65536 * raw[..., 2] if raw.shape[2] >= 3 else raw[..., 0]


def apply_table(table: dict[int, int], title: str, raw: np.ndarray, label: str, where: str) -> np.ndarray:
    """(H,W) stored ids to (H,W) uint8 classes; raises UserError with `where` and the id when the table lacks one."""
    lookup = np.full(max(table) + 2, -1, np.int16)  # the last entry catches every id above the table
    lookup[list(table)] = list(table.values())
    classes = lookup[np.where(raw < 0, len(lookup) - 1, np.minimum(raw, len(lookup) - 1))]
    if (classes < 0).any():
        raise UserError(f"{where}: label id {int(raw[classes < 0][0])} is outside the class list of {title}.")
    return classes.astype(np.uint8)


def _identity(count: int) -> dict[int, int]:
    return {**{i: i for i in range(count)}, IGNORE: IGNORE}


def _beside(table: dict[int, int]) -> tuple[Place, ...]:
    return (Place("{split}/images", "{split}/labels", table), Place("{split}", "{split}annot", table))


def _camvid_spec(storage: Storage) -> MaskSpec:
    table = {**_identity(len(_CAMVID)), len(_CAMVID): IGNORE}
    return MaskSpec("CamVid", list(_CAMVID), list(_CAMVID.values()), _beside(table))


def _plain_spec(storage: Storage) -> MaskSpec:
    path = storage.root / "classes.json"
    document = read_json(path, "class names and palette")
    try:
        names = [str(n) for n in document["names"]]
        colours = document.get("palette") or distinct_palette(len(names))
        palette = [(int(r), int(g), int(b)) for r, g, b in colours]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f'{path}: expected {{"names": [...], "palette": [[r, g, b], ...]}} ({e!r}).') from e
    if not 0 < len(names) == len(palette) <= IGNORE:
        raise UserError(f"{path}: {len(names)} names and {len(palette)} colours; both must be as many, 1 to {IGNORE}.")
    return MaskSpec(str(path), names, palette, _beside(_identity(len(names))))


def _ade20k_spec(storage: Storage) -> MaskSpec:
    classes = vocab.load("ade20k_150")
    table = {0: IGNORE, **{c: i for i, c in enumerate(classes.ids)}}
    bases = ("", "ADEChallengeData2016/")
    places = tuple(Place(f"{base}images/{{split}}", f"{base}annotations/{{split}}", table) for base in bases)
    names = (("train", "training"), ("val", "validation"))
    return MaskSpec("ADE20K (150 classes)", classes.names, distinct_palette(len(classes)), places, names)


def _cocostuff_spec(storage: Storage) -> MaskSpec:
    classes = vocab.load("coco_stuff_171")
    official = {**{c: i for i, c in enumerate(classes.ids)}, IGNORE: IGNORE}
    labels = (
        ("stuffthingmaps", official),
        ("annotations", official),
        ("stuffthingmaps_detectron2", _identity(len(classes))),
    )
    places = tuple(
        Place(f"{base}{{split}}", f"{folder}/{{split}}", table) for folder, table in labels for base in ("images/", "")
    )
    names = (("train", "train2017"), ("val", "val2017"))
    return MaskSpec("COCO-Stuff (171 classes)", classes.names, distinct_palette(len(classes)), places, names)


def _cityscapes_spec(storage: Storage) -> MaskSpec:
    classes, everything = vocab.load("cityscapes_19"), vocab.load("cityscapes")
    table = {c.id: c.extra["train_id"] % 256 for c in everything.classes if c.id >= 0}
    folders = ("leftImg8bit/{split}", "gtFine/{split}")
    places = (
        Place(*folders, {**table, IGNORE: IGNORE}, "_leftImg8bit.png", "_gtFine_labelIds.png"),
        Place(*folders, _identity(len(classes)), "_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    )
    palette: list[RGB] = [tuple(c.extra["color"]) for c in classes.classes]
    return MaskSpec("Cityscapes (19 classes)", classes.names, palette, places)


def _pascalvoc_spec(storage: Storage) -> MaskSpec:
    classes = vocab.load("pascal_voc_21")
    palette: list[RGB] = [tuple(c.extra["color"]) for c in classes.classes]
    places = tuple(
        Place(
            f"{base}JPEGImages",
            f"{base}SegmentationClass",
            _identity(len(classes)),
            ".jpg",
            listing=f"{base}ImageSets/Segmentation/{{split}}.txt",
        )
        for base in ("VOCdevkit/VOC2012/", "VOC2012/", "")
    )
    return MaskSpec("PASCAL VOC 2012 (21 classes)", classes.names, palette, places)


_SPECS: dict[str, Callable[[Storage], MaskSpec]] = {
    "camvid": _camvid_spec,
    "plain": _plain_spec,
    "scenes": _plain_spec,
    "ade20k": _ade20k_spec,
    "cocostuff": _cocostuff_spec,
    "cityscapes": _cityscapes_spec,
    "pascalvoc": _pascalvoc_spec,
}


def _listed(storage: Storage, listing: str, images_at: str, present: list[str]) -> list[str]:
    """The images that a text file names, in its order; raises UserError for one that is not there."""
    by_stem = {image.rpartition(".")[0]: image for image in present}
    stems = storage.read(listing).decode("utf-8", "replace").split()
    missing = [stem for stem in stems if f"{images_at}/{stem}" not in by_stem]
    if missing:
        raise UserError(
            f"{storage.where(listing)}: names {len(missing)} images of {len(stems)} that are not in "
            f"{storage.where(images_at)} (first: {missing[0]}); complete the images."
        )
    return [by_stem[f"{images_at}/{stem}"] for stem in stems]


def _pair(storage: Storage, place: Place, split: str) -> tuple[list[str], list[str], list[str]]:
    """Images, their label files, and those of the latter that are not there."""
    images_at, labels_at = place.images.format(split=split), place.labels.format(split=split)
    images = [f for f in storage.images(images_at) if place.image_end is None or f.endswith(place.image_end)]
    if place.listing is not None:
        images = _listed(storage, place.listing.format(split=split), images_at, images)
    labels = []
    for image in images:
        stem = image.removesuffix(place.image_end) if place.image_end else image.rpartition(".")[0]
        labels.append(labels_at + stem[len(images_at) :] + place.label_end)
    present = set(storage.files(labels_at))
    return images, labels, [label for label in labels if label not in present]


def open_masks(storage: Storage, spec: MaskSpec, split: str) -> LabelledSet:
    """All images of a split with their PNG labels, from the place of `spec` where fewest labels are missing.

    Raises UserError for another layout, a missing split or missing labels.
    """
    theirs = dict(spec.split_names).get(split, split)
    known = sorted({s for place in spec.places for s in place.splits(storage)})
    places = [p for p in spec.places if theirs in p.splits(storage)]
    if not places:
        ours = {theirs: ours for ours, theirs in spec.split_names}
        if not known:
            place = spec.places[0]
            raise UserError(
                f"{storage.root}: not the layout of {spec.title}: expected {place.images.format(split=theirs)}/ "
                f"and {place.labels.format(split=theirs)}/ there (data.root)."
            )
        raise missing_split(storage.root, split, [ours.get(s, s) for s in known])
    found = [(place, *_pair(storage, place, theirs)) for place in places]
    place, images, labels, missing = min(found, key=lambda f: (not f[1], len(f[3])))
    if not images:
        folder = storage.where(place.images.format(split=theirs))
        raise UserError(f"{folder}: no images of {spec.title} in this folder.")
    if missing:
        count = f"{len(missing)} of {len(images)} images of '{split}' have none"
        raise UserError(f"{storage.where(missing[0])}: no such label file; {count}.")
    decode = partial(apply_table, place.table, spec.title)
    return LabelledSet(
        StoredImages(storage, images),
        StoredImages(storage, labels),
        classes=spec.classes,
        palette=spec.palette,
        decode=decode,
    )


def _open_panoptic(storage: Storage, split: str) -> LabelledSet:
    images, labels, decode = coco_panoptic(storage, split)
    classes = vocab.load("coco_panoptic_133")
    palette: list[RGB] = [tuple(c.extra["color"]) for c in classes.classes]
    return LabelledSet(images, labels, classes=classes.names, palette=palette, decode=decode)


def labelled_kind(storage: Storage) -> Optional[str]:
    """The kind of labelled set that lies there, by its folders; None when it is none of them."""
    if storage.has("scenes.json"):
        return "scenes"
    if storage.has("classes.json"):
        return "plain"
    if any(n.startswith("panoptic_") for n in storage.children("annotations")) and coco_splits(storage):
        return "coco"
    for kind in ("cityscapes", "ade20k", "cocostuff", "pascalvoc", "camvid"):
        if any(place.splits(storage) for place in _SPECS[kind](storage).places):
            return kind
    return None


def _scenes_folder(root: Optional[str]) -> Path:
    from rsc_seg.data import scenes  # composes pictures: needs the packages of the extra `demo`

    return scenes.ensure_scenes(root)


def open_labelled(
    kind: str, root: Optional[str], split: str, limit: Optional[int] = None, every: int = 1
) -> LabelledSet:
    """A labelled set; docs/data.md shows the layouts.

    `every` keeps each n-th image and `limit` the first so many of those. `scenes` composes the embedded set first when
    it is not there yet. Raises UserError for an unknown kind, a root that is not set or not there, a missing split, or
    missing labels.
    """
    require_choice("data.kind", kind, KINDS)
    found_kind = labelled_kind(open_storage(root)) if kind == "auto" else kind
    if found_kind is None:
        raise UserError(f"{root}: no known layout of a labelled set (data.kind=auto); see docs/data.md.")
    storage = open_storage(_scenes_folder(root) if found_kind == "scenes" else root)
    found = (
        _open_panoptic(storage, split)
        if found_kind == "coco"
        else open_masks(storage, _SPECS[found_kind](storage), split)
    )
    for files in (found.images, found.label_files):
        files.files = [files.files[i] for i in thinned(len(files), limit, every)]
    return found


def camvid_splits(storage: Storage) -> list[str]:
    """Splits in CamVid's layout that have labels."""
    return sorted({s for place in _beside({}) for s in place.splits(storage)})


def camvid_images(storage: Storage, split: str) -> StoredImages:
    """Images of `split/images/` or `split/`, with or without labels.

    Raises UserError when neither folder is there, or no image lies in it.
    """
    folder = next((f for f in (f"{split}/images", split) if storage.has(f)), None)
    if folder is None:
        raise missing_split(storage.root, split, camvid_splits(storage))
    files = storage.images(folder)
    if not files:
        raise UserError(f"{storage.where(folder)}: no images in this folder (data.kind=camvid).")
    return StoredImages(storage, files)
