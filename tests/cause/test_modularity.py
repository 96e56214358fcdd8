"""Modularity: closed forms, and the definition written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.modularity import modularity_loss, modularity_matrix


def by_definition(x: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """The official order: tanh of every code's products, then the maximum, then the trace."""
    unit, c = F.normalize(x, dim=-1), F.normalize(codes, dim=-1)
    terms = []
    for tokens in unit:
        affinity = (tokens @ tokens.T).clamp(min=0) * (1 - torch.eye(len(tokens), dtype=x.dtype))
        degree, total = affinity.sum(1), affinity.sum()
        w = (affinity - torch.outer(degree, degree) / total) / total
        shared = (tokens @ c.T).clamp(min=0).T  # (K, L)
        delta = torch.tanh(shared[:, :, None] * shared[:, None, :] / temperature).amax(0)
        terms.append(-(w @ delta).trace())
    return torch.stack(terms).mean()


def test_two_orthogonal_pairs_have_modularity_one_half() -> None:
    # tokens a, a, b, b: A joins equal ones alone, every degree is 1 and S is 4
    x = torch.eye(2).repeat_interleave(2, 0)[None]
    expected = torch.tensor([[-1.0, 3, -1, -1], [3, -1, -1, -1], [-1, -1, -1, 3], [-1, -1, 3, -1]]) / 16
    assert torch.allclose(modularity_matrix(x)[0], expected)
    # one code per pair: the loss is -1/2 tanh(10); a single code for all tokens: the whole of W, which sums to zero
    assert float(modularity_loss(x, torch.eye(2))) == pytest.approx(-0.5 * math.tanh(10), abs=1e-6)
    assert float(modularity_loss(x, torch.ones(1, 2))) == pytest.approx(0, abs=1e-6)


def test_rows_of_w_sum_to_zero() -> None:
    w = modularity_matrix(torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)))
    assert w.sum(2).abs().max() < 1e-7
    assert torch.allclose(w, w.transpose(1, 2))


@pytest.mark.parametrize(("tokens", "codes", "temperature"), [(9, 5, 0.1), (16, 40, 0.1), (7, 3, 1.0)])
def test_loss_and_gradient_are_those_of_the_definition(tokens: int, codes: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(3, tokens, 6, generator=generator) + 0.4
    c = torch.randn(codes, 6, generator=generator)
    mine, exact = c.clone().requires_grad_(), c.double().requires_grad_()
    loss, reference = modularity_loss(x, mine, temperature), by_definition(x.double(), exact, temperature)
    loss.backward()
    reference.backward()
    assert mine.grad is not None and exact.grad is not None
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert torch.allclose(mine.grad.double(), exact.grad, rtol=1e-3, atol=1e-5 * float(exact.grad.abs().max()))


def test_lengths_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(2, 9, 6, generator=generator), torch.randn(5, 6, generator=generator)
    scaled = modularity_loss(x * torch.rand(2, 9, 1, generator=generator), c * torch.rand(5, 1, generator=generator))
    assert float(scaled) == pytest.approx(float(modularity_loss(x, c)), rel=1e-4)


def test_no_gradient_reaches_the_tokens() -> None:
    x = torch.randn(1, 6, 4, requires_grad=True)
    modularity_loss(x, torch.randn(3, 4, requires_grad=True)).backward()
    assert x.grad is None


def test_an_image_without_affinity_counts_zero() -> None:
    x = torch.eye(4)[None]
    assert float(modularity_loss(x, torch.randn(3, 4))) == 0.0
