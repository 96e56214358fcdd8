"""The front-door contrastive loss: which tokens attract and repel is said by their codes, not by the tokens."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsc_seg.cause.bank import CodeBank

_CHUNK = 4096  # keys at a time: B L x chunk numbers stay near the processor


class CodeRelations(NamedTuple):
    """Tables over pairs of codes; K x K."""

    positive: Bool[Tensor, "K K"]
    used: Bool[Tensor, "K K"]  # positive or negative: what stands in the denominator


def code_relations(codes: Float[Tensor, "K D"], *, positive: float = 0.3, negative: float = 0.1) -> CodeRelations:
    """Pairs of codes with a cosine above `positive` attract, below `negative` repel; the rest is ignored."""
    unit = F.normalize(codes.detach().float(), dim=-1)
    cosine = unit @ unit.T
    attract = cosine > positive
    return CodeRelations(attract, attract | (cosine < negative))


@torch.no_grad()
def assign_codes(x: Float[Tensor, "B L D"], codes: Float[Tensor, "K D"]) -> Int64[Tensor, "B L"]:
    """The code with the highest cosine for each token."""
    return (F.normalize(x.float(), dim=-1) @ F.normalize(codes.float(), dim=-1).T).argmax(dim=-1)


class _Keys(NamedTuple):
    vectors: Tensor  # (N, E), unit length
    codes: Tensor  # (N,)
    are_anchors: bool  # key n is the teacher's view of anchor n, and is left out for it


class _ImageLosses(torch.autograd.Function):
    """Loss of each image over one set of keys; the gradient is known in closed form and computed on the way."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, anchors: Tensor, keys: _Keys, relations: CodeRelations, tau: float) -> Tensor:
        """`z` (B, L, E) and the keys have unit length, so exp((cosine - 1) / tau) cannot overflow."""
        batch, tokens = anchors.shape
        flat, codes = z.detach().flatten(0, 1), anchors.flatten()
        attract, used = relations.positive[codes], relations.used[codes]  # (B L, K)
        total, pulled, pairs = (flat.new_zeros(len(flat)) for _ in range(3))
        kept = []
        for start in range(0, len(keys.codes), _CHUNK):
            part = slice(start, start + _CHUNK)
            cosine = flat @ keys.vectors[part].T
            pos = attract.index_select(1, keys.codes[part])
            mask = used.index_select(1, keys.codes[part])
            if keys.are_anchors:
                row = torch.arange(start, start + cosine.shape[1], device=z.device)
                pos[row, row - start] = False
                mask[row, row - start] = False
            weight = pos.to(cosine.dtype)
            pairs += weight.sum(1)
            pulled += torch.linalg.vecdot(cosine, weight)
            share = cosine.sub_(1).div_(tau).exp_().mul_(mask)
            total += share.sum(1)
            kept.append((share, weight))
        image_pairs = pairs.view(batch, tokens).sum(1)
        # an anchor without a positive key takes no part, whatever its denominator
        log_total = torch.where(pairs > 0, total, 1.0).log() + 1 / tau
        losses = (pairs * log_total - pulled / tau).view(batch, tokens).sum(1) / image_pairs
        if ctx.needs_input_grad[0]:
            pull = torch.where(pairs > 0, pairs / total, 0.0)[:, None]
            slope = torch.zeros_like(flat)
            for start, (share, weight) in zip(range(0, len(keys.codes), _CHUNK), kept, strict=True):
                slope.addmm_(share.mul_(pull).sub_(weight), keys.vectors[start : start + _CHUNK])
            ctx.save_for_backward(slope.view_as(z) / (tau * image_pairs[:, None, None]))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """No gradient reaches the keys."""
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None, None], None, None, None, None


def contrastive_loss(
    student: Float[Tensor, "B L E"],
    teacher: Float[Tensor, "B L E"],
    assigned: Int64[Tensor, "B L"],
    relations: CodeRelations,
    *,
    temperature: float = 0.07,
    bank: CodeBank | None = None,
) -> Float[Tensor, ""]:
    """Mean over images and over the two sets of keys: the batch's teacher tokens, and the bank when it holds any.

    l_ij = -z_i.t_j / temperature + log sum_k exp(z_i.t_k / temperature), k over positives and negatives, averaged over
    the positive pairs of an image; a token is no key for itself. NaN when an image has no positive pair, as in the
    official code. Projections come as they are and are normalised here; no gradient reaches `teacher` or the bank.
    """
    z, t = F.normalize(student.float(), dim=-1), F.normalize(teacher.detach().float(), dim=-1)
    sets = [_Keys(t.flatten(0, 1), assigned.flatten(), are_anchors=True)]
    if bank is not None and len(bank) > 0:
        sets.append(_Keys(bank.keys, bank.codes, are_anchors=False))
    terms = [_ImageLosses.apply(z, assigned, keys, relations, temperature) for keys in sets]
    return torch.stack(terms).mean()
