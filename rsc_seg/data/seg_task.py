"""A set as one run sees it: which names the model is given, which classes its labels become, and which are unseen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
from jaxtyping import Int32, UInt8

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.data.prepare_files import read_pixels, read_values
from rsc_seg.data.prompts import split_synonyms
from rsc_seg.data.scenes_prepared import scenes_root
from rsc_seg.data.segmentation import RGB, distinct_palette
from rsc_seg.data.segset_names import read_class_names
from rsc_seg.data.segsets import SCENE_SETS, SegSet, segset
from rsc_seg.data.source import load_image_file
from rsc_seg.errors import UserError, suggestion

IGNORE, WIDE_IGNORE = 255, 65535  # the second where there are more than 255 classes
MOST_TRAINED = 255  # the loss takes label 255 for pixels to be ignored
BACKGROUND = "background"
_UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class TaskSet:
    """One split of one set with the classes of one run.

    `names` go to the text tower; labels are 0..`classes`-1, scored, and `ignore`. `table` takes a value of a label file
    to its class. `unseen` has one entry a scored class: held out of training. `background_from`: predictions from it on
    count as it (PAS-20b, where several names stand for one label). `palette` has a colour for each scored class, the
    same whichever classes are kept.
    """

    segset: SegSet
    root: Path
    names: tuple[str, ...]
    classes: int
    ignore: int
    table: Int32[np.ndarray, "V"]
    unseen: tuple[bool, ...]
    background_from: Optional[int]
    palette: tuple[RGB, ...]

    @property
    def key(self) -> str:
        """Our name of the set."""
        return self.segset.name

    @property
    def title(self) -> str:
        """The set and its split, for readers."""
        return f"{self.segset.title} {self.segset.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each scored class."""
        if self.background_from is None:
            return self.names
        return (*self.names[: self.background_from], *(BACKGROUND,) * (self.classes - self.background_from))

    def pairs(self) -> list[tuple[Path, Path]]:
        """Images and their label files, sorted. Raises UserError for a set that is not prepared or lacks images."""
        return self.segset.pairs(self.root)

    def labels(self, path: Path) -> Int32[np.ndarray, "H W"]:
        """Classes and `ignore` of a label file. Raises UserError naming the file and the value that is neither."""
        raw = read_values(path)
        known, beyond = np.append(self.table, np.int32(_UNKNOWN)), len(self.table)
        found: np.ndarray = known[np.where((raw < 0) | (raw > beyond), beyond, raw)]
        wrong = found == _UNKNOWN
        if wrong.any():
            y, x = (int(v) for v in np.argwhere(wrong)[0])
            made = self.segset
            raise UserError(
                f"{path}: label {int(raw[y, x])} at pixel ({x}, {y}) is neither below {made.label_count} nor "
                f"{made.ignore_label}; remove the file and run tools/prepare_data.py {made.prepared_by} again."
            )
        return found

    def load(self, image: Path, labels: Path) -> tuple[UInt8[np.ndarray, "H W 3"], Int32[np.ndarray, "H W"]]:
        """An image upright in RGB and its classes, of one size.

        Labels made for the image as it is stored, before its EXIF orientation, get the image as stored. Raises
        UserError naming the file that cannot be read, or both when their sizes differ.
        """
        classes = self.labels(labels)
        pixels = np.asarray(load_image_file(image))
        if pixels.shape[:2] != classes.shape and pixels.shape[1::-1] == classes.shape:
            pixels = read_pixels(image)
        if pixels.shape[:2] != classes.shape:
            (h, w), (high, wide) = classes.shape, pixels.shape[:2]
            raise UserError(
                f"{labels}: labels are {w} x {h} pixels (width x height), but the image {image} is {wide} x {high}; "
                "they must be equal."
            )
        return pixels, classes


@dataclass(frozen=True)
class _Vocabulary:
    """Names of a set's classes in order: as the model is given them, and as the set has them."""

    set_name: str
    names: Sequence[str]
    own: Sequence[str]

    def find(self, name: str, key: str) -> Optional[int]:
        """The place of a class: by its full name, renamed or own, or by a first synonym that only one class has."""
        for names in (self.names, self.own):
            if name in names:
                return names.index(name)
        first = [i for i, full in enumerate(self.names) if split_synonyms(full)[0] == name]
        if len(first) > 1:
            full = "; ".join(self.names[i] for i in first)
            raise UserError(f"{key}: '{name}' is {len(first)} classes of {self.set_name}: {full}; write one in full.")
        return first[0] if first else None

    def places(self, wanted: Sequence[str], key: str, strict: bool = True) -> list[int]:
        """Places of the named classes, sorted. Raises UserError for a name that is there twice or (strict) unknown."""
        found: dict[int, str] = {}
        for name in wanted:
            place = self.find(name, key)
            if place is None and strict:
                near = suggestion(name, self.names)
                raise UserError(f"{key}: '{name}' is no class of {self.set_name}.{near}")
            if place in found:
                twice = "stands there twice" if found[place] == name else f"and '{found[place]}' are the same class"
                raise UserError(f"{key}: '{name}' {twice}; remove one of them.")
            if place is not None:
                found[place] = name
        return sorted(found)


def _vocabulary(found: SegSet, data: CatSegDataConfig, training: bool) -> _Vocabulary:
    file, key = (data.vocabulary, "data.vocabulary") if training else (data.test_vocabulary, "data.test_vocabulary")
    own = found.class_names()
    if file is None:
        return _Vocabulary(found.name, own, own)
    if not training and len(data.test) != 1:
        raise UserError(f"{key}={file}: names the classes of one set, but data.test has {len(data.test)}; give one.")
    names = read_class_names(Path(file).expanduser())
    if len(names) != len(own):
        raise UserError(f"{file}: {len(names)} class names ({key}), but {found.name} takes {len(own)}, in its order.")
    return _Vocabulary(found.name, names, own)


def _root(found: SegSet, root: Optional[str]) -> Path:
    path = None if root is None else Path(root).expanduser()
    if path is not None and not path.is_dir():
        raise UserError(f"{path}: no such folder (data.root); give the one above {found.bases[0]}/.")
    if found in SCENE_SETS:
        return scenes_root(path)
    if path is None:
        raise UserError(f"data.root is not set: give the folder above {found.bases[0]}/, which holds {found.title}.")
    return path


def _kept(names: _Vocabulary, data: CatSegDataConfig, strict: bool) -> tuple[list[int], set[int]]:
    """Places of the classes of a run, and those among them that training does not see."""
    kept = names.places(data.classes, "data.classes") or list(range(len(names.names)))
    held = names.places(data.held_out, "data.held_out", strict)
    outside = [names.names[k] for k in held if k not in kept]
    if outside and strict:
        raise UserError(f"data.held_out: '{outside[0]}' is not among data.classes; add it there or remove it here.")
    return kept, set(held) & set(kept)


def _label_table(found: SegSet, places: Sequence[int], background: Optional[int], ignore: int) -> np.ndarray:
    """Class of each value of a label file; `places` are the kept labels in their order, `background` one of them."""
    table = np.full(max(found.label_count - 1, found.ignore_label) + 1, _UNKNOWN, np.int32)
    table[: found.label_count] = ignore
    table[found.ignore_label] = ignore
    table[list(places)] = np.arange(len(places))
    if background is not None:
        table[found.label_count - 1] = background
    return table


def open_task_set(name: str, data: CatSegDataConfig, *, training: bool) -> TaskSet:
    """The set of this name with the classes that `data` asks for.

    `data.classes` leaves the others' pixels unscored. `data.held_out` does the same in training; in evaluation those
    classes stay and are marked unseen; a set with other names than the training set's need not have them. Vocabulary
    files rename all classes of a set, in its order; options name classes by either name. Embedded scenes (`scenes_*`)
    are composed when `data.root` is null. Raises UserError for a set, root, name or file that cannot be used.
    """
    found = segset(name)
    names = _vocabulary(found, data, training)
    kinds = {found.prepared_by, segset(data.train).prepared_by} if data.held_out else {found.prepared_by}
    kept, held = _kept(names, data, strict=training or len(kinds) == 1)
    first = found.label_count - 1 if found.evaluator == "sem_seg_background" else None
    if training:
        if first is not None:
            raise UserError(f"data.train={name}: its background has {len(names.names) - first} names; evaluate only.")
        kept = [k for k in kept if k not in held]
        if not kept:
            raise UserError("data.held_out: holds out every class; leave at least one to train on.")
    places = [k for k in kept if first is None or k < first]
    behind = [k for k in kept if first is not None and k >= first]
    classes = len(places) + bool(behind)
    if training and classes > MOST_TRAINED:
        raise UserError(f"data.train={name}: {classes} classes; training takes {MOST_TRAINED} at most (data.classes).")
    background = len(places) if behind else None
    ignore = IGNORE if classes <= IGNORE else WIDE_IGNORE
    colours = distinct_palette(found.label_count)
    unseen = [k in held for k in places] + ([all(k in held for k in behind)] if behind else [])
    return TaskSet(
        segset=found,
        root=_root(found, data.root),
        names=tuple(names.names[k] for k in kept),
        classes=classes,
        ignore=ignore,
        table=_label_table(found, places, background, ignore),
        unseen=tuple(unseen),
        background_from=background,
        palette=tuple(colours[k] for k in places) + ((colours[-1],) if behind else ()),
    )
