"""Token-norm statistics: where the lengths of the tokens lie and how many stand out."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.data.source import ImageSource
from rsc_seg.probe.features import image_batch
from rsc_seg.probe.settings import ProbeSettings

NormFn = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B h w"]]
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


def norm_probe(norm_fn: NormFn, images: ImageSource, settings: ProbeSettings) -> dict[str, Any]:
    """Statistics of token norms over `settings.norm_images` images, evenly spaced through the set.

    `norm_fn` maps normalised images (B, 3, H, W) to norms (B, h, w) before the final norm, which would even them out. A
    token whose length exceeds `settings.outlier_factor` times the median length is an outlier.
    """
    indices = range(0, len(images), -(-len(images) // settings.norm_images))
    norms = []
    for start in range(0, len(indices), settings.batch_size):
        with torch.inference_mode():
            norms.append(
                norm_fn(image_batch(images, indices[start : start + settings.batch_size], settings))
                .float()
                .cpu()
                .flatten()
            )
    pooled = torch.cat(norms)
    threshold = settings.outlier_factor * pooled.median().item()
    return {
        "images": len(indices),
        **norm_statistics(pooled, threshold=threshold, bins=settings.norm_bins, maximum=settings.norm_max),
    }
