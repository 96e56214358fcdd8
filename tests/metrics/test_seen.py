"""Scores of seen and unseen classes."""

import math

import pytest

from rsc_seg.errors import UserError
from rsc_seg.metrics.seen import SeenScores, seen_scores


def test_means_over_the_classes_in_the_labels() -> None:
    iou = [0.5, 0.7, 0.0, math.nan, 0.2, 0.4]
    found = seen_scores(iou, [9, 9, 0, 0, 9, 9], [False, False, False, True, True, True])
    assert (found.seen, found.unseen) == (pytest.approx(0.6), pytest.approx(0.3))
    assert found.harmonic == pytest.approx(2 * 0.6 * 0.3 / 0.9)


def test_without_unseen_classes_or_pixels_of_them_there_is_nothing_to_say() -> None:
    assert seen_scores([0.5, 0.7], [3, 3], [False, False]) == SeenScores(None, None, None)
    assert seen_scores([0.5, 0.7], [3, 0], [False, True]) == SeenScores(0.5, None, None)
    assert seen_scores([0.5, 0.7], [3, 3], [True, True]) == SeenScores(None, 0.6, None)


def test_nothing_right_is_zero() -> None:
    assert seen_scores([0.0, 0.0], [1, 1], [False, True]) == SeenScores(0.0, 0.0, 0.0)


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="2 IoUs, 1 pixel counts and 2 marks"):
        seen_scores([0.5, 0.7], [3], [False, True])
