"""Spherical k-means on tokens, scored as an unsupervised segmentation."""

from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import ConfusionMatrix, Scores
from rsc_seg.metrics.matching import hungarian_match, majority_match
from rsc_seg.probe.features import LabelledTokens
from rsc_seg.probe.scoring import one_thread, percent_summary, pixel_counts
from rsc_seg.probe.settings import ProbeSettings


class Clustering(NamedTuple):
    """Unit centroids, the cluster of each fitted token, the mean cosine to the own centroid, and the iterations
    used."""

    centroids: Float[Tensor, "K D"]
    assignment: Integer[Tensor, " N"]
    cohesion: float
    iterations: int


def plus_plus_init(unit: Float[Tensor, "N D"], k: int, generator: torch.Generator) -> Float[Tensor, "K D"]:
    """k-means++ seeding for cosine: each next centre is drawn with probability proportional to 1 - cosine to the
    nearest."""
    chosen = [int(torch.randint(len(unit), (1,), generator=generator))]
    gap = (1 - unit @ unit[chosen[0]]).clamp(min=0)
    for _ in range(k - 1):
        # torch.multinomial takes at most 2^24 entries and rounds in float32: a search in the running sum does not.
        total = gap.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        chosen.append(min(int(torch.searchsorted(total, draw, right=True)), len(unit) - 1))
        gap = torch.minimum(gap, (1 - unit @ unit[chosen[-1]]).clamp(min=0))
    return unit[chosen]


def spherical_kmeans(
    tokens: Float[Tensor, "N D"],
    k: int,
    *,
    seed: int,
    max_iterations: int = 100,
    tolerance: float = 0.0,
    init: Optional[Float[Tensor, "K D"]] = None,
    normalized: bool = False,
) -> Clustering:
    """k-means by cosine: tokens and centroids have unit length, a centroid is the direction of its tokens' sum.

    Starts from `init` or from k-means++ with `seed`. A cluster left empty restarts at the token that lies farthest from
    its own centroid (each such token once). Stops when at most the share `tolerance` of the tokens changes its cluster,
    or after `max_iterations`.
    `normalized` says that `tokens` already are float32 of unit length. Raises UserError for fewer tokens than clusters.
    """
    if len(tokens) < k:
        raise UserError(f"k-means with {k} clusters needs at least {k} tokens, got {len(tokens)}.")
    unit = tokens if normalized else F.normalize(tokens.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    centroids = plus_plus_init(unit, k, generator) if init is None else F.normalize(init.float(), dim=1)
    assignment = torch.full((len(unit),), -1)
    for iteration in range(max_iterations + 1):
        nearest, updated = (unit @ centroids.T).max(dim=1)
        empty = (torch.bincount(updated, minlength=k) == 0).nonzero().squeeze(1)
        if len(empty):
            updated[nearest.topk(len(empty), largest=False).indices] = empty
        changed = int((updated != assignment).sum())
        assignment = updated
        if iteration == max_iterations or changed <= tolerance * len(unit):
            break
        members = F.one_hot(assignment, k).to(unit.dtype)
        centroids = F.normalize(members.T @ unit, dim=1)
    return Clustering(centroids, assignment, nearest.mean().item(), iteration)


def _scores(counts: Integer[Tensor, "T K"], names: Integer[Tensor, " K"]) -> Scores:
    confusion = ConfusionMatrix(len(counts))
    for cluster, name in enumerate(names.tolist()):
        if name < len(counts):
            confusion.matrix[:, name] += counts[:, cluster]
        else:
            confusion.missed += counts[:, cluster]
    return confusion.scores()


@one_thread()
def kmeans_probe(train: LabelledTokens, val: LabelledTokens, k: int, settings: ProbeSettings) -> dict[str, Any]:
    """Clusters training tokens and scores the clusters as a segmentation of the val images, for each seed.

    Fitted on at most `settings.kmeans_tokens` training tokens (a seeded random draw, labels unseen), until
    at most one token in a thousand moves. A val pixel gets the
    cluster of the highest bilinearly upsampled cosine. Naming: k up to T, one-to-one by the Hungarian method on the
    val pixels themselves; k above T, many-to-one by the labels of the fitted training tokens. Scores in percent.
    """
    num_classes = train.labels.share.shape[2]
    flat, share = train.features.tokens.flatten(0, 1), train.labels.share.flatten(0, 1)
    unit_val = F.normalize(val.features.tokens.float(), dim=2)
    scores: list[Scores] = []
    for seed in range(settings.seed, settings.seed + settings.kmeans_seeds):
        generator = torch.Generator().manual_seed(seed)
        subset = torch.randperm(len(flat), generator=generator)[: settings.kmeans_tokens]
        unit = F.normalize(flat[subset].float(), dim=1)
        fit = spherical_kmeans(
            unit, k, seed=seed, max_iterations=settings.kmeans_iterations, tolerance=1e-3, normalized=True
        )
        similarity = [tokens @ fit.centroids.T for tokens in unit_val]
        counts = pixel_counts(similarity, val.labels.maps, val.features.grid, num_classes)
        if k <= num_classes:
            names = hungarian_match(counts)
        else:
            names = majority_match(share[subset].T @ F.one_hot(fit.assignment, k).float())
        scores.append(_scores(counts, names))
    return {
        "k": k,
        "matching": "one-to-one on val" if k <= num_classes else "many-to-one from train",
        "fitted_tokens": min(len(flat), settings.kmeans_tokens),
        "miou": percent_summary([s.miou_present for s in scores]),
        "pacc": percent_summary([s.pacc for s in scores]),
    }
