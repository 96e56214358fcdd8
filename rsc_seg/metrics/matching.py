"""Naming clusters after classes: one-to-one (Hungarian) or many-to-one (majority)."""

import torch
from jaxtyping import Integer, Real
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rsc_seg.metrics.confusion import IGNORE


def hungarian_match(counts: Real[Tensor, "T K"], unmatched: int = IGNORE) -> Integer[Tensor, " K"]:
    """One class for each cluster so that the matched counts sum to the most; no class is used twice.

    `counts[t, k]` is how often class t meets cluster k. With more clusters than classes the rest get `unmatched`; with
    fewer, some classes have no cluster. Returns the class of every cluster, int64.
    """
    classes, clusters = linear_sum_assignment(counts.double().cpu().numpy(), maximize=True)
    names = torch.full((counts.shape[1],), unmatched, dtype=torch.int64)
    names[torch.from_numpy(clusters)] = torch.from_numpy(classes).long()
    return names


def majority_match(counts: Real[Tensor, "T K"], unmatched: int = IGNORE) -> Integer[Tensor, " K"]:
    """The most frequent class of every cluster; several clusters may share one (ties: the lower class).

    A cluster that meets no class at all gets `unmatched`. Returns the class of every cluster, int64.
    """
    names = counts.argmax(0).long().cpu()
    names[(counts.sum(0) == 0).cpu()] = unmatched
    return names
