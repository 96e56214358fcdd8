"""Scores of classes that training saw and of classes that it did not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from rsc_seg.errors import UserError


@dataclass(frozen=True)
class SeenScores:
    """Mean IoU, as fractions, over the seen and the unseen classes that occur in the ground truth; their harmonic mean.

    None where no class is held out, or where no pixel of such classes is labelled.
    """

    seen: Optional[float]
    unseen: Optional[float]
    harmonic: Optional[float]


def _mean(values: Sequence[float]) -> Optional[float]:
    return math.fsum(values) / len(values) if values else None


def seen_scores(iou: Sequence[float], pixels: Sequence[int], unseen: Sequence[bool]) -> SeenScores:
    """Splits the IoU of each class by `unseen`; `pixels` are those labelled with it.

    The harmonic mean 2 s u / (s + u) is that of generalised zero-shot segmentation, 0 when both are. Raises UserError
    unless all three have one entry a class.
    """
    if not len(iou) == len(pixels) == len(unseen):
        raise UserError(
            f"{len(iou)} IoUs, {len(pixels)} pixel counts and {len(unseen)} marks; give one of each a class."
        )
    if not any(unseen):
        return SeenScores(None, None, None)
    rows = [(value, new) for value, count, new in zip(iou, pixels, unseen, strict=True) if count]
    old, new = (_mean([value for value, is_new in rows if is_new is kind]) for kind in (False, True))
    if old is None or new is None:
        return SeenScores(old, new, None)
    return SeenScores(old, new, 2 * old * new / (old + new) if old + new else 0.0)
