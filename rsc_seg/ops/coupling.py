"""Coupling ratio (Eq. 15): how much of the likeness of two unrelated images comes from seeing them side by side."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class CouplingRatio(NamedTuple):
    """Three readings of Eq. 15 over many tokens, and the two mean cosines without which no reading can be judged."""

    median: float
    ratio_of_means: float
    mean_of_ratios: float
    mean_joint: float
    mean_alone: float


def coupling_cosines(
    joint_a: Float[Tensor, "La D"],
    joint_b: Float[Tensor, "Lb D"],
    alone_a: Float[Tensor, "La D"],
    alone_b: Float[Tensor, "Lb D"],
) -> tuple[Float[Tensor, " La"], Float[Tensor, " La"]]:
    """Numerators and denominators of Eq. 15 for one pair of images.

    `joint_*`: the tokens of A and B cut out of the map of the joined image AB; `alone_*`: of each image by itself, in
    the same order. For token i of A, j is the token of B with the highest cosine in the joint map (as the paper defines
    it); the same j is read in the maps of the single images. Returns cos(A_i, B_j) joint and alone: float32, not
    centred.
    """
    joint = F.normalize(joint_a.float(), dim=1) @ F.normalize(joint_b.float(), dim=1).T
    numerator, match = joint.max(dim=1)
    denominator = F.cosine_similarity(alone_a.float(), alone_b.float()[match], dim=1)
    return numerator, denominator


def coupling_ratio(numerator: Float[Tensor, " N"], denominator: Float[Tensor, " N"]) -> CouplingRatio:
    """Summaries over the tokens of all pairs, pooled.

    `median` of the ratios; `ratio_of_means` = mean numerator / mean denominator; `mean_of_ratios` is the paper's
    formula, unstable because single denominators come near zero. The median of an even number of ratios is the mean of
    the middle two.
    """
    numerator, denominator = numerator.double(), denominator.double()
    ratio = (numerator / denominator).sort().values
    middle = ratio[[(len(ratio) - 1) // 2, len(ratio) // 2]].mean()
    return CouplingRatio(
        median=middle.item(),
        ratio_of_means=(numerator.mean() / denominator.mean()).item(),
        mean_of_ratios=ratio.mean().item(),
        mean_joint=numerator.mean().item(),
        mean_alone=denominator.mean().item(),
    )
