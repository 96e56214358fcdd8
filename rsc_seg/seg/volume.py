"""Parts that the aggregator's stages share: projections with guidance folded in, and work by chunks of classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GuidedProjections(nn.Module):
    """Queries and keys of [token; guidance], values of the token alone, one linear layer each (`q`, `k`, `v`).

    A linear layer on a concatenation is a sum of two; guidance is the same for many tokens, so its share is computed
    once for all of them.
    """

    def __init__(self, dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def of_guidance(self, guidance: Float[Tensor, "*B G"]) -> Float[Tensor, "*B C3"]:
        """Share of the guidance in queries, keys and values, with all biases."""
        weight = torch.cat([self.q.weight[:, self.dim :], self.k.weight[:, self.dim :]])
        bias = torch.cat([self.q.bias, self.k.bias])
        share = F.linear(guidance, weight, bias)
        return torch.cat([share, self.v.bias.to(share.dtype).expand(*share.shape[:-1], self.dim)], dim=-1)

    def of_tokens(self, tokens: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C3"]:
        """Share of the tokens in queries, keys and values."""
        return F.linear(tokens, torch.cat([self.q.weight[:, : self.dim], self.k.weight[:, : self.dim], self.v.weight]))


def by_chunks(
    step: Callable[[Tensor], Tensor], x: Float[Tensor, "B T ..."], *, chunk: int, checkpointed: bool, dim: int = 1
) -> Tensor:
    """`step` on parts of `x` along `dim`, joined again; for steps that treat the entries of `dim` alone.

    Without gradients, and with `checkpointed`, parts are at most `chunk` long; otherwise there is one part, because
    everything is kept for the backward pass anyway.
    """
    graded = torch.is_grad_enabled()
    if graded and not checkpointed:
        return step(x)
    parts = x.split(chunk, dim=dim)
    if graded:
        done = [checkpoint(step, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done, dim=dim)
    first = step(parts[0])
    if len(parts) == 1:
        return first
    # written into place: joining a list would hold everything twice
    out = first.new_empty(*first.shape[:dim], x.shape[dim], *first.shape[dim + 1 :])
    out.narrow(dim, 0, parts[0].shape[dim]).copy_(first)
    start = parts[0].shape[dim]
    del first
    for part in parts[1:]:
        out.narrow(dim, start, part.shape[dim]).copy_(step(part))
        start += part.shape[dim]
    return out
