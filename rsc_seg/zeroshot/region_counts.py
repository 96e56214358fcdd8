"""Right answers of a region classification, counted by class, and the mean accuracies made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rsc_seg.zeroshot.panoptic_regions import Category
from rsc_seg.zeroshot.records import StateFile, bounded

# kind of score: what is pooled, and whether of things or of stuff
KINDS = {
    "boxes": ("boxes", True),
    "thing_masks": ("masks", True),
    "stuff_masks": ("masks", False),
    "stuff_boxes": ("boxes", False),
}
TOP = (1, 5)
LEFT_OUT = ("small", "large", "beyond", "no_pixels")
_ARRAYS = ("regions", "empty_masks", "outside_boxes", *(f"{what}_top{k}" for what in ("boxes", "masks") for k in TOP))


@dataclass
class RegionCounts:
    """Counts so far: `by_class` holds one (T,) int64 vector for each of the arrays, `left_out` numbers of segments.

    `regions`: classified segments. `empty_masks`: those whose mask has no token.
    `outside_boxes`: those whose annotated box has no part in the picture. `boxes_top1` and so on: right answers.
    Left out: boxes below and above the allowed area, segments beyond the first `per_image`, segments without a pixel.
    """

    by_class: dict[str, Int[Tensor, " T"]]
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEFT_OUT, 0))
    pictures: int = 0

    @classmethod
    def zeros(cls, classes: int) -> "RegionCounts":
        """Nothing counted yet."""
        return cls({name: torch.zeros(classes, dtype=torch.int64) for name in _ARRAYS})

    def add(
        self,
        labels: Int[Tensor, " R"],
        ranks: Mapping[str, Int[Tensor, " R"]],
        empty: Bool[Tensor, " R"],
    ) -> None:
        """Counts regions by the `ranks` of their right class (0: first), by `boxes` and `masks`; `empty`: no token."""
        classes = len(self.by_class["regions"])

        def count(chosen: Tensor) -> Tensor:
            return torch.bincount(labels[chosen], minlength=classes)

        self.by_class["regions"] += torch.bincount(labels, minlength=classes)
        self.by_class["empty_masks"] += count(empty)
        for what, rank in ranks.items():
            for k in TOP:
                self.by_class[f"{what}_top{k}"] += count(rank < k)

    def add_outside(self, labels: Int[Tensor, " N"]) -> None:
        """Counts regions, by their classes, whose annotated box has no part in the picture."""
        self.by_class["outside_boxes"] += torch.bincount(labels, minlength=len(self.by_class["regions"]))

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        arrays = {name: values.tolist() for name, values in self.by_class.items()}
        return {"pictures": self.pictures, "left_out": dict(self.left_out), "by_class": arrays}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RegionCounts":
        """The counts of `to_json`."""
        arrays = {name: torch.tensor(value["by_class"][name], dtype=torch.int64) for name in _ARRAYS}
        return cls(arrays, {name: int(value["left_out"][name]) for name in LEFT_OUT}, int(value["pictures"]))


@dataclass(frozen=True)
class RegionScores:
    """Accuracies of a classification: by class, and their means over the classes that have a region."""

    categories: Sequence[Category]
    counts: RegionCounts

    def accuracy(self, what: str, k: int) -> Float[Tensor, " T"]:
        """Share of right answers within the first `k` (1 or 5) by class, by `boxes` or `masks`; nan without a region.

        In float64, where the official evaluation rounds the accuracy of each class to half precision.
        """
        counts = self.counts.by_class
        return counts[f"{what}_top{k}"].double() / counts["regions"].double()

    def mean(self, kind: str, k: int) -> Optional[float]:
        """Mean accuracy (0..1) of one of `KINDS` over its classes that have a region; None when none has."""
        what, thing = KINDS[kind]
        own = torch.tensor([category.thing == thing for category in self.categories], dtype=torch.bool)
        values = self.accuracy(what, k)[own & (self.counts.by_class["regions"] > 0)]
        return float(values.mean()) if len(values) else None

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each kind top1 and top5 in percent, regions, classes that have one, and masks without a token."""
        counts, found = self.counts.by_class, {}
        for kind, (what, thing) in KINDS.items():
            own = torch.tensor([category.thing == thing for category in self.categories], dtype=torch.bool)
            entry: dict[str, Any] = {}
            for k in TOP:
                mean = self.mean(kind, k)
                entry[f"top{k}"] = None if mean is None else 100 * mean
            entry["regions"] = int(counts["regions"][own].sum())
            entry["classes"] = int((counts["regions"][own] > 0).sum())
            if what == "masks":
                entry["empty"] = int(counts["empty_masks"][own].sum())
            found[kind] = entry
        return found


class CountsFile(StateFile[RegionCounts]):
    """Counts of an unfinished or finished measure on disk, in a file named by the key of all that they depend on."""

    def __init__(self, folder: Path, key: str, *, most: Optional[int] = None) -> None:
        parse = bounded(RegionCounts.from_json, lambda counts: counts.pictures, most)
        super().__init__(folder, key, parse=parse, dump=RegionCounts.to_json)
