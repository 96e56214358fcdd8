"""Confusion matrix over pixels, filled image by image, and the segmentation scores read from it."""

from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor

from rsc_seg.errors import UserError

IGNORE = 255


def joint_histogram(
    truth: Integer[Tensor, "*P"], predicted: Integer[Tensor, "*P"], num_truth: int, num_predicted: int
) -> Integer[Tensor, "T K"]:
    """Counts how often truth t meets prediction k.

    Both arguments have one shape and values in 0..num-1 (anything to be ignored is removed before). Returns int64
    counts, rows are truth.
    """
    pairs = truth.reshape(-1).long() * num_predicted + predicted.reshape(-1).long()
    return torch.bincount(pairs, minlength=num_truth * num_predicted).reshape(num_truth, num_predicted)


@dataclass(frozen=True)
class Scores:
    """Segmentation scores as fractions in 0..1; NaN where a score has no pixel to stand on.

    `miou_present`: mean IoU over the classes that occur in the ground truth. `miou_union`: mean over the classes that
    occur in the ground truth or in the predictions, so a class that is only predicted counts as 0. `macc`: mean recall
    over the classes in the ground truth. `pacc`: share of right pixels. `fwiou`: IoU weighted by the share of
    ground-truth pixels. `iou`: one value a class, NaN for a class that occurs in neither.
    """

    miou_present: float
    miou_union: float
    macc: float
    pacc: float
    fwiou: float
    iou: list[float]


class ConfusionMatrix:
    """Counts of (truth, prediction) over all pixels seen; pixels whose truth is `ignore_index` never count.

    `matrix` is (T, T) int64 with truth in rows. `missed` is (T,) int64: pixels of a class whose prediction was
    `ignore_index`, that is, no class at all; they are errors of the class and of no other.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        if num_classes < 1:
            raise UserError(f"a confusion matrix needs at least one class, got {num_classes}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.missed = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, truth: Integer[Tensor, "..."], predicted: Integer[Tensor, "..."]) -> None:
        """Adds one image or batch: both tensors of one shape, values 0..T-1 or `ignore_index`.

        Raises UserError when the shapes differ or a value is neither a class nor `ignore_index`.
        """
        if truth.shape != predicted.shape:
            raise UserError(
                f"truth {tuple(truth.shape)} and prediction {tuple(predicted.shape)} differ in shape; resize one."
            )
        valid = truth != self.ignore_index
        truth, predicted = truth[valid].long(), predicted[valid].long()
        found = predicted != self.ignore_index
        for what, values in (("truth", truth), ("prediction", predicted[found])):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise UserError(
                    f"{what} holds values {int(values.min())}..{int(values.max())}; expected 0..{self.num_classes - 1} "
                    f"or {self.ignore_index} (ignored)."
                )
        self.matrix += joint_histogram(truth[found], predicted[found], self.num_classes, self.num_classes).cpu()
        self.missed += torch.bincount(truth[~found], minlength=self.num_classes).cpu()

    def scores(self) -> Scores:
        """All scores of the pixels seen so far."""
        matrix = self.matrix.double()
        hit = matrix.diagonal()
        truth = matrix.sum(1) + self.missed.double()
        predicted = matrix.sum(0)
        union = truth + predicted - hit
        iou = hit / union  # 0/0 gives NaN: the class occurs nowhere
        present = truth > 0
        recall = hit[present] / truth[present]
        share = truth / truth.sum()
        return Scores(
            miou_present=iou[present].mean().item(),
            miou_union=iou[union > 0].mean().item(),
            macc=recall.mean().item(),
            pacc=(hit.sum() / truth.sum()).item(),
            fwiou=(share[present] * iou[present]).sum().item() if bool(present.any()) else float("nan"),
            iou=iou.tolist(),
        )
