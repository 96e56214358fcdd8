"""Boxes of regions of tokens that are alike."""

import torch
from torchvision.ops import box_iou

from rsc_seg.ops.token_boxes import token_boxes


def scene(noise: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A map of 12 x 16 tokens: a background and two rectangles, each of a direction of its own."""
    directions = torch.eye(8)[:3]
    labels = torch.zeros(12, 16, dtype=torch.long)
    boxes = torch.tensor([[2.0, 3, 7, 8], [10, 1, 14, 11]])
    for k, (x0, y0, x1, y1) in enumerate(boxes.int().tolist(), 1):
        labels[y0:y1, x0:x1] = k
    tokens = directions[labels].permute(2, 0, 1)
    return tokens + noise * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)), boxes


def test_objects_come_first_and_exactly() -> None:
    tokens, truth = scene()
    found = token_boxes(tokens, count=10)
    assert box_iou(truth, found.boxes[:5]).max(dim=1).values.tolist() == [1.0, 1.0]
    assert (found.scores[:-1] >= found.scores[1:]).all()


def test_noise_moves_nothing_much() -> None:
    tokens, truth = scene(noise=0.08)
    found = token_boxes(7.0 * tokens, count=10)  # lengths do not count
    assert (box_iou(truth, found.boxes).max(dim=1).values > 0.8).all()
    again = token_boxes(7.0 * tokens, count=10)
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


def test_options_bound_what_is_found() -> None:
    tokens, _ = scene(noise=0.5)
    assert len(token_boxes(tokens, count=7).boxes) == 7
    few = token_boxes(tokens, overlap=0.2, count=500)
    iou = box_iou(few.boxes, few.boxes).fill_diagonal_(0)
    assert iou.max() <= 0.2 and len(few.boxes) < len(token_boxes(tokens, count=500).boxes)
    large = token_boxes(tokens, least=12, count=500).boxes
    assert ((large[:, 2:] - large[:, :2]).prod(dim=1) >= 12).all()
    boxes = token_boxes(tokens, count=500).boxes
    assert (boxes >= 0).all() and (boxes[:, 2] <= 16).all() and (boxes[:, 3] <= 12).all()


def test_one_token_has_no_region() -> None:
    assert token_boxes(torch.ones(3, 1, 1)).boxes.shape == (0, 4)
    assert token_boxes(torch.ones(3, 1, 2)).boxes.tolist() == [[0, 0, 2, 1]]
