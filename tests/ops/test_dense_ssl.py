"""Dense contrast and masked tokens: by hand, and where views, boxes and masks lie."""

import math

import pytest
import torch
from torch import Tensor

from rsc_seg.ops.boxes import roi_tokens
from rsc_seg.ops.dense_ssl import (
    dense_contrast_loss,
    masked_pictures,
    masked_token_loss,
    mirrored_boxes,
    mirrored_view,
    nearest_tokens,
)

torch.set_num_threads(1)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_box_in_the_mirror_image_holds_the_mirrored_tokens() -> None:
    maps, boxes = rand(0, 1, 4, 6, 8), torch.tensor([[[10.0, 20.0, 58.0, 70.0]]])
    there = mirrored_boxes(boxes, 8 * 16)
    assert there.tolist() == [[[70.0, 20.0, 118.0, 70.0]]]
    own = roi_tokens(maps, boxes, patch_size=16, grid=(3, 3)).unflatten(1, (3, 3))
    mirrored = roi_tokens(maps.flip(-1), there, patch_size=16, grid=(3, 3)).unflatten(1, (3, 3))
    torch.testing.assert_close(own, mirrored.flip(2))


def test_view_is_mirrored_and_shifted_image_by_image() -> None:
    images = rand(1, 2, 3, 4, 6)
    view = mirrored_view(images, torch.tensor([[0.0, 0.0], [1.0, -0.5]], dtype=torch.float64))
    assert view.dtype == torch.float32
    assert torch.equal(view[0], images[0].flip(-1))
    torch.testing.assert_close(view[1], images[1].flip(-1) * 1.2 - 0.1)


def test_nearest_tokens_by_cosine_in_the_same_region() -> None:
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    b = torch.tensor([[[0.0, 9.0], [1.0, 0.2], [5.0, 5.0]], [[-2.0, 1.0], [0.0, 1.0], [0.1, 1.0]]])
    assert nearest_tokens(a, b).tolist() == [[1, 0], [2, 0]]


def test_dense_contrast_by_hand() -> None:
    query, key = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    pool = torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    positive, others = math.exp(math.sqrt(0.5) / 0.5), [math.exp(0.0), math.exp(-1 / 0.5)]
    expected = -math.log(positive / (positive + sum(others)))
    assert dense_contrast_loss(query, key, pool, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_dense_contrast_gives_keys_and_pool_no_gradient() -> None:
    query, key, pool = (rand(i, *s).requires_grad_() for i, s in enumerate([(2, 4, 6), (2, 4, 6), (9, 6)]))
    dense_contrast_loss(query, key, pool).backward()
    assert key.grad is None and pool.grad is None
    assert query.grad is not None and query.grad.abs().sum() > 0


def test_masked_patches_hold_the_patch_and_nothing_else_changes() -> None:
    images, patch = rand(0, 2, 3, 8, 12), rand(1, 3, 4, 4).requires_grad_()
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = True
    found = masked_pictures(images, mask, patch)
    assert torch.equal(found[0, :, 4:, 8:], patch) and torch.equal(found[1], images[1])
    assert torch.equal(found[0, :, :4], images[0, :, :4]) and torch.equal(found[0, :, :, :8], images[0, :, :, :8])
    found.sum().backward()
    assert patch.grad is not None and (patch.grad == 1).all()


def test_masked_tokens_by_hand() -> None:
    student = torch.tensor([[[0.1, 0.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.2]]])
    teacher = torch.tensor([[[0.3, 0.1], [9.0, 0.0]], [[0.0, 0.3], [0.0, 0.0]]])
    centre, mask = torch.tensor([0.1, 0.0]), torch.tensor([[True, False], [True, True]])

    def token(s: list[float], t: list[float]) -> float:
        q = [math.exp(v / 0.1) for v in s]
        p = [math.exp((v - c) / 0.04) for v, c in zip(t, (0.1, 0.0), strict=True)]
        return -sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))

    first = token([0.1, 0.0], [0.3, 0.1])
    second = (token([0.0, 0.0], [0.0, 0.3]) + token([0.0, 0.2], [0.0, 0.0])) / 2
    loss = masked_token_loss(student, teacher, mask, centre)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-5)
    mask[1] = False  # a picture without a masked token is left out
    assert masked_token_loss(student, teacher, mask, centre).item() == pytest.approx(first, abs=1e-5)


def test_masked_tokens_alone_get_a_gradient_and_the_teacher_none() -> None:
    student, teacher = rand(0, 2, 5, 7).requires_grad_(), rand(1, 2, 5, 7).requires_grad_()
    mask = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    masked_token_loss(student, teacher, mask, torch.zeros(7)).backward()
    assert teacher.grad is None and student.grad is not None
    assert torch.equal(student.grad.abs().sum(dim=-1) > 0, mask)
