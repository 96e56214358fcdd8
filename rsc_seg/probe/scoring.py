"""From token scores to pixel scores: upsampling, argmax, counting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from rsc_seg.metrics.confusion import IGNORE, joint_histogram


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread inside, as before outside.

    For many small operations: a second thread gains little on idle cores and, where cores are shared, waits for the
    other at each of them, which makes the whole several times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def pixel_counts(
    token_scores: Sequence[Float[Tensor, "L K"]],
    maps: Sequence[Integer[Tensor, "_ _"]],
    grid: tuple[int, int],
    num_classes: int,
) -> Integer[Tensor, "T K"]:
    """How often class t meets prediction k over all labelled pixels of all images.

    Each image's (L, K) scores are upsampled bilinearly (half-pixel centres) to its label map, then the largest wins.
    """
    num_predicted = token_scores[0].shape[1]
    counts = torch.zeros(num_classes, num_predicted, dtype=torch.int64)
    for scores, labels in zip(token_scores, maps, strict=True):
        plane = scores.float().T.unflatten(1, grid)[None]  # (1, K, h, w)
        full = F.interpolate(plane, size=tuple(labels.shape), mode="bilinear", align_corners=False)
        predicted = full[0].argmax(0)
        valid = labels != IGNORE
        counts += joint_histogram(labels[valid], predicted[valid], num_classes, num_predicted)
    return counts


def percent_summary(fractions: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (n - 1; null for a single seed) and the values themselves, in percent."""
    values = torch.tensor(fractions, dtype=torch.float64) * 100
    std = values.std(unbiased=True).item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "std": std, "seeds": values.tolist()}
