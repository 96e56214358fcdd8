"""RoIAlign on token maps: identity on whole images, equality with a plain bilinear mean, order, gradients, dtypes."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from rsc_seg.ops.boxes import roi_map, roi_pool, roi_tokens, whole_image_boxes

torch.set_num_threads(1)


def random_map(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """(D, H, W) read at a point in units of cells, 0 at the centre of the first; outside reads as the border."""
    height, width = image.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, below, left] * (1 - dx) + image[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


def slow_roi(image: Tensor, box: list[float], patch: int, grid: tuple[int, int]) -> Tensor:
    """Mean of bilinear samples in each of grid[0] x grid[1] equal parts of the box."""
    x1, y1, x2, y2 = (c / patch for c in box)
    part_h, part_w = (y2 - y1) / grid[0], (x2 - x1) / grid[1]
    ny, nx = math.ceil(part_h), math.ceil(part_w)
    out = torch.zeros(image.shape[0], *grid)
    for r in range(grid[0]):
        for c in range(grid[1]):
            points = [
                (y1 + part_h * (r + (i + 0.5) / ny) - 0.5, x1 + part_w * (c + (j + 0.5) / nx) - 0.5)
                for i in range(ny)
                for j in range(nx)
            ]
            out[:, r, c] = sum(bilinear(image, y, x) for y, x in points) / len(points)
    return out


@pytest.mark.parametrize("patch", [14, 16])
def test_whole_image_at_its_own_grid_is_the_identity_at_every_size(patch: int) -> None:
    for h in range(1, 74):
        w = 74 - h
        maps = random_map(2, 3, h, w)
        box = whole_image_boxes(2, h * patch, w * patch, like=maps)
        assert torch.equal(roi_map(maps, box, patch_size=patch, grid=(h, w)), maps), (h, w)


@pytest.mark.parametrize("side", [3, 7, 10, 12, 16, 23, 37])
def test_rounding_of_the_scale_does_not_double_the_samples(side: int) -> None:
    maps, pixels = random_map(1, 4, side, side), float(14 * side)
    box = torch.tensor([[[0.0, 0.0, pixels, pixels]]])
    assert torch.equal(roi_map(maps, box, patch_size=14, grid=(side, side)), maps)


def test_the_trap_that_is_avoided() -> None:
    maps, box = random_map(1, 4, 7, 7), torch.tensor([[0.0, 0.0, 98.0, 98.0]])
    assert torch.tensor(98.0) * torch.tensor(1 / 14) > 7  # one sample a cell becomes two in each direction: a blur
    blurred = roi_align(maps, [box], (7, 7), spatial_scale=1 / 14, sampling_ratio=0, aligned=True)
    assert (blurred - maps).abs().max() > 0.5


@pytest.mark.parametrize(
    ("box", "grid"),
    [
        ([10.0, 20.0, 60.0, 80.0], (4, 3)),  # enlarged: parts below one cell
        ([0.0, 0.0, 112.0, 98.0], (2, 2)),  # shrunk: several samples a part
        ([3.5, 7.25, 110.0, 40.0], (1, 5)),
        ([13.0, 13.0, 15.0, 15.0], (2, 2)),  # inside one cell, on its border
        ([0.0, 0.0, 112.0, 98.0], (7, 8)),
    ],
)
def test_equals_the_slow_bilinear_average(box: list[float], grid: tuple[int, int]) -> None:
    maps = random_map(1, 3, 7, 8)
    fast = roi_map(maps, torch.tensor([[box]]), patch_size=14, grid=grid)[0]
    torch.testing.assert_close(fast, slow_roi(maps[0], box, 14, grid), atol=1e-5, rtol=0)


def test_box_on_patch_borders_cuts_the_tokens_out() -> None:
    maps = random_map(1, 3, 9, 9)
    box = torch.tensor([[[28.0, 14.0, 84.0, 70.0]]])
    assert torch.equal(roi_map(maps, box, patch_size=14, grid=(4, 4))[0], maps[0, :, 1:5, 2:6])


def test_constant_stays_constant_and_a_plane_is_read_at_the_centres() -> None:
    maps = torch.stack([torch.full((12, 12), 3.0), torch.arange(12.0).expand(12, 12)])[None]  # x is the second channel
    out = roi_map(maps, torch.tensor([[[30.0, 30.0, 120.0, 90.0]]]), patch_size=10, grid=(2, 3))[0]
    torch.testing.assert_close(out[0], torch.full((2, 3), 3.0))
    torch.testing.assert_close(out[1], torch.tensor([4.0, 7.0, 10.0]).expand(2, 3))  # cell x holds pixels 10x..10x+10


def test_regions_come_by_image_then_box_and_tokens_row_by_row() -> None:
    maps = torch.zeros(3, 1, 2, 4) + torch.arange(3.0)[:, None, None, None] * 100 + torch.arange(8.0).view(2, 4)
    halves = torch.tensor([[0.0, 0.0, 28.0, 28.0], [28.0, 0.0, 56.0, 28.0]]).expand(3, 2, 4)
    tokens = roi_tokens(maps, halves, patch_size=14, grid=(2, 2))
    assert tokens.shape == (6, 4, 1)
    left, right = torch.tensor([0.0, 1.0, 4.0, 5.0]), torch.tensor([2.0, 3.0, 6.0, 7.0])
    expected = torch.stack([part + 100 * image for image in range(3) for part in (left, right)])
    assert torch.equal(tokens[..., 0], expected)


def test_roi_pool_of_the_whole_image_is_the_mean() -> None:
    maps = random_map(2, 5, 6, 9)
    pooled = roi_pool(maps, whole_image_boxes(2, 84, 126, like=maps), patch_size=14)
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))


def test_whole_image_boxes_are_xyxy_in_pixels() -> None:
    assert whole_image_boxes(2, 98, 140, like=torch.zeros(1)).tolist() == [[[0.0, 0.0, 140.0, 98.0]]] * 2


def test_gradient_goes_to_the_tokens_of_the_box_and_sums_to_the_number_of_outputs() -> None:
    maps = random_map(1, 2, 6, 6).requires_grad_()
    roi_map(maps, torch.tensor([[[28.0, 28.0, 56.0, 56.0]]]), patch_size=14, grid=(3, 3)).sum().backward()
    grad = maps.grad
    assert grad is not None
    torch.testing.assert_close(grad.sum(), torch.tensor(2 * 9.0))  # the weights of each output sum to one
    assert (grad[..., :1] == 0).all() and (grad[..., 5:] == 0).all() and (grad[..., 2:4, 2:4] > 0).all()


def test_low_precision_maps_and_autocast_give_float32_of_the_same_numbers() -> None:
    maps = random_map(1, 2, 6, 6).bfloat16()
    box = torch.tensor([[[5.0, 9.0, 70.0, 60.0]]])
    exact = roi_map(maps.float(), box, patch_size=14, grid=(3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_map(maps, box.bfloat16(), patch_size=14, grid=(3, 3))
    assert out.dtype == torch.float32
    assert torch.equal(out, exact)
