"""Modularity of a soft clustering of the tokens of one image: what trains the codebook and the cluster probe."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def modularity_matrix(x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L L"]:
    """W = (A - d d^T / S) / S of the affinity A = max(0, cosine) with zero diagonal, d its row sums and S its sum.

    Rows sum to zero. An image without a positive affinity has W = 0. Float32.
    """
    unit = F.normalize(x.float(), dim=-1)
    affinity = (unit @ unit.transpose(1, 2)).clamp(min=0)
    affinity.diagonal(dim1=1, dim2=2).zero_()
    degree = affinity.sum(2)
    total = affinity.sum((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    # W is a small difference of larger numbers: sums and products are taken in the official order, down to the last bit
    return (affinity - degree[:, :, None] * degree[:, None, :] / total) / total


class _BestShared(torch.autograd.Function):
    """max_k tanh(c_ik c_jk / T) for all pairs i <= j, row by row of the upper triangle: (B, L, K) -> (B, L(L+1)/2).

    The tanh comes before the maximum although it is monotone: where it saturates in float32 several codes are equal,
    the first of them gets the gradient, and Adam makes a full step of however small a gradient.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, temperature: float) -> Tensor:
        """Keeps the winning code of each pair, never the B x L x L x K products."""
        found = [(c[:, i : i + 1] * c[:, i:]).div_(temperature).tanh_().max(dim=2) for i in range(c.shape[1])]
        values, winners = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        ctx.save_for_backward(c, values, winners)
        ctx.temperature = temperature
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Only the winning code of a pair receives a gradient, at both of its tokens."""
        c, values, winners = ctx.saved_tensors
        grad = grad * (1 - values * values) / ctx.temperature
        i, j = torch.triu_indices(c.shape[1], c.shape[1], device=c.device)
        at_i, at_j = (
            (torch.arange(len(c), device=c.device)[:, None] * c.shape[1] + t) * c.shape[2] + winners for t in (i, j)
        )
        flat, out = c.flatten(), torch.zeros(c.numel(), dtype=c.dtype, device=c.device)
        out.index_add_(0, at_i.flatten(), (grad * flat[at_j]).flatten())
        out.index_add_(0, at_j.flatten(), (grad * flat[at_i]).flatten())
        return out.view_as(c), None


def modularity_loss(
    x: Float[Tensor, "B L D"], codes: Float[Tensor, "K D"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """-mean over images of sum_ij W_ij tanh(max_k C_ik C_jk / temperature), C = max(0, cosine(x, codes)).

    `x` is taken as constant; gradients reach `codes` alone. Float32. The official code holds the tanh of all
    B x K x L x L products; here pairs are visited once, a row at a time, which gives the same numbers.
    """
    x = x.detach().float()
    cosine = F.normalize(x, dim=-1) @ F.normalize(codes.float(), dim=-1).T
    shared = _BestShared.apply(cosine.clamp(min=0), temperature)
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    weight = modularity_matrix(x)[:, i, j] * torch.where(i == j, 1.0, 2.0)
    return -(weight * shared).sum(1).mean()
