"""Confusion matrix and its scores against hand-worked cases, a slow loop and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import IGNORE, ConfusionMatrix, joint_histogram


def filled(truth: list[int], predicted: list[int], classes: int = 3) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(torch.tensor(truth), torch.tensor(predicted))
    return matrix


def test_hand_worked_three_classes() -> None:
    # class 0: 2 of 3 right; class 1: 1 of 2 right; class 2: 1 of 1 right, and two others are taken for it
    scores = filled([0, 0, 0, 1, 1, 2], [0, 0, 2, 1, 2, 2]).scores()
    assert scores.iou == pytest.approx([2 / 3, 1 / 2, 1 / 3])
    assert scores.miou_present == pytest.approx(0.5)
    assert scores.miou_union == pytest.approx(0.5)
    assert scores.macc == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores.pacc == pytest.approx(4 / 6)
    assert scores.fwiou == pytest.approx(3 / 6 * 2 / 3 + 2 / 6 * 1 / 2 + 1 / 6 * 1 / 3)


def test_class_that_is_only_predicted_tells_the_two_means_apart() -> None:
    scores = filled([0, 0, 0, 0], [0, 0, 0, 1]).scores()
    assert scores.miou_present == pytest.approx(0.75)  # class 0 alone
    assert scores.miou_union == pytest.approx(0.375)  # class 1 counts as 0
    assert scores.iou[:2] == pytest.approx([0.75, 0.0])
    assert math.isnan(scores.iou[2])


def test_void_truth_never_counts_and_void_prediction_is_an_error_of_its_class() -> None:
    matrix = filled([IGNORE, 0, 0, 1], [1, 0, IGNORE, 1])
    assert matrix.matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert matrix.missed.tolist() == [1, 0, 0]
    scores = matrix.scores()
    assert scores.iou[:2] == pytest.approx([0.5, 1.0])
    assert scores.pacc == pytest.approx(2 / 3)


def test_streaming_equals_one_update_and_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth[truth == 5] = IGNORE
    predicted = torch.randint(0, 5, (4, 9, 7), generator=generator)
    stream, whole = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(truth.to(torch.uint8), predicted.to(torch.uint8))
    for t, p in zip(truth, predicted, strict=True):
        stream.update(t, p)
    slow = np.zeros((5, 5), np.int64)
    for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t != IGNORE:
            slow[t, p] += 1
    assert whole.matrix.dtype == torch.int64
    assert whole.matrix.tolist() == stream.matrix.tolist() == slow.tolist()


def test_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 4, (500,), generator=generator)
    predicted = torch.where(torch.rand(500, generator=generator) < 0.6, truth, (truth + 1) % 4)
    matrix = ConfusionMatrix(4)
    matrix.update(truth, predicted)
    scores = matrix.scores()
    assert matrix.matrix.tolist() == confusion_matrix(truth, predicted).tolist()
    assert scores.miou_present == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert scores.fwiou == pytest.approx(jaccard_score(truth, predicted, average="weighted"))
    assert scores.iou == pytest.approx(jaccard_score(truth, predicted, average=None).tolist())
    assert scores.pacc == pytest.approx(accuracy_score(truth, predicted))


def test_nothing_seen_gives_nan() -> None:
    scores = ConfusionMatrix(2).scores()
    assert all(math.isnan(v) for v in (scores.miou_present, scores.miou_union, scores.macc, scores.pacc, scores.fwiou))


def test_rectangular_histogram_counts_pairs() -> None:
    counts = joint_histogram(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[3, 0], [0, 2]]), 2, 4)
    assert counts.tolist() == [[0, 0, 0, 1], [2, 0, 1, 0]]


@pytest.mark.parametrize(("truth", "predicted", "words"), [([3], [0], "truth"), ([0], [-1], "prediction")])
def test_value_outside_the_classes_is_named(truth: list[int], predicted: list[int], words: str) -> None:
    with pytest.raises(UserError, match=f"{words} holds values"):
        filled(truth, predicted)


def test_shapes_must_agree() -> None:
    with pytest.raises(UserError, match="differ in shape"):
        filled([0, 1], [0])
