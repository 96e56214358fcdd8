"""Class affinity of a whole set: queries of all images, averaged class by class."""

from typing import Any

import torch

from rsc_seg.ops.affinity import BANDS, class_affinity
from rsc_seg.probe.features import LabelledTokens
from rsc_seg.probe.scoring import one_thread


@one_thread()
def affinity_probe(data: LabelledTokens) -> dict[str, Any]:
    """AP and AUC in percent for each distance band: mean over a class's queries in all images, then over the classes.

    A token takes part when one class fills more than half of its cell. Queries without a positive or without a negative
    in the band are left out; `queries` counts the others. A band without any query has NaN scores. `ap_query_mean` is
    the AP averaged over all queries alike, so that large classes rule it; `class_ap` is the AP over all distances of
    each class (NaN for a class without queries).
    """
    features, labels = data
    num_classes = labels.share.shape[2]
    sums = torch.zeros(2, len(BANDS), num_classes, dtype=torch.float64)
    counts = torch.zeros(len(BANDS), num_classes, dtype=torch.float64)
    for tokens, names in zip(features.tokens, labels.majority(), strict=True):
        result = class_affinity(tokens, names, features.grid)
        valid = ~result.ap.isnan()
        index = result.classes.expand(len(BANDS), -1)
        counts.scatter_add_(1, index, valid.double())
        for k, scores in enumerate((result.ap, result.auc)):
            sums[k].scatter_add_(1, index, scores.nan_to_num(0.0))
    means = 100 * sums / counts  # NaN for a class without queries in the band
    balanced = means.nanmean(2).tolist()
    pooled = (100 * sums[0].sum(1) / counts.sum(1)).tolist()
    return {
        "ap": dict(zip(BANDS, balanced[0], strict=True)),
        "auc": dict(zip(BANDS, balanced[1], strict=True)),
        "ap_query_mean": dict(zip(BANDS, pooled, strict=True)),
        "queries": dict(zip(BANDS, counts.sum(1).long().tolist(), strict=True)),
        "class_ap": means[0, list(BANDS).index("all")].tolist(),
    }
