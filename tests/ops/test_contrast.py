"""Alignment losses: values by hand, limits, scale, and no gradient into the target."""

import math

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.ops.contrast import ALIGN_LOSSES, alignment_loss, cosine_loss, infonce_loss, soft_target_loss

torch.set_num_threads(1)


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_infonce_by_hand() -> None:
    pred = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    target = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])
    c = math.sqrt(0.5)
    # anchor 1: cosines 1 (positive), 0; anchor 2: c, c (positive); temperature 1/2
    first, second = -math.log(math.exp(2) / (math.exp(2) + 1)), -math.log(math.exp(2 * c) / (2 * math.exp(2 * c)))
    assert infonce_loss(pred, target, temperature=0.5).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_infonce_to_the_letter_uses_raw_products() -> None:
    pred, target = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [-1.0]]])
    # anchor 1: products 1 (positive), -1; anchor 2: 2, -2 (positive)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(4))) / 2
    assert infonce_loss(pred, target, temperature=1.0, normalize=False).item() == pytest.approx(expected, abs=1e-6)


def test_infonce_anchors_are_the_predictions() -> None:
    pred, target = tokens(0, 2, 6, 5), tokens(1, 2, 6, 5)
    assert infonce_loss(pred, target) != infonce_loss(target, pred)


def test_negatives_come_from_the_same_crop_only() -> None:
    pred, target = tokens(0, 3, 6, 5), tokens(1, 3, 6, 5)
    single = [infonce_loss(pred[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(infonce_loss(pred, target), torch.stack(single).mean())


@pytest.mark.parametrize("normalize", [True, False])
def test_soft_goes_over_into_infonce(normalize: bool) -> None:
    target = tokens(1, 2, 6, 5)
    target = target / target.norm(dim=-1, keepdim=True)  # a token is then nearest to itself in raw products too
    pred = target + 0.2 * tokens(0, 2, 6, 5)
    hard = infonce_loss(pred, target, normalize=normalize)
    gaps = [
        abs(soft_target_loss(pred, target, target_temperature=t, normalize=normalize) - hard).item()
        for t in (1.0, 0.1, 0.02, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] >= gaps[3]
    assert gaps[3] < 1e-6


def test_soft_is_least_at_the_target_and_there_the_entropy_of_its_rows() -> None:
    target = tokens(2, 2, 6, 5)
    unit = target / target.norm(dim=-1, keepdim=True)
    rows = (unit @ unit.mT / 0.1).softmax(-1)
    least = soft_target_loss(target, target)
    torch.testing.assert_close(least, torch.distributions.Categorical(rows).entropy().mean())
    for seed in range(4):
        assert soft_target_loss(target + 0.3 * tokens(10 + seed, 2, 6, 5), target) > least


def test_infonce_pushes_near_twins_apart_and_soft_does_not() -> None:
    target = tokens(3, 1, 1, 5) + 0.05 * tokens(4, 1, 4, 5)
    grads = []
    for loss in (infonce_loss, soft_target_loss):
        pred = target.clone().requires_grad_()
        loss(pred, target).backward()
        assert pred.grad is not None
        grads.append(pred.grad.abs().max().item())
    assert grads[0] > 0.01 and grads[1] < 1e-6


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (7.0, 0.0), (-2.0, 2.0)])
def test_cosine_reads_direction_only(factor: float, expected: float) -> None:
    target = tokens(4, 2, 6, 5)
    torch.testing.assert_close(cosine_loss(factor * target, target), torch.tensor(expected), atol=1e-6, rtol=0)


def test_cosine_by_hand_and_token_by_token() -> None:
    pred, target = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert cosine_loss(pred, target).item() == pytest.approx((1 + (1 - 0.6)) / 2)


@pytest.mark.parametrize("name", ALIGN_LOSSES)
def test_no_gradient_into_the_target(name: str) -> None:
    pred, target = tokens(5, 2, 6, 5).requires_grad_(), tokens(6, 2, 6, 5).requires_grad_()
    alignment_loss(name, pred, target).backward()
    assert target.grad is None
    assert pred.grad is not None and pred.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ALIGN_LOSSES)
def test_float32_under_autocast(name: str) -> None:
    pred, target = tokens(5, 2, 6, 5), tokens(6, 2, 6, 5)
    exact = alignment_loss(name, pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(alignment_loss(name, pred, target), exact)


def test_names_reach_their_losses_with_all_options() -> None:
    pred, target = tokens(7, 2, 6, 5), tokens(8, 2, 6, 5)
    options = {"temperature": 0.3, "target_temperature": 0.7, "normalize": False}
    soft = soft_target_loss(pred, target, temperature=0.3, target_temperature=0.7, normalize=False)
    assert torch.equal(alignment_loss("soft", pred, target, **options), soft)
    hard = infonce_loss(pred, target, temperature=0.3, normalize=False)
    assert torch.equal(alignment_loss("infonce", pred, target, **options), hard)
    assert torch.equal(alignment_loss("cosine", pred, target, **options), cosine_loss(pred, target))


def test_unknown_name_suggests() -> None:
    with pytest.raises(UserError, match=r"refine.align.loss=infonec: must be one of soft, infonce, cosine.*'infonce'"):
        alignment_loss("infonec", tokens(0, 1, 2, 2), tokens(1, 1, 2, 2))
