"""CAUSE's scores from streamed counts: Hungarian matching on the evaluated set, the official mIoU, true accuracies."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from jaxtyping import Integer
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.metrics.confusion import IGNORE, ConfusionMatrix, joint_histogram
from rsc_seg.metrics.matching import hungarian_match
from rsc_seg.probe.scoring import percent_summary

HEADLINE = ("miou", "pacc", "macc")


@dataclass(frozen=True)
class SegmentationScores:
    """Scores as fractions 0..1; NaN where nothing defines one. Lists have one value for each class.

    `miou`: the official rule, the mean over classes that are in the labels or in the predictions named after them; a
    class without labels counts 0 when its leftover cluster has a pixel, and is left out when not. `pacc`: share of
    right pixels (officially printed as Acc, elsewhere as mACC). `macc`: mean recall of the classes in the labels.
    `precision` is what the official code prints as accuracy of a class. `pixels`: labelled pixels. `matching`: the
    cluster of each class, None for a linear probe. `dead_clusters`: clusters that no labelled pixel went to.
    """

    miou: float
    pacc: float
    macc: float
    iou: list[float]
    recall: list[float]
    precision: list[float]
    pixels: list[int]
    matching: Optional[list[int]] = None
    dead_clusters: tuple[int, ...] = ()


def count_pixels(
    labels: Integer[Tensor, "*P"], predicted: Integer[Tensor, "*P"], classes: int, clusters: Optional[int] = None
) -> Integer[Tensor, "T K"]:
    """How often class t meets prediction k where a pixel is labelled (0..T-1); anything else is ignored.

    Raises UserError when the shapes differ or a prediction is outside 0..K-1 (K is T unless `clusters` says it).
    """
    clusters = classes if clusters is None else clusters
    if labels.shape != predicted.shape:
        raise UserError(f"labels {tuple(labels.shape)} and predictions {tuple(predicted.shape)} differ in shape.")
    wide = labels.long()
    valid = (wide >= 0) & (wide < classes)
    found = predicted[valid].long()
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < clusters:
        raise UserError(f"predictions {int(found.min())}..{int(found.max())} do not fit {clusters} clusters.")
    return joint_histogram(wide[valid], found, classes, clusters)


def _scores(matrix: Integer[Tensor, "T T"], matching: Optional[list[int]], dead: Sequence[int]) -> SegmentationScores:
    if int(matrix.sum()) == 0:
        raise UserError("no pixel of the evaluated images is labelled: nothing to score; check labels and split.")
    confusion = ConfusionMatrix(matrix.shape[0], IGNORE)
    confusion.matrix = matrix.long().cpu()
    found = confusion.scores()
    counts = confusion.matrix.double()
    hit = counts.diagonal()
    return SegmentationScores(
        miou=found.miou_union,
        pacc=found.pacc,
        macc=found.macc,
        iou=found.iou,
        recall=(hit / counts.sum(1)).tolist(),
        precision=(hit / counts.sum(0)).tolist(),
        pixels=confusion.matrix.sum(1).tolist(),
        matching=matching,
        dead_clusters=tuple(dead),
    )


def cluster_scores(counts: Integer[Tensor, "T K"]) -> SegmentationScores:
    """Scores of clusters after naming each by the class that it fits best, one to one, on these very counts.

    Ties (a cluster without pixels) fall as in the official code. Raises UserError unless there are as many clusters as
    classes, or when no pixel is labelled.
    """
    classes, clusters = counts.shape
    if classes != clusters:
        raise UserError(
            f"{clusters} clusters do not fit {classes} classes: the matching is one to one; "
            f"train a cluster probe with {classes} centroids."
        )
    # scipy breaks ties by orientation, and officially clusters are rows: so classes are "the clusters" of this call
    cluster_of_class = hungarian_match(counts.T)
    dead = (counts.sum(0) == 0).nonzero().flatten().tolist()
    return _scores(counts[:, cluster_of_class], cluster_of_class.tolist(), dead)


def linear_scores(counts: Integer[Tensor, "T T"]) -> SegmentationScores:
    """Scores of predictions that name classes themselves. Raises UserError when no pixel is labelled."""
    if counts.shape[0] != counts.shape[1]:
        raise UserError(f"a linear probe of {counts.shape[1]} outputs does not fit {counts.shape[0]} classes.")
    return _scores(counts, None, ())


def name_clusters(predicted: Integer[Tensor, "*P"], matching: Sequence[int]) -> Integer[Tensor, "*P"]:
    """Maps of clusters as maps of classes, by a `matching` of `cluster_scores`; uint8."""
    names = torch.empty(len(matching), dtype=torch.uint8)
    names[torch.tensor(list(matching))] = torch.arange(len(matching), dtype=torch.uint8)
    return names[predicted.long()]


def over_seeds(runs: Sequence[SegmentationScores]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; null for one seed) and values of the headline scores, in percent."""
    if not runs:
        raise UserError("no seed was scored: set seeds to 1 or more.")
    return {name: percent_summary([getattr(run, name) for run in runs]) for name in HEADLINE}


def write_class_csv(path: Path, classes: Sequence[str], rows: Mapping[str, SegmentationScores]) -> None:
    """One line for each row of scores and class: IoU, recall and precision in percent (empty where undefined), labelled
    pixels, and the cluster that bears the name. Written as a whole or not at all."""

    def percent(value: float) -> str:
        return "" if math.isnan(value) else f"{100 * value:.3f}"

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["row", "class", "name", "iou", "recall", "precision", "pixels", "cluster"])
            for row, scores in rows.items():
                for k, name in enumerate(classes):
                    cells = [percent(values[k]) for values in (scores.iou, scores.recall, scores.precision)]
                    cluster = "" if scores.matching is None else scores.matching[k]
                    table.writerow([row, k, name, *cells, scores.pixels[k], cluster])

    for row, scores in rows.items():
        if len(scores.iou) != len(classes):
            raise UserError(f"{row}: scores of {len(scores.iou)} classes do not fit {len(classes)} names.")
    atomic_write(Path(path), write)
