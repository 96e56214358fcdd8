"""Losses that align the Refiner's tokens with a crop's, token j with token j (stage 1)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rsc_seg.errors import UserError, suggestion
from rsc_seg.ops.correlation import at_least_single, similarities

ALIGN_LOSSES = ("soft", "infonce", "cosine")


def infonce_loss(
    pred: Float[Tensor, "R L D"], target: Float[Tensor, "R L D"], *, temperature: float = 0.1, normalize: bool = True
) -> Float[Tensor, ""]:
    """InfoNCE over the tokens of the same crop (Eq. 13): anchor pred[j], positive target[j], negatives target[k].

    `normalize=False, temperature=1` is the equation to the letter. No gradient reaches `target`.
    """
    logits = similarities(pred, target.detach(), normalize=normalize) / temperature
    return -logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).mean()


def soft_target_loss(
    pred: Float[Tensor, "R L D"],
    target: Float[Tensor, "R L D"],
    *,
    temperature: float = 0.1,
    target_temperature: float = 0.1,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Cross-entropy to the crop's own similarity rows instead of one-hot rows.

    A departure from the paper: tokens of one surface are not pushed apart for being different tokens. Goes over into
    `infonce_loss` as `target_temperature` goes to zero. No gradient reaches `target`.
    """
    target = target.detach()
    rows = (similarities(target, target, normalize=normalize) / target_temperature).softmax(dim=-1)
    logits = similarities(pred, target, normalize=normalize) / temperature
    return -(rows * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def cosine_loss(pred: Float[Tensor, "R L D"], target: Float[Tensor, "R L D"]) -> Float[Tensor, ""]:
    """1 - cosine of token j with token j, mean over tokens (Eq. 14). No gradient reaches `target`."""
    return (1 - F.cosine_similarity(at_least_single(pred), at_least_single(target.detach()), dim=-1)).mean()


def alignment_loss(
    name: str,
    pred: Float[Tensor, "R L D"],
    target: Float[Tensor, "R L D"],
    *,
    temperature: float = 0.1,
    target_temperature: float = 0.1,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """The loss called `name`: soft, infonce or cosine. UserError for another name."""
    if name == "soft":
        return soft_target_loss(
            pred, target, temperature=temperature, target_temperature=target_temperature, normalize=normalize
        )
    if name == "infonce":
        return infonce_loss(pred, target, temperature=temperature, normalize=normalize)
    if name == "cosine":
        return cosine_loss(pred, target)
    raise UserError(
        f"refine.align.loss={name}: must be one of {', '.join(ALIGN_LOSSES)}.{suggestion(name, ALIGN_LOSSES)}"
    )
