"""The nouns of RegionText: their names, and boxes labelled with them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsc_seg.config import RlaConfig
from rsc_seg.data import vocab
from rsc_seg.data.coco import read_json
from rsc_seg.data.proposals import NO_CATEGORY, Annotated, BoxFile
from rsc_seg.data.segset_names import check_names, read_class_names
from rsc_seg.errors import UserError, suggestion

NO_NOUN = -1


@dataclass(frozen=True)
class Nouns:
    """Class names in their order; a noun's number is its place. `where` says where they come from, for messages."""

    names: tuple[str, ...]
    where: str

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str) -> int:
        """The place of a name, case and blanks aside; raises UserError, with the nearest name, when there is none."""
        place = self._places.get(_plain(name))
        if place is None:
            raise UserError(f"{self.where}: '{name}' is none of its {len(self)} nouns.{suggestion(name, self.names)}")
        return place

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {_plain(name): place for place, name in enumerate(self.names)}


def _plain(name: str) -> str:
    return " ".join(name.split()).lower()


def read_nouns(path: str | Path) -> Nouns:
    """Nouns of a file: a JSON list, a JSON object with `classes` or `names`, or text with one name a line.

    Raises UserError (rla.nouns) for a missing or unreadable file, an empty name, or one that comes twice.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{place}: no such file (rla.nouns).")
    return Nouns(tuple(read_class_names(place)), f"{place} (rla.nouns)")


def coco_things() -> Nouns:
    """COCO's 80 thing classes in the order of their ids."""
    classes = vocab.load("coco_panoptic_133").classes
    return Nouns(tuple(c.name for c in classes if c.extra["isthing"]), "COCO's things")


def open_nouns(config: RlaConfig) -> Nouns:
    """The nouns of a configuration: the file `rla.nouns`; without it the named categories of `rla.pseudo_labels` in the
    order of their ids; without both COCO's 80 things. Raises UserError for what cannot be read."""
    if config.nouns is not None:
        return read_nouns(config.nouns)
    if config.pseudo_labels is not None:
        path = Path(config.pseudo_labels).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: no such file (rla.pseudo_labels).")
        document = read_json(path, "rla.pseudo_labels: boxes in COCO's format")
        rows = document.get("categories", []) if isinstance(document, dict) else []
        names = _category_names(_sorted_categories(rows, path))
        if names is not None:
            return Nouns(tuple(check_names(names, f"{path} (rla.pseudo_labels)")), f"{path} (rla.pseudo_labels)")
    return coco_things()


def _sorted_categories(rows: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    try:
        ordered = sorted(rows, key=lambda row: int(row["id"]))
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: its categories are not COCO's, with id and name (rla.pseudo_labels) ({e!r}).") from e
    ids = [int(row["id"]) for row in ordered]
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: a category id comes twice (rla.pseudo_labels); ids must differ.")
    return ordered


def _category_names(rows: Sequence[dict[str, Any]]) -> list[str] | None:
    names = [row.get("name") for row in rows]
    return [str(name) for name in names] if names and all(names) else None


class PseudoLabels:
    """Boxes of images, each with the number of a noun.

    The file is COCO's (see BoxFile). With `categories`, a box's noun is found by its category's name; where they have
    no names, by the category's place among the sorted ids, as CLIPSelf does, and then there must be as many categories
    as nouns. Without `categories` the category id is the noun's number itself, from 0. A category may be absent from
    the boxes. `boxes` are in the file's order, of all areas and of none (whose features are zeros): the official code
    shuffles and filters nothing here.

    Raises UserError for a category that is no noun, numbers beyond them, and boxes without a category.
    """

    def __init__(self, path: str | Path, nouns: Nouns) -> None:
        self.nouns = nouns
        self.file = BoxFile(path, "rla.pseudo_labels", labelled=True)
        self._number = self._numbers()
        unknown = sorted(self.file.categories() - set(self._number))
        if NO_CATEGORY in unknown:
            raise UserError(f"{self.file.path}: holds boxes without a category_id (rla.pseudo_labels); label them.")
        if unknown:
            known = f"0 to {len(nouns) - 1}" if not self.file.category_rows else "those of its categories"
            raise UserError(
                f"{self.file.path}: category id {unknown[-1]} is beyond the {len(nouns)} nouns of {nouns.where} "
                f"({len(unknown)} unknown ids; known are {known}); give the nouns that the file was made with."
            )

    def _numbers(self) -> dict[int, int]:
        """Category id to noun."""
        path, rows = self.file.path, _sorted_categories(self.file.category_rows, self.file.path)
        if not rows:
            return {i: i for i in range(len(self.nouns))}
        names = _category_names(rows)
        if names is not None:
            return {int(row["id"]): self._named(name) for row, name in zip(rows, names, strict=True)}
        if len(rows) != len(self.nouns):
            raise UserError(
                f"{path}: {len(rows)} categories without names for the {len(self.nouns)} nouns of {self.nouns.where} "
                "(rla.pseudo_labels); they must be as many."
            )
        return {int(row["id"]): place for place, row in enumerate(rows)}

    def _named(self, name: str) -> int:
        try:
            return self.nouns.number(name)
        except UserError as e:
            raise UserError(f"{self.file.path}: category '{name}' (rla.pseudo_labels) is no noun: {e}") from e

    def labelled(self, name: str) -> Annotated:
        """Boxes x, y, width, height of an image by its name, and their nouns in place of categories."""
        boxes, categories = self.file.annotated(name)
        return Annotated(boxes, np.array([self._number[int(c)] for c in categories], np.int64))
