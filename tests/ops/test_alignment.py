"""Losses of region-language alignment: by hand, what they leave out, which classes a step has."""

import math

import pytest
import torch
from torch import Tensor

from rsc_seg.ops.alignment import clipself_loss, federated_classes, regiontext_loss

torch.set_num_threads(1)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_clipself_by_hand() -> None:
    pred = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    assert clipself_loss(pred, target).item() == pytest.approx(1 - (1 + math.sqrt(0.5)) / 2, abs=1e-6)


def test_clipself_gives_the_target_no_gradient() -> None:
    pred, target = rows(0, 4, 6).requires_grad_(), rows(1, 4, 6).requires_grad_()
    clipself_loss(pred, target).backward()
    assert target.grad is None
    assert pred.grad is not None and pred.grad.abs().sum() > 0
    assert float((pred.grad * pred.detach()).sum(dim=1).abs().max()) < 1e-6  # lengths do not count


def test_no_box_is_a_zero_with_a_gradient_of_zero() -> None:
    weight = rows(0, 6, 6).requires_grad_()
    pred, nothing = torch.zeros(0, 6) @ weight, torch.zeros(0, dtype=torch.long)
    for loss in (
        clipself_loss(pred, torch.zeros(0, 6)),
        regiontext_loss(pred, nothing, rows(1, 9, 6), torch.arange(4), 10.0),
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert not gradient.any()


def test_regiontext_by_hand() -> None:
    pred = torch.tensor([[2.0, 0.0]])
    nouns = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-4.0, 0.0]])  # cosines 0, 1, -1
    classes = torch.tensor([1, 2])

    def bce(logit: float, wanted: bool) -> float:
        return math.log1p(math.exp(-logit if wanted else logit))

    loss = regiontext_loss(pred, torch.tensor([1]), nouns, classes, 2.0)
    assert loss.item() == pytest.approx(bce(2, True) + bce(-2, False), abs=1e-6)
    other = regiontext_loss(pred, torch.tensor([2]), nouns, torch.tensor([1, 2, 0]), 2.0)
    assert other.item() == pytest.approx(bce(2, False) + bce(-2, True) + bce(0, False), abs=1e-6)


def test_regiontext_is_the_mean_over_boxes_and_the_sum_over_classes() -> None:
    pred, nouns, embeddings, classes = rows(0, 3, 6), torch.tensor([4, 0, 4]), rows(1, 9, 6), torch.tensor([0, 4, 7])
    single = [regiontext_loss(pred[i : i + 1], nouns[i : i + 1], embeddings, classes, 5.0) for i in range(3)]
    whole = regiontext_loss(pred, nouns, embeddings, classes, 5.0)
    torch.testing.assert_close(whole, torch.stack(single).mean())
    more = regiontext_loss(pred, nouns, embeddings, torch.tensor([0, 4, 7, 8]), 5.0)
    assert more > whole


def test_federated_classes_are_those_that_appear_and_random_others() -> None:
    nouns = torch.tensor([7, 2, 7, 40])

    def drawn(seed: int, sampled: int = 10, total: int = 50) -> list[int]:
        return federated_classes(nouns, total, sampled, torch.Generator().manual_seed(seed)).tolist()

    first = drawn(0)
    assert first[:3] == [2, 7, 40] and len(first) == len(set(first)) == 10
    assert all(0 <= c < 50 for c in first)
    assert first == drawn(0) != drawn(1)
    assert drawn(0, sampled=2) == [2, 7, 40]  # all that appear stay
    assert sorted(drawn(0, sampled=500)) == list(range(50))
    counts = torch.bincount(torch.tensor([c for seed in range(400) for c in drawn(seed)[3:]]), minlength=50)
    assert not counts[[2, 7, 40]].any()
    others = counts[[i for i in range(50) if i not in (2, 7, 40)]].float()
    assert others.sum() == 400 * 7 and abs(others / others.mean() - 1).max() < 0.5  # uniform: 60 each, give or take 7.5


def test_no_noun_appears() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert len(federated_classes(nothing, 20, 5, torch.Generator().manual_seed(0))) == 5


def test_float32_under_autocast_and_float64_where_given() -> None:
    pred, target = rows(0, 4, 6), rows(1, 4, 6)
    exact = clipself_loss(pred, target)
    named = (torch.tensor([1, 2, 3, 1]), rows(2, 9, 6), torch.arange(5), 10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clipself_loss(pred, target), exact)
        assert regiontext_loss(pred.bfloat16(), *named).dtype == torch.float32
    double = pred.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: clipself_loss(z, target.double()), double)
    assert torch.autograd.gradcheck(lambda z: regiontext_loss(z, *named), double)
