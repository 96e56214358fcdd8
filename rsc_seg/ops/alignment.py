"""Losses of region-language alignment (Eq. 1): CLIPSelf's and, with nouns, RegionText's."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rsc_seg.ops.correlation import at_least_single


def _mean(values: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """The mean, or a zero with a gradient (of zero) where there is nothing: a batch may hold no box."""
    return values.mean() if len(values) else values.sum()


def clipself_loss(pred: Float[Tensor, "K E"], target: Float[Tensor, "K E"]) -> Float[Tensor, ""]:
    """1 - cosine of a box's feature and its crop's embedding, mean over boxes; 0 without boxes.

    `pred` and `target` need not be normalised; no gradient reaches `target`. Computed at least in float32. Matches
    CLIPSelf's training loss.
    """
    with torch.autocast(pred.device.type, enabled=False):
        ours, theirs = (F.normalize(at_least_single(t), dim=-1) for t in (pred, target.detach()))
        return _mean(1 - (ours * theirs).sum(dim=-1))


def federated_classes(
    nouns: Int[Tensor, " K"], total: int, sampled: int, generator: torch.Generator
) -> Int[Tensor, " C"]:
    """The classes of one step: those among `nouns` (each once, ascending), then others drawn uniformly up to `sampled`.

    All that appear are kept, even beyond `sampled`, and there are never more than `total`. `generator` is a CPU one, so
    that every device draws alike. Matches CLIPSelf's federated sampling for RegionText but for the random numbers.
    """
    appeared = torch.unique(nouns)
    rest = torch.ones(total, dtype=torch.bool)
    rest[appeared.cpu()] = False
    others = rest.nonzero()[:, 0]
    drawn = others[torch.randperm(len(others), generator=generator)[: max(0, sampled - len(appeared))]]
    return torch.cat([appeared, drawn.to(appeared.device)])


def regiontext_loss(
    pred: Float[Tensor, "K E"],
    nouns: Int[Tensor, " K"],
    embeddings: Float[Tensor, "N E"],
    classes: Int[Tensor, " C"],
    scale: float,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of `scale` * cosine with the nouns, summed over `classes`, mean over boxes; 0 without boxes.

    `nouns` are rows of `embeddings`, each among `classes` (see `federated_classes`); `pred` and `embeddings` need not
    be normalised, no gradient reaches the latter. Computed at least in float32. Matches the loss of RegionCLIP's
    adaptation in CLIPSelf's code.
    """
    with torch.autocast(pred.device.type, enabled=False):
        ours = F.normalize(at_least_single(pred), dim=-1)
        theirs = F.normalize(embeddings.detach()[classes].to(ours.dtype), dim=-1)
        target = (nouns[:, None] == classes[None]).to(ours.dtype)
        losses = F.binary_cross_entropy_with_logits(ours @ theirs.T * scale, target, reduction="none")
        return _mean(losses.sum(dim=-1))
