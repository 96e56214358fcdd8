"""Pictures with a class for every pixel and a name for every class: prepared sets and labelled layouts, alike."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional, Protocol

import numpy as np
from jaxtyping import Int
from PIL import Image

from rsc_seg.config import DataConfig
from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.data.seg_task import TaskSet, open_task_set
from rsc_seg.data.segmentation import LabelledSet, open_labelled
from rsc_seg.data.segset_names import read_class_names
from rsc_seg.data.source import thinned
from rsc_seg.errors import UserError


class ClassSet(Protocol):
    """What a measure of classes by their names reads.

    `names` go to the text tower. Labels are 0..`classes`-1 and `ignore`; `class_names` has one name for each. Where
    several names stand for one label, which is then the last one, predictions from `merged_from` on count as it.
    """

    title: str
    names: Sequence[str]
    class_names: Sequence[str]
    classes: int
    ignore: int
    merged_from: Optional[int]

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, i: int) -> str:
        """Name of picture `i`, for messages."""

    def load(self, i: int) -> tuple[Image.Image, Int[np.ndarray, "H W"]]:
        """Picture `i` in RGB and its labels, of one size; raises UserError that names the file."""

    def fingerprint(self) -> str:
        """A hash of all pictures and labels, byte by byte."""


class LayoutSet:
    """A labelled set in one of the layouts of docs/data.md."""

    merged_from: Optional[int] = None

    def __init__(self, data: LabelledSet, title: str) -> None:
        self.data, self.title = data, title
        self.names: Sequence[str] = data.classes
        self.class_names: Sequence[str] = data.classes
        self.classes, self.ignore = len(data.classes), data.ignore_index
        self._fingerprint: Optional[str] = None

    def __len__(self) -> int:
        return len(self.data)

    def name(self, i: int) -> str:
        """See ClassSet."""
        return self.data.name(i)

    def load(self, i: int) -> tuple[Image.Image, Int[np.ndarray, "H W"]]:
        """See ClassSet."""
        return self.data.load(i), self.data.labels(i)

    def fingerprint(self) -> str:
        """See ClassSet."""
        if self._fingerprint is None:
            parts = [self.data.fingerprint(), self.data.label_files.fingerprint(), *self.data.classes]
            self._fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._fingerprint


class PreparedSet:
    """A set that tools/prepare_data.py made, or the embedded scenes in that layout; some of its pictures."""

    def __init__(self, data: TaskSet, limit: Optional[int], every: int) -> None:
        self.data, self.title = data, data.title
        self.names: Sequence[str] = data.names
        self.class_names: Sequence[str] = data.class_names
        self.classes, self.ignore, self.merged_from = data.classes, data.ignore, data.background_from
        pairs = data.pairs()
        self.pairs = [pairs[i] for i in thinned(len(pairs), limit, every)]
        self._fingerprint: Optional[str] = None

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, i: int) -> str:
        """See ClassSet."""
        return self.pairs[i][0].name

    def load(self, i: int) -> tuple[Image.Image, Int[np.ndarray, "H W"]]:
        """See ClassSet."""
        pixels, labels = self.data.load(*self.pairs[i])
        return Image.fromarray(pixels), labels

    def fingerprint(self) -> str:
        """See ClassSet."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.data.table.tobytes())
            for image, labels in self.pairs:
                digest.update(image.name.encode())
                for path in (image, labels):
                    try:
                        digest.update(hashlib.sha256(path.read_bytes()).digest())
                    except OSError as e:
                        raise UserError(f"{path}: cannot be read ({e.strerror or e}).") from e
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_class_set(data: DataConfig, prepared: Optional[str], vocabulary: Optional[str]) -> LayoutSet | PreparedSet:
    """The prepared set of that name below data.root, or the labelled set of data.kind and data.split.

    `vocabulary` is a file with other names for all classes, in the set's order. Raises UserError for a set that is not
    there or has no labels, and a vocabulary of another length.
    """
    found: LayoutSet | PreparedSet
    if prepared is None:
        labelled = open_labelled(data.kind, data.root, data.split, data.limit, data.every)
        found = LayoutSet(labelled, f"{data.root or data.kind} {data.split}")
    else:
        options = replace(CatSegDataConfig(), root=data.root, test=[prepared])
        found = PreparedSet(open_task_set(prepared, options, training=False), data.limit, data.every)
    if vocabulary is not None:
        names = read_class_names(Path(vocabulary).expanduser())
        if len(names) != len(found.names):
            raise UserError(
                f"{vocabulary}: {len(names)} class names (maskclip.vocabulary), but {found.title} has "
                f"{len(found.names)} classes; give one name for each, in its order."
            )
        found.names = names
        if found.merged_from is None:
            found.class_names = names
    return found
