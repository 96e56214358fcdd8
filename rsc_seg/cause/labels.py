"""The labelled sets of CAUSE: classes, label tables, lists of images, and how each set is cropped for training."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rsc_seg.config import require_choice
from rsc_seg.data import vocab
from rsc_seg.data.segmentation import (
    IGNORE,
    RGB,
    LabelledSet,
    MaskSpec,
    Place,
    distinct_palette,
    open_labelled,
    open_masks,
)
from rsc_seg.data.source import thinned
from rsc_seg.data.storage import Storage, open_storage
from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)
_COCO_IDS = 182
_COCO_SPLITS = {"train": "train2017", "val": "val2017"}
_CURATED = "curated/{split}/Coco164kFull_Stuff_Coarse"

CropPlan = tuple[tuple[str, float], ...]
FIVE: CropPlan = (("five", 0.5),)


@dataclass(frozen=True)
class CauseSet:
    """How CAUSE takes a labelled set.

    `crops`: training crops of an image as (five | ten, share of both sides). `squash`: images become square by
    stretching, else by a centre crop. `folder`: where the set lies below the official data folder. `cropped`: where the
    official scripts keep stored crops below it.
    """

    name: str
    title: str
    crops: CropPlan
    folder: str = ""
    squash: bool = False
    cropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenedSet:
    """A split of a set: `images` says which list of images was taken, `stored_crops` whether they are crops already."""

    rule: CauseSet
    data: LabelledSet
    images: str
    stored_crops: bool = False

    @functools.cached_property
    def image_digest(self) -> str:
        """A hash of all image files; reads them once."""
        _log.info("%s: hashing %d image files, by which kept tokens are found", self.rule.title, len(self.data))
        return self.data.fingerprint()

    @functools.cached_property
    def label_digest(self) -> str:
        """A hash of classes and label files; reads them once."""
        _log.info("%s: hashing %d label files", self.rule.title, len(self.data))
        text = json.dumps([self.rule.name, self.data.classes]) + self.data.label_files.fingerprint()
        return hashlib.sha256(text.encode()).hexdigest()


_SETS = (
    CauseSet(
        "cityscapes",
        "Cityscapes (27 classes)",
        FIVE,
        "cityscapes",
        cropped=("cityscapes/cropped/cityscapes_five_crop_0.5",),
    ),
    CauseSet(
        "cocostuff27",
        "COCO-Stuff (27 classes)",
        FIVE,
        "cocostuff",
        # the official writer and the official reader disagree about the name
        cropped=("cocostuff/cropped/cocostuff_five_crop_0.5", "cocostuff27/cropped/cocostuff27_five_crop_0.5"),
    ),
    CauseSet("cocostuff171", "COCO-Stuff (171 classes)", (("ten", 0.5), ("ten", 0.8)), "cocostuff"),
    CauseSet("coco81", "COCO (80 things and one for all stuff)", (("ten", 0.5), ("ten", 0.8)), "cocostuff"),
    CauseSet(
        "pascalvoc",
        "PASCAL VOC 2012 (21 classes)",
        tuple(("ten", ratio) for ratio in (0.3, 0.4, 0.5, 0.6, 0.7)),
        "pascalvoc",
        squash=True,
    ),
    CauseSet("scenes", "embedded scenes", FIVE),
    CauseSet("camvid", "CamVid (11 classes)", FIVE),
    CauseSet("plain", "a set of one's own", FIVE),
)
CAUSE_SETS: dict[str, CauseSet] = {s.name: s for s in _SETS}


def _cityscapes() -> MaskSpec:
    """labelId - 7 as the class; everything below 7 is not scored."""
    classes = vocab.load("cityscapes_27")
    ids = {c.id: IGNORE for c in vocab.load("cityscapes").classes if c.id >= 0}
    table = {**ids, **{c.extra["label_id"]: c.id for c in classes.classes}, IGNORE: IGNORE}
    place = Place("leftImg8bit/{split}", "gtFine/{split}", table, "_leftImg8bit.png", "_gtFine_labelIds.png")
    palette: list[RGB] = [tuple(c.extra["color"]) for c in classes.classes]
    return MaskSpec(CAUSE_SETS["cityscapes"].title, classes.names, palette, (place,))


def _coco_classes(name: str) -> tuple[list[str], dict[int, int]]:
    """Class names, and the class of every stored id."""
    if name == "cocostuff27":
        coarse = vocab.load("coco_stuff_27")
        return coarse.names, {fine: c.id for c in coarse.classes for fine in c.extra["fine_ids"]}
    fine = vocab.load("coco_stuff_171").classes
    if name == "cocostuff171":
        return [c.name for c in fine], {c.id: k for k, c in enumerate(fine)}
    things = [c for c in fine if c.extra["isthing"]]
    table = {i: 0 for i in range(_COCO_IDS)}
    return ["stuff", *(c.name for c in things)], {**table, **{c.id: k + 1 for k, c in enumerate(things)}}


def _curated(name: str, split: str) -> str:
    """The official list of a split's images."""
    return _CURATED.format(split=split) + ("_7.txt" if name == "cocostuff27" and split == "val2017" else ".txt")


def _cocostuff(name: str, storage: Storage, split: str) -> tuple[LabelledSet, str]:
    """The official layout, images as the curated list names them; all images of the split where there is no list."""
    names, table = _coco_classes(name)
    table = {**table, IGNORE: IGNORE}
    theirs = _COCO_SPLITS.get(split, split)
    listing = _curated(name, theirs)
    listed = listing if storage.has(listing) else None
    places = tuple(
        Place(images, f"{labels}/{{split}}", table, listing=listed)
        for labels in ("annotations", "stuffthingmaps")
        for images in ("images/{split}", "{split}")
    )
    spec = MaskSpec(CAUSE_SETS[name].title, names, distinct_palette(len(names)), places, tuple(_COCO_SPLITS.items()))
    data = open_masks(storage, spec, split)
    if listed is None:
        _log.warning(
            "%s: no such list of images; all images of '%s' are taken, and scores of other lists do not compare",
            storage.where(listing),
            split,
        )
    return data, listed or "all images of the split"


def _storage(rule: CauseSet, root: Optional[str]) -> Storage:
    """The set's own folder, or the folder above it where several sets lie, as the official scripts have it."""
    if root is not None and rule.folder and (Path(root).expanduser() / rule.folder).is_dir():
        return open_storage(Path(root).expanduser() / rule.folder)
    return open_storage(root)


def _thin(data: LabelledSet, limit: Optional[int], every: int) -> LabelledSet:
    for files in (data.images, data.label_files):
        files.files = [files.files[i] for i in thinned(len(files), limit, every)]
    return data


def open_cause_set(
    name: str, root: Optional[str], split: str, limit: Optional[int] = None, every: int = 1
) -> OpenedSet:
    """A split (train, val) of one of `CAUSE_SETS`; docs/data.md shows the layouts.

    `every` keeps each n-th image and `limit` the first so many of those. `scenes` composes the embedded set first when
    it is not there. Raises UserError for an unknown set, another layout, missing labels, or no images.
    """
    require_choice("dataset", name, tuple(CAUSE_SETS))
    rule = CAUSE_SETS[name]
    images = "all images of the split"
    if name in ("scenes", "camvid", "plain"):
        data = open_labelled(name, root, split)
    elif name == "pascalvoc":
        data = open_labelled(name, str(_storage(rule, root).root), split)
        images = f"ImageSets/Segmentation/{split}.txt"
    elif name == "cityscapes":
        data = open_masks(_storage(rule, root), _cityscapes(), split)
    else:
        storage = _storage(rule, root)
        data, images = _cocostuff(name, storage, split)
    if limit is not None or every != 1:
        images += f", every {every}, limit {limit}"
    return OpenedSet(rule, _thin(data, limit, every), images)


def _crop_number(file: str, where: Callable[[str], str]) -> int:
    stem = file.rpartition("/")[2].partition(".")[0]
    if not stem.isdigit():
        raise UserError(f"{where(file)}: stored crops are numbered (0.jpg, 1.jpg, ...); this file is none of them.")
    return int(stem)


def open_stored_crops(
    name: str, root: Optional[str], split: str = "train", limit: Optional[int] = None, every: int = 1
) -> OpenedSet:
    """The crops that the official scripts wrote below the data folder, in their order; `limit` counts crops.

    Images are JPEG files of quality 75, so their features differ a little from those of crops cut on the fly; labels
    hold class + 1, and 0 where nothing is scored. Raises UserError when there are none.
    """
    require_choice("dataset", name, tuple(CAUSE_SETS))
    rule = CAUSE_SETS[name]
    if not rule.cropped:
        with_crops = ", ".join(s.name for s in _SETS if s.cropped)
        raise UserError(f"dataset={name}: stored crops are known for {with_crops}; cut them on the fly.")
    storage = open_storage(root)
    # below the data folder, or below the set's own folder
    candidates = [c for whole in rule.cropped for c in (whole, whole.partition("/")[2])]
    found = next((c for c in candidates if storage.has(c)), None)
    if found is None:
        raise UserError(
            f"{storage.root}: no stored crops of {name}: expected {rule.cropped[0]}/ there; cut them on the fly."
        )
    names, palette = _names_and_palette(name)
    table = {0: IGNORE, **{k + 1: k for k in range(len(names))}, IGNORE: IGNORE}
    place = Place(f"{found}/img/{{split}}", f"{found}/label/{{split}}", table)
    data = open_masks(storage, MaskSpec(f"stored crops of {name}", names, palette, (place,)), split)
    for files in (data.images, data.label_files):
        files.files.sort(key=lambda f: _crop_number(f, storage.where))
    return OpenedSet(rule, _thin(data, limit, every), f"{found} (JPEG, quality 75)", stored_crops=True)


def _names_and_palette(name: str) -> tuple[list[str], list[RGB]]:
    if name == "cityscapes":
        spec = _cityscapes()
        return spec.classes, spec.palette
    names, _ = _coco_classes(name)
    return names, distinct_palette(len(names))
