"""The probes on the features of a head: clusters found by modularity, and a linear layer found by labels."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rsc_seg.cause.modularity import modularity_loss


class ClusterProbe(nn.Module):
    """One direction per cluster in the space of the features."""

    def __init__(self, clusters: int, width: int = 90) -> None:
        super().__init__()
        self.cluster_probe = nn.Parameter(torch.empty(clusters, width).uniform_(-1 / clusters, 1 / clusters))

    def loss(self, features: Float[Tensor, "B L E"], temperature: float = 0.1) -> Float[Tensor, ""]:
        """Modularity of the clusters on these tokens; the features are taken as constant."""
        return modularity_loss(features, self.cluster_probe, temperature)

    def forward(self, features: Float[Tensor, "B E h w"]) -> Float[Tensor, "B T h w"]:
        """Cosine of each position with each cluster."""
        unit = F.normalize(self.cluster_probe, dim=1)
        return torch.einsum("behw,te->bthw", F.normalize(features.float(), dim=1), unit)


def upsampling_matrix(source: int, target: int) -> Float[Tensor, "N M"]:
    """Weights of bilinear interpolation along one axis (corners not aligned), target by source."""
    return F.interpolate(torch.eye(source)[None], size=target, mode="linear", align_corners=False)[0].T.contiguous()


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Image by image, with the gradient computed on the way: nothing of B x T x H x W is ever held."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """`rows` (H, h) and `columns` (W, w) upsample."""
        total, slopes = logits.new_zeros(()), []
        valid = (labels >= 0) & (labels < logits.shape[1])
        for one, label, known in zip(logits.detach(), labels, valid, strict=True):
            up = rows @ (one @ columns.T)  # (T, H, W)
            index = torch.where(known, label, 0).long()[None]
            weight = known.to(up.dtype)
            up -= up.amax(0)
            picked = up.gather(0, index)[0]
            mass = up.exp_().sum(0)
            total += ((mass.log() - picked) * weight).sum()
            if ctx.needs_input_grad[0]:
                up *= weight / mass
                up.scatter_add_(0, index, -weight[None])
                slopes.append(rows.T @ (up @ columns))
        count = valid.sum()
        if slopes:
            ctx.save_for_backward(torch.stack(slopes) / count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The stored slope."""
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None, None


def upsampled_cross_entropy(logits: Float[Tensor, "B T h w"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over labelled pixels of logits upsampled bilinearly to the labels; NaN when there are none.

    Labels outside 0..T-1 are ignored.
    """
    rows, columns = (
        upsampling_matrix(source, target).to(logits.device)
        for source, target in zip(logits.shape[2:], labels.shape[1:], strict=True)
    )
    return _UpsampledCrossEntropy.apply(logits.float(), labels, rows, columns)
