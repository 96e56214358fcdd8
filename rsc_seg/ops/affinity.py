"""Within-image class affinity: does a token find the tokens of its own class by cosine alone?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

Band = tuple[float, float]  # candidates at token distance d with low < d <= high

ALL: Band = (0.0, math.inf)
BANDS: dict[str, Band] = {"all": ALL, "1-2": (0.0, 2.0), "3-6": (2.0, 6.0), ">6": (6.0, math.inf)}


class AffinityScores(NamedTuple):
    """AP and AUC (fractions) of every query in every band, NaN where the band holds no positive or no negative."""

    ap: Float[Tensor, "bands Q"]
    auc: Float[Tensor, "bands Q"]
    classes: Integer[Tensor, " Q"]


def ranking_scores(
    similarity: Float[Tensor, "Q C"], positive: Bool[Tensor, "Q C"], candidates: Sequence[Bool[Tensor, "Q C"]]
) -> tuple[Float[Tensor, "bands Q"], Float[Tensor, "bands Q"]]:
    """Average precision and ROC AUC of each row's ranking, once for every candidate mask; one sort serves all masks.

    AP = sum over distinct similarities of (gain in recall) * precision, AUC = share of (positive, negative) pairs in
    the right order with ties counted half: equal similarities share one rank, whatever their order in memory. Columns
    outside a mask do not exist for it. Returns (AP, AUC) in float64; NaN for a row without positives or negatives.
    """
    ranked, order = similarity.sort(dim=1, descending=True)
    place = torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
    change = ranked[:, 1:] != ranked[:, :-1]
    edge = torch.ones_like(ranked[:, :1], dtype=torch.bool)
    # first and last place of the group of equal similarities that each place belongs to
    first = torch.where(torch.cat([edge, change], 1), place, 0).cummax(1).values
    last = torch.where(torch.cat([change, edge], 1), place, ranked.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    positive = positive.gather(1, order)
    all_ap, all_auc = [], []
    for candidate in candidates:
        member = candidate.gather(1, order)
        hit, miss = member & positive, member & ~positive
        hits, misses = hit.cumsum(1, dtype=torch.int32), miss.cumsum(1, dtype=torch.int32)
        hits_to, misses_to = hits.gather(1, last), misses.gather(1, last)
        misses_before = (misses - miss.int()).gather(1, first)
        num_hits, num_misses = hits[:, -1].double(), misses[:, -1].double()
        precision = hits_to.double() / (hits_to + misses_to).clamp(min=1)
        wrong = 0.5 * (misses_to + misses_before).double()  # negatives above, ties half
        ap = (precision * hit).sum(1) / num_hits
        auc = 1 - (wrong * hit).sum(1) / (num_hits * num_misses)
        valid = (num_hits > 0) & (num_misses > 0)
        all_ap.append(ap.where(valid, torch.nan))
        all_auc.append(auc.where(valid, torch.nan))
    return torch.stack(all_ap), torch.stack(all_auc)


def class_affinity(
    tokens: Float[Tensor, "L D"],
    labels: Integer[Tensor, " L"],
    grid: tuple[int, int],
    *,
    bands: Sequence[Band] = tuple(BANDS.values()),
    chunk: int = 1024,
) -> AffinityScores:
    """Each labelled token of one image ranks the image's other labelled tokens by cosine; positives share its class.

    `labels` holds the class of a token or a negative number for a token without one; such tokens are neither queries
    nor candidates. `grid` is (h, w) with h*w = L; distance is Euclidean between token centres, in tokens. Cosines are
    in float32 and rounded to 6 decimals, so that tokens equal up to rounding tie. `chunk` queries are ranked at once.
    Q is the number of labelled tokens, in their order.
    """
    keep = (labels >= 0).nonzero().squeeze(1)
    classes = labels[keep]
    unit = F.normalize(tokens[keep].float(), dim=1)
    row, column = keep // grid[1], keep % grid[1]
    aps, aucs = [], []
    for start in range(0, len(keep), chunk):
        part = slice(start, start + chunk)
        cosine = (unit[part] @ unit.T).mul_(1e6).round_()
        positive = classes[part, None] == classes[None]
        squared = (row[part, None] - row[None]) ** 2 + (column[part, None] - column[None]) ** 2
        candidates = [
            (squared > low * low) & (squared <= high * high) for low, high in bands
        ]  # 0 < d: never the query itself
        ap, auc = ranking_scores(cosine, positive, candidates)
        aps.append(ap)
        aucs.append(auc)
    if not aps:
        empty = torch.zeros(len(bands), 0, dtype=torch.float64)
        return AffinityScores(empty, empty.clone(), classes)
    return AffinityScores(torch.cat(aps, 1), torch.cat(aucs, 1), classes)
