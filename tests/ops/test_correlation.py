"""SCD: its value by hand, its least value, what it does not see, and where no gradient goes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rsc_seg.ops.correlation import (
    attention_logits,
    correlation_logits,
    frobenius_loss,
    inter_image_loss,
    row_cross_entropy,
    scd_loss,
)

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


def test_three_tokens_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 4.0]]])
    c = math.sqrt(0.5)
    student_rows = [[1.0, 0.0, c], [0.0, 1.0, c], [c, c, 1.0]]
    teacher_rows = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def softmax(row: list[float], temperature: float) -> list[float]:
        grown = [math.exp(value / temperature) for value in row]
        return [value / sum(grown) for value in grown]

    expected = 0.0
    for ours, theirs in zip(student_rows, teacher_rows, strict=True):
        q, p = softmax(ours, 0.2), softmax(theirs, 0.2)
        expected -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 3
    assert scd_loss(student, teacher).item() == pytest.approx(expected, abs=1e-5)


def test_gradients_in_double_precision() -> None:
    z, teacher = tokens(11, 2, 4, 3).double().requires_grad_(), tokens(12, 2, 4, 5).double()
    assert scd_loss(z, teacher).dtype == torch.float64
    pair, theirs = tokens(13, 2, 2, 3, 3).double().requires_grad_(), tokens(14, 2, 2, 3, 4).double()
    check = torch.autograd.gradcheck
    assert check(lambda x: scd_loss(x, teacher), z)
    assert check(lambda x: scd_loss(x, teacher, normalize=False, temperature_student=0.5), z)
    assert check(lambda x: frobenius_loss(x, teacher), z)
    assert check(lambda x: inter_image_loss(x, theirs), pair)


def test_frobenius_by_hand_and_its_size_does_not_grow_with_the_grid() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # differs by 1 off the diagonal
    assert frobenius_loss(student, teacher).item() == pytest.approx(math.sqrt(2) / 2)
    twice = [torch.cat([z, z], dim=1) for z in (student, teacher)]
    assert frobenius_loss(*twice).item() == pytest.approx(math.sqrt(2) / 2)
    both = frobenius_loss(torch.cat([student, student]), torch.cat([teacher, student]))
    assert both.item() == pytest.approx(math.sqrt(2) / 4)


def test_frobenius_is_least_and_flat_where_the_correlations_are_equal() -> None:
    z, rotation = tokens(1, 3, 8, 6), torch.linalg.qr(tokens(4, 6, 6)).Q
    student = z.clone().requires_grad_()
    loss = frobenius_loss(student, z)
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None and not student.grad.any()  # no NaN of a norm at zero
    assert frobenius_loss(z @ rotation, z) < 1e-6 < frobenius_loss(z + 0.3 * tokens(2, 3, 8, 6), z)


def test_inter_sees_other_images_and_not_its_own() -> None:
    student, teacher = tokens(1, 3, 2, 5, 6), tokens(2, 3, 2, 5, 6)
    loss = inter_image_loss(student, teacher)
    # by hand, image by image
    values = []
    for b in range(3):
        for r in range(2):
            ours, theirs = (
                torch.nn.functional.normalize(z, dim=-1)[b, r]
                @ torch.nn.functional.normalize(z, dim=-1)[(b + 1) % 3, r].T
                for z in (student, teacher)
            )
            values.append(row_cross_entropy(ours / 0.2, theirs / 0.2))
    torch.testing.assert_close(loss, torch.stack(values).mean())
    # each image turned by a rotation of its own: inside nothing changes, between images all does
    turns = torch.linalg.qr(tokens(3, 3, 1, 6, 6)).Q
    inside = [scd_loss(z.flatten(0, 1), teacher.flatten(0, 1)) for z in (student, student @ turns)]
    torch.testing.assert_close(*inside)
    assert abs(inter_image_loss(student @ turns, teacher) - loss) > 1e-2
    one = torch.linalg.qr(tokens(4, 6, 6)).Q
    torch.testing.assert_close(inter_image_loss(student @ one, teacher), loss)


def test_inter_is_least_when_equal_and_needs_two_images() -> None:
    z = tokens(1, 2, 2, 5, 6)
    assert inter_image_loss(z, z) < inter_image_loss(z + 0.3 * tokens(2, 2, 2, 5, 6), z)
    with pytest.raises(ValueError, match="two images"):
        inter_image_loss(z[:1], z[:1])


@pytest.mark.parametrize("loss", [frobenius_loss, inter_image_loss])
def test_the_others_give_the_teacher_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    shape = (2, 7, 6) if loss is frobenius_loss else (2, 2, 7, 6)
    student, teacher = tokens(7, *shape).requires_grad_(), tokens(8, *shape).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_attention_logits_are_scaled_products_head_by_head() -> None:
    q, k = tokens(1, 2, 5, 8), tokens(2, 2, 5, 8)
    logits = attention_logits(q, k, 2)
    assert logits.shape == (2, 2, 5, 5)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        torch.testing.assert_close(logits[:, head], q[..., part] @ k[..., part].transpose(1, 2) / 2)
