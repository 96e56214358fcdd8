"""Token-norm statistics: where the lengths of the tokens lie and how many stand out."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def norm_statistics(norms: Float[Tensor, " N"], *, threshold: float, bins: int, maximum: float) -> dict[str, Any]:
    """Histogram over equal bins of 0..maximum, quantiles (linear interpolation), and the share above `threshold`.

    `above_maximum` counts the norms that no bin holds. `outlier_share` is a fraction.
    """
    ordered = norms.double().sort().values
    place = torch.tensor(QUANTILES, dtype=torch.float64) * (len(ordered) - 1)
    low, high = place.floor().long(), place.ceil().long()
    quantiles = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    inside = ordered[ordered <= maximum]
    return {
        "edges": torch.linspace(0, maximum, bins + 1, dtype=torch.float64).tolist(),
        "counts": inside.histc(bins, 0, maximum).long().tolist(),
        "above_maximum": len(ordered) - len(inside),
        "mean": ordered.mean().item(),
        "quantiles": dict(zip((f"{q:g}" for q in QUANTILES), quantiles.tolist(), strict=True)),
        "outlier_threshold": threshold,
        "outlier_share": (ordered > threshold).double().mean().item(),
    }


def norm_probe(tokens: Float[Tensor, "N L D"], *, outlier_factor: float, bins: int, maximum: float) -> dict[str, Any]:
    """Statistics of the tokens as given (after the final norm, where the encoder's map is); a token whose length exceeds
    `outlier_factor` times the median length is an outlier."""
    norms = torch.cat([image.float().norm(dim=1) for image in tokens])
    threshold = outlier_factor * norms.median().item()
    return norm_statistics(norms, threshold=threshold, bins=bins, maximum=maximum)
