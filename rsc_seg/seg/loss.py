"""Binary cross-entropy of every class at every pixel, without a one-hot target."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.seg.aggregator import ClassLogits
from rsc_seg.seg.options import IGNORE_RULES

IGNORE = 255


def check_targets(targets: Int[Tensor, "B H W"], classes: int) -> None:
    """UserError for labels that are neither 0..classes-1 nor `IGNORE`."""
    valid = targets[targets != IGNORE]
    if valid.numel() and not 0 <= int(valid.min()) <= int(valid.max()) < classes:
        raise UserError(
            f"labels hold values {int(valid.min())}..{int(valid.max())}; expected 0..{classes - 1} or {IGNORE} "
            "(ignored): give the class names that the labels belong to."
        )


def _terms(logits: Tensor, targets: Tensor, numbers: Tensor, rule: str) -> Float[Tensor, ""]:
    """Sum over pixels and the classes `numbers` of softplus(z), less z where the pixel is of the class."""
    with torch.autocast(logits.device.type, enabled=False):
        z = F.interpolate(logits.float(), size=targets.shape[1:], mode="bilinear", align_corners=False)
    place = (targets - numbers[0]).clamp(0, len(numbers) - 1)
    here = (targets >= numbers[0]) & (targets <= numbers[-1]) & (targets != IGNORE)
    hit = (z.gather(1, place[:, None])[:, 0] * here).sum()
    every = F.softplus(z)
    if rule == "mask":
        every = every * (targets != IGNORE)[:, None]
    return every.sum() - hit


def segmentation_loss(
    logits: ClassLogits,
    targets: Int[Tensor, "B H W"],
    *,
    ignore: str = "negative",
    chunk: int = 32,
    checkpointed: bool = False,
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy over images, pixels and classes, at the size of `targets`, in float32.

    (sum of softplus(z) - sum of z at the true classes) / count, which is the same number. `ignore`: `negative` (pixels
    of value 255 are negatives of every class: CAT-Seg) or `mask` (they do not count). With `checkpointed`, logits of
    full size exist for `chunk` classes at a time only. Raises UserError for labels out of range.
    """
    require_choice("ignore", ignore, IGNORE_RULES)
    targets = targets.long()
    check_targets(targets, logits.total)
    all_numbers = torch.arange(logits.total, device=targets.device)
    split = checkpointed or not torch.is_grad_enabled()
    total = logits.values.new_zeros((), dtype=torch.float32)
    for numbers in all_numbers.split(chunk if split else logits.total):
        part = logits.select(numbers) if len(numbers) < logits.total else logits.dense()
        if checkpointed and torch.is_grad_enabled():
            found = checkpoint(_terms, part, targets, numbers, ignore, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(found, Tensor)
            total = total + found
        else:
            total = total + _terms(part, targets, numbers, ignore)
    pixels = targets.numel() if ignore == "negative" else int((targets != IGNORE).sum())
    return total / max(1, pixels * logits.total)
