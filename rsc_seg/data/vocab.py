"""Official class lists: names and ids of the public segmentation sets, kept as JSON beside this file."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from rsc_seg.errors import UserError, suggestion

VOCABULARIES = (
    "ade20k_150",
    "ade20k_847",
    "cityscapes",
    "cityscapes_19",
    "cityscapes_27",
    "coco_panoptic_133",
    "coco_stuff_171",
    "coco_stuff_27",
    "pascal_context_459",
    "pascal_context_59",
    "pascal_voc_21",
    "voc_20",
    "voc_20b",
)


@dataclass(frozen=True)
class VocabClass:
    """One class: `id` as the official label files hold it, and whatever else the list knows about it in `extra`.

    Keys of `extra`: isthing, supercategory, color (COCO panoptic); isthing (COCO-Stuff); isthing, fine_ids (its 27
    coarse classes); isthing, synonyms (ADE20K; of its 847 classes synonyms only); train_id, category, has_instances,
    color (Cityscapes); label_id, color (its 19 and 27 classes); color (PASCAL VOC); background (voc_20b). First names
    are unique but for ade20k_847, whose 847 classes have 837 of them.
    """

    id: int
    name: str
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """A class list in its official order."""

    name: str
    title: str
    classes: tuple[VocabClass, ...]

    @property
    def names(self) -> list[str]:
        """Class names in order."""
        return [c.name for c in self.classes]

    @property
    def ids(self) -> list[int]:
        """Official ids in order."""
        return [c.id for c in self.classes]

    def by_id(self, class_id: int) -> VocabClass:
        """The class with this official id. Raises UserError when the list has none."""
        for c in self.classes:
            if c.id == class_id:
                return c
        raise UserError(f"{self.name}: no class has the id {class_id}; {self.title}.")

    def by_name(self, name: str) -> VocabClass:
        """The class with this name. Raises UserError, with the nearest known name, when the list has none."""
        for c in self.classes:
            if c.name == name:
                return c
        raise UserError(f"{self.name}: no class is called '{name}'.{suggestion(name, self.names)}")

    def __len__(self) -> int:
        return len(self.classes)


@functools.cache
def load(name: str) -> Vocabulary:
    """The vocabulary of this name, one of `VOCABULARIES`. Raises UserError for another name."""
    if name not in VOCABULARIES:
        known = ", ".join(VOCABULARIES)
        raise UserError(f"vocabulary '{name}': must be one of {known}.{suggestion(name, VOCABULARIES)}")
    text = resources.files("rsc_seg.data").joinpath("vocab", f"{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    classes = []
    for row in data["classes"]:
        extra = {k: v for k, v in row.items() if k not in ("id", "name")}
        classes.append(VocabClass(row["id"], row["name"], MappingProxyType(extra)))
    return Vocabulary(name, data["title"], tuple(classes))


@functools.cache
def pascal_context_val() -> tuple[str, ...]:
    """Names, without ending, of the 5104 images on which PASCAL-Context is evaluated, sorted."""
    text = resources.files("rsc_seg.data").joinpath("vocab", "pascal_context_val.json").read_text(encoding="utf-8")
    years = json.loads(text)["years"]
    return tuple(f"{year}_{number:06d}" for year, numbers in years.items() for number in numbers)
