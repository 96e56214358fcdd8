"""Coupling ratio over pairs of images of one set."""

from typing import Any

import torch

from rsc_seg.data.source import ImageSource
from rsc_seg.errors import UserError
from rsc_seg.ops.coupling import coupling_cosines, coupling_ratio
from rsc_seg.probe.features import FeatureFn, image_batch
from rsc_seg.probe.settings import ProbeSettings


def sample_pairs(num_images: int, pairs: int, seed: int) -> list[tuple[int, int]]:
    """Seeded pairs in which no image occurs twice; as many as asked for, or half as many as there are images.

    Raises UserError for fewer than two images.
    """
    if num_images < 2:
        raise UserError(f"the coupling ratio needs at least two images, got {num_images}.")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed)).tolist()
    return [(order[2 * i], order[2 * i + 1]) for i in range(min(pairs, num_images // 2))]


def coupling_probe(
    feature_fn: FeatureFn, pair_fn: FeatureFn, images: ImageSource, settings: ProbeSettings
) -> dict[str, Any]:
    """Eq. 15 over `settings.coupling_pairs` seeded pairs, tokens of all pairs pooled.

    `feature_fn` encodes A and B as a batch of two; `pair_fn` encodes AB, one image of twice the width with A on the
    left, and returns a map of twice the width (for an encoder both are the same function). Ratios and cosines as they
    are, not in percent. Raises UserError when the joint map is not the two single maps wide.
    """
    numerators, denominators = [], []
    pairs = sample_pairs(len(images), settings.coupling_pairs, settings.seed)
    for a, b in pairs:
        batch = image_batch(images, (a, b), settings)
        with torch.inference_mode():
            alone = feature_fn(batch).float().cpu()  # (2, D, h, w)
            joint = pair_fn(torch.cat([batch[:1], batch[1:]], dim=3)).float().cpu()  # (1, D, h, 2w)
        width = alone.shape[3]
        if joint.shape != (1, *alone.shape[1:3], 2 * width):
            raise UserError(
                f"coupling: the joined image gave a map {tuple(joint.shape)} beside single maps {tuple(alone.shape)}."
            )
        numerator, denominator = coupling_cosines(
            joint[0, :, :, :width].flatten(1).T,
            joint[0, :, :, width:].flatten(1).T,
            alone[0].flatten(1).T,
            alone[1].flatten(1).T,
        )
        numerators.append(numerator)
        denominators.append(denominator)
    return {"pairs": len(pairs), **coupling_ratio(torch.cat(numerators), torch.cat(denominators))._asdict()}
