"""SCD: its value by hand, its least value, what it does not see, and where no gradient goes."""

import math

import pytest
import torch
from torch import Tensor

from rsc_seg.ops.correlation import correlation_logits, scd_loss

torch.set_num_threads(1)


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_tokens_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # cosine 0
    teacher = torch.tensor([[[2.0, 0.0], [1.0, math.sqrt(3.0)]]])  # cosine 1/2
    p = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0.5 / 0.5))  # a teacher row: itself, the other
    q = math.exp(1 / 0.25) / (math.exp(1 / 0.25) + 1)
    expected = -(p * math.log(q) + (1 - p) * math.log(1 - q))
    loss = scd_loss(student, teacher, temperature_student=0.25, temperature_teacher=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_raw_products_by_hand() -> None:
    z = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    assert correlation_logits(z, 2.0, normalize=False).tolist() == [[[2.5, 0.5], [0.5, 5.0]]]


def test_cosines_lie_between_plus_and_minus_one_over_the_temperature() -> None:
    logits = correlation_logits(tokens(0, 2, 9, 5) * 40, 0.2)
    torch.testing.assert_close(logits.diagonal(dim1=1, dim2=2), torch.full((2, 9), 5.0))
    assert logits.abs().max() <= 5.0 + 1e-5
    torch.testing.assert_close(logits, logits.transpose(1, 2))


def test_equal_correlations_give_the_entropy_of_the_rows_and_it_is_the_least_value() -> None:
    z = tokens(1, 3, 8, 6)
    rows = correlation_logits(z, 0.2).softmax(-1)
    entropy = torch.distributions.Categorical(rows).entropy().mean()
    student = z.clone().requires_grad_()
    loss = scd_loss(student, z)
    torch.testing.assert_close(loss, entropy)
    loss.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-6
    for seed in range(5):
        assert scd_loss(z + 0.3 * tokens(10 + seed, 3, 8, 6), z) > entropy


def test_sees_relations_only() -> None:
    student, teacher = tokens(2, 2, 7, 6), tokens(3, 2, 7, 6)
    rotation = torch.linalg.qr(tokens(4, 6, 6)).Q
    loss = scd_loss(student, teacher)
    torch.testing.assert_close(scd_loss(student @ rotation, teacher), loss)
    torch.testing.assert_close(scd_loss(student, teacher @ rotation), loss)
    torch.testing.assert_close(scd_loss(3 * student, teacher), loss)  # cosines: lengths do not count
    assert abs(scd_loss(3 * student, teacher, normalize=False) - scd_loss(student, teacher, normalize=False)) > 0.1
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(scd_loss(student[:, order], teacher[:, order]), loss)
    assert abs(scd_loss(student[:, order], teacher) - loss) > 1e-3


def test_mean_over_regions() -> None:
    student, teacher = tokens(5, 3, 7, 6), tokens(6, 3, 7, 6)
    single = [scd_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(scd_loss(student, teacher), torch.stack(single).mean())


def test_regions_do_not_see_each_other() -> None:
    student, teacher = tokens(5, 2, 7, 6).requires_grad_(), tokens(6, 2, 7, 6)
    (grad,) = torch.autograd.grad(scd_loss(student, teacher) * 2, student)
    (alone,) = torch.autograd.grad(scd_loss(student[:1], teacher[:1]), student)
    torch.testing.assert_close(grad[0], alone[0])


def test_teacher_gets_no_gradient_and_may_be_wider() -> None:
    student, teacher = tokens(7, 2, 7, 6).requires_grad_(), tokens(8, 2, 7, 10).requires_grad_()
    scd_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_different_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size"):
        scd_loss(tokens(0, 2, 7, 6), tokens(0, 2, 8, 6))


def test_sharper_teacher_than_student_is_another_loss() -> None:
    z = tokens(9, 2, 7, 6)
    even = scd_loss(z, z)
    assert scd_loss(z, z, temperature_teacher=0.05) != even
    assert scd_loss(z, z, temperature_student=0.05) > even  # cross-entropy of the same teacher rows: not the least


def test_float32_under_autocast() -> None:
    student, teacher = tokens(2, 2, 7, 6), tokens(3, 2, 7, 6)
    exact = scd_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scd_loss(student, teacher), exact)
        assert correlation_logits(student.bfloat16(), 0.2).dtype == torch.float32
