"""Counts and mean accuracies, by hand."""

import math

import pytest
import torch

from rsc_seg.zeroshot.panoptic_regions import Category
from rsc_seg.zeroshot.region_counts import RegionCounts, RegionScores

CATEGORIES = [Category(1, "cat", True), Category(2, "dog", True), Category(7, "sky", False), Category(9, "sea", False)]


def example() -> RegionCounts:
    """Three cats (places 0, 4, 5 by box), one sky (place 0 by box), no dog and no sea."""
    counts = RegionCounts.zeros(4)
    boxes, masks = torch.tensor([0, 4, 5]), torch.tensor([0, 0, 4])
    counts.add(torch.tensor([0, 0, 0]), {"boxes": boxes, "masks": masks}, torch.tensor([False, False, True]))
    one = torch.tensor([2])
    counts.add(torch.tensor([2]), {"boxes": torch.tensor([0]), "masks": one}, torch.tensor([False]))
    counts.pictures = 2
    return counts


def test_means_are_over_the_classes_that_occur() -> None:
    scores = RegionScores(CATEGORIES, example())
    assert scores.mean("boxes", 1) == pytest.approx(1 / 3) and scores.mean("boxes", 5) == pytest.approx(2 / 3)
    assert scores.mean("thing_masks", 1) == pytest.approx(2 / 3)
    assert scores.mean("stuff_masks", 1) == 0 and scores.mean("stuff_masks", 5) == 1
    assert scores.mean("stuff_boxes", 1) == 1
    assert [math.isnan(v) for v in scores.accuracy("boxes", 1).tolist()] == [False, True, False, True]
    assert scores.summary()["thing_masks"] == {
        "top1": pytest.approx(200 / 3),
        "top5": 100,
        "regions": 3,
        "classes": 1,
        "empty": 1,
    }


def test_the_mean_is_over_classes_not_over_regions() -> None:
    counts = example()
    counts.add(torch.tensor([1]), {"boxes": torch.tensor([0]), "masks": torch.tensor([9])}, torch.tensor([False]))
    scores = RegionScores(CATEGORIES, counts)
    assert scores.mean("boxes", 1) == pytest.approx((1 / 3 + 1) / 2)
    assert scores.mean("thing_masks", 1) == pytest.approx((2 / 3 + 0) / 2)


def test_nothing_counted_has_no_mean() -> None:
    scores = RegionScores(CATEGORIES, RegionCounts.zeros(4))
    assert {entry["top1"] for entry in scores.summary().values()} == {None}


def test_json_keeps_all() -> None:
    counts = example()
    counts.left_out["small"] = 3
    again = RegionCounts.from_json(counts.to_json())
    assert again.to_json() == counts.to_json() and again.left_out["small"] == 3
    with pytest.raises(KeyError):
        RegionCounts.from_json({"pictures": 1})
