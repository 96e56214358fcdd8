"""Eq. 15 on tokens whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from rsc_seg.ops.coupling import coupling_cosines, coupling_ratio


def test_hand_worked_pair() -> None:
    joint_a = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    joint_b = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    alone_a = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    alone_b = torch.tensor([[1.0, 1.0], [5.0, 5.0], [0.0, 4.0]])
    numerator, denominator = coupling_cosines(joint_a, joint_b, alone_a, alone_b)
    # token 0 of A is most like token 0 of B in the joint map, token 1 most like token 2
    assert numerator.tolist() == pytest.approx([1.0, 2 / math.sqrt(5)])
    assert denominator.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])


def test_match_is_taken_in_the_joint_map() -> None:
    # alone, token 1 of B would be the best match (cosine 1); Eq. 15 reads the joint map's choice, token 0
    numerator, denominator = coupling_cosines(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
    )
    assert numerator.item() == pytest.approx(1.0)
    assert denominator.item() == pytest.approx(math.sqrt(0.5))


def test_agrees_with_a_loop_over_tokens() -> None:
    maps = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 7)]
    alone = [torch.randn(n, 8, generator=torch.Generator().manual_seed(10 + n)) for n in (5, 7)]
    numerator, denominator = coupling_cosines(*maps, *alone)
    for i in range(5):
        cosines = [F.cosine_similarity(maps[0][i], maps[1][k], dim=0).item() for k in range(7)]
        j = cosines.index(max(cosines))
        assert numerator[i].item() == pytest.approx(max(cosines), abs=1e-6)
        assert denominator[i].item() == pytest.approx(
            F.cosine_similarity(alone[0][i], alone[1][j], dim=0).item(), abs=1e-6
        )


def test_encoder_without_context_has_ratio_one() -> None:
    a, b = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.randn(9, 8)
    ratio = coupling_ratio(*coupling_cosines(a, b, a, b))
    assert ratio.median == pytest.approx(1.0, abs=1e-6)
    assert ratio.ratio_of_means == pytest.approx(1.0, abs=1e-6)
    assert ratio.mean_joint == pytest.approx(ratio.mean_alone, abs=1e-6)


def test_one_denominator_near_zero_ruins_only_the_mean_of_ratios() -> None:
    numerator = torch.tensor([0.6, 0.5, 0.8, 0.7, 0.6])
    denominator = torch.tensor([0.5, 0.5, 0.4, 0.7, -1e-6])
    ratio = coupling_ratio(numerator, denominator)
    assert ratio.median == pytest.approx(1.0)  # of 1.2, 1, 2, 1, -6e5
    assert ratio.ratio_of_means == pytest.approx(3.2 / 2.1, rel=1e-4)
    assert ratio.mean_of_ratios < -1e5
    assert (ratio.mean_joint, ratio.mean_alone) == pytest.approx((0.64, 0.42), abs=1e-5)


def test_median_of_an_even_number_is_the_middle() -> None:
    assert coupling_ratio(torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.ones(4)).median == 2.5
