"""Box and mask features: plain means of unit tokens, scale and order, the empty cases, and masks on the token grid."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.ops import roi_align
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pad, resize

from rsc_seg.errors import UserError
from rsc_seg.ops.regions import masks_to_grid, pool_boxes, pool_masks

torch.set_num_threads(1)


def random_maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def rectangle(height: int, width: int, *box: int) -> Tensor:
    """One mask (1, H, W), true in the xyxy box."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_a_box_on_patch_borders_and_its_mask_are_the_mean_of_unit_tokens() -> None:
    maps = random_maps(1, 5, 6, 8)
    unit = normalize(maps, dim=1)
    expected = normalize(unit[0, :, 1:4, 2:7].mean(dim=(1, 2)), dim=0)
    box = torch.tensor([[28.0, 14.0, 98.0, 56.0]])
    torch.testing.assert_close(pool_boxes(maps, [box], patch_size=14)[0], expected)
    torch.testing.assert_close(pool_masks(maps, [rectangle(6, 8, 2, 1, 7, 4)])[0], expected)


def test_a_box_inside_one_cell_reads_the_nearest_tokens() -> None:
    maps = random_maps(1, 5, 4, 4)
    box = torch.tensor([[24.0, 8.0, 40.0, 24.0]])  # one cell large, its centre on the corner of four tokens
    corner = normalize(maps, dim=1)[0, :, 0:2, 1:3].mean(dim=(1, 2))
    torch.testing.assert_close(pool_boxes(maps, [box], patch_size=16)[0], normalize(corner, dim=0))


def test_length_of_a_token_does_not_matter() -> None:
    maps = random_maps(2, 5, 4, 6)
    louder = maps * torch.linspace(0.1, 50, 24).view(4, 6)
    boxes = [torch.tensor([[3.0, 5.0, 60.0, 49.0]])] * 2
    masks = [rectangle(4, 6, 1, 0, 5, 3)] * 2
    torch.testing.assert_close(pool_boxes(louder, boxes, patch_size=14), pool_boxes(maps, boxes, patch_size=14))
    torch.testing.assert_close(pool_masks(louder, masks), pool_masks(maps, masks))


def test_regions_come_image_by_image_in_any_number() -> None:
    maps = random_maps(3, 5, 4, 4)
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 30.0], [8.0, 2.0, 64.0, 40.0]]), torch.zeros(0, 4), torch.ones(1, 4) * 9]
    boxes[2][0, 2:] = 50
    masks = [rectangle(4, 4, 0, 0, 2, 2).expand(2, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)]
    masks.append(rectangle(4, 4, 1, 1, 3, 4))
    for together, alone in (
        (
            pool_boxes(maps, boxes, patch_size=16),
            [pool_boxes(maps[i : i + 1], [boxes[i]], patch_size=16) for i in (0, 2)],
        ),
        (pool_masks(maps, masks), [pool_masks(maps[i : i + 1], [masks[i]]) for i in (0, 2)]),
    ):
        assert together.shape == (3, 5)
        assert torch.equal(together, torch.cat(alone))
    torch.testing.assert_close(pool_boxes(maps, boxes, patch_size=16).norm(dim=1), torch.ones(3))


def test_what_is_empty_gives_zeros() -> None:
    maps = random_maps(1, 5, 4, 4)
    assert pool_boxes(maps, [torch.full((1, 4), 20.0)], patch_size=16).abs().max() == 0
    assert pool_masks(maps, [torch.zeros(1, 4, 4, dtype=torch.bool)]).abs().max() == 0
    assert pool_masks(maps, [torch.zeros(0, 4, 4, dtype=torch.bool)]).shape == (0, 5)


def test_a_whole_image_of_336_pixels_is_read_without_an_extra_sample() -> None:
    maps, whole = random_maps(1, 5, 24, 24), torch.tensor([[0.0, 0.0, 336.0, 336.0]])
    assert torch.tensor(336.0) * torch.tensor(1 / 14) > 24  # the scale that roi_pool avoids
    expected = normalize(normalize(maps, dim=1).mean(dim=(2, 3)), dim=1)
    torch.testing.assert_close(pool_boxes(maps, [whole], patch_size=14), expected)
    torch.testing.assert_close(pool_masks(maps, [torch.ones(1, 24, 24, dtype=torch.bool)]), expected)


@pytest.mark.parametrize(("side", "patch"), [(1024, 16), (896, 14)])
def test_at_the_sizes_of_clipself_whole_pixels_are_read_as_from_parts_of_the_image(side: int, patch: int) -> None:
    corners = torch.randint(0, side + 1, (400, 2, 2), generator=torch.Generator().manual_seed(patch)).float()
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= 8]
    maps, grid = random_maps(1, 4, 64, 64), side // patch
    official = roi_align(normalize(maps, dim=1), [boxes / side * grid], 1, sampling_ratio=-1, aligned=True)
    assert len(boxes) > 300
    torch.testing.assert_close(pool_boxes(maps, [boxes], patch_size=patch), normalize(official.flatten(1), dim=1))


def test_shares_of_the_image_are_scaled_to_the_grid_before_roi_align() -> None:
    """CLIPSelf's arithmetic: at 336 pixels and patches of 14 some boxes in pixels get another number of samples."""
    maps = torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    corner = torch.randint(0, 168, (400, 2), generator=torch.Generator().manual_seed(1)).float()
    size = torch.randint(7, 168, (400, 2), generator=torch.Generator().manual_seed(2)).float()
    shares = torch.cat([corner, corner + size], dim=1) / 336
    index = torch.zeros(400, 1)
    unit = torch.nn.functional.normalize(maps, dim=1)
    theirs = torchvision.ops.roi_align(unit, torch.cat([index, shares * 24], dim=1), (1, 1), 1.0, -1, True)
    ours = pool_boxes(maps, [shares], patch_size=None)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs.flatten(1), dim=1), atol=1e-6, rtol=0)
    in_pixels = pool_boxes(maps, [shares * 336], patch_size=14)
    assert ((ours - in_pixels).abs().amax(dim=1) < 1e-5).float().mean() > 0.9


def test_soft_masks_weigh_the_tokens() -> None:
    maps = random_maps(1, 5, 1, 2)
    unit = normalize(maps, dim=1)[0, :, 0]
    found = pool_masks(maps, [torch.tensor([[[0.25, 0.75]]])])[0]
    torch.testing.assert_close(found, normalize(unit @ torch.tensor([0.25, 0.75]), dim=0))


def test_low_precision_and_autocast_give_float32_of_the_same_numbers() -> None:
    maps = random_maps(1, 5, 4, 4).bfloat16()
    boxes, masks = [torch.tensor([[5.0, 9.0, 60.0, 50.0]])], [rectangle(4, 4, 1, 0, 4, 3)]
    exact = pool_boxes(maps.float(), boxes, patch_size=16), pool_masks(maps.float(), masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pool_boxes(maps, boxes, patch_size=16), pool_masks(maps, masks)
    assert all(one.dtype == torch.float32 and torch.equal(one, two) for one, two in zip(low, exact, strict=True))


def test_gradient_reaches_the_tokens_of_the_region_only() -> None:
    box, mask = torch.tensor([[0.0, 0.0, 32.0, 32.0]]), rectangle(4, 4, 0, 0, 2, 2)
    maps = random_maps(1, 5, 4, 4).requires_grad_()
    (by_box,) = torch.autograd.grad(pool_boxes(maps, [box], patch_size=16)[0, 0], maps)
    (by_mask,) = torch.autograd.grad(pool_masks(maps, [mask])[0, 0], maps)
    assert by_box[..., :2, :2].abs().min() > 0
    assert by_box[..., 2:].abs().max() == 0 and by_box[..., 2:, :].abs().max() == 0
    torch.testing.assert_close(by_mask, by_box)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(150, 200), (200, 150), (96, 96), (37, 301), (9, 5)])
def test_masks_to_grid_is_torchvisions_resize_of_the_longest_side(height: int, width: int, antialias: bool) -> None:
    g = torch.Generator().manual_seed(height)
    coarse = torch.rand(3, 1, 6, 7, generator=g) > 0.6
    masks = torch.nn.functional.interpolate(coarse.float(), (height, width))[:, 0] > 0
    scale = 16 / max(height, width)
    size = [round(height * scale), round(width * scale)]
    small = resize(masks.float(), size, InterpolationMode.BICUBIC, antialias=antialias)
    expected = pad(small, [0, 0, 16 - size[1], 16 - size[0]]) > 0
    found = masks_to_grid(masks, (16, 16), antialias=antialias)
    assert found.dtype == torch.bool and torch.equal(found, expected)


def test_antialiasing_adds_a_rim_of_tokens() -> None:
    masks = rectangle(150, 200, 30, 20, 120, 90)  # an object of 70 x 90 pixels
    cells = [int(masks_to_grid(masks, (16, 16), antialias=antialias).sum()) for antialias in (False, True)]
    assert cells == [40, 64]


def test_a_small_object_may_come_out_empty_and_a_whole_image_fills_what_is_not_padding() -> None:
    assert not masks_to_grid(rectangle(160, 160, 0, 0, 1, 1), (10, 10), antialias=False).any()
    whole = masks_to_grid(torch.ones(1, 60, 120, dtype=torch.bool), (12, 12), antialias=False)
    assert whole[0, :6].all() and not whole[0, 6:].any()


def test_a_grid_that_is_not_square_holds_the_image_at_one_scale() -> None:
    whole = masks_to_grid(torch.ones(2, 30, 30, dtype=torch.bool), (4, 9), antialias=False)
    assert whole.shape == (2, 4, 9) and whole[:, :, :4].all() and not whole[:, :, 4:].any()
    line = masks_to_grid(torch.ones(1, 1, 200, dtype=torch.bool), (8, 8), antialias=True)
    assert line[0, 0].all() and not line[0, 1:].any()  # never less than one row of tokens
    assert masks_to_grid(torch.zeros(0, 30, 30, dtype=torch.bool), (4, 9), antialias=True).shape == (0, 4, 9)


def test_bad_input_is_named() -> None:
    maps = random_maps(2, 5, 4, 4)
    with pytest.raises(UserError, match="boxes of 1 images for 2 feature maps"):
        pool_boxes(maps, [torch.zeros(1, 4)], patch_size=16)
    with pytest.raises(UserError, match="masks of 3 images for 2 feature maps"):
        pool_masks(maps, [torch.zeros(1, 4, 4, dtype=torch.bool)] * 3)
    with pytest.raises(UserError, match="grid of 4x5 for a map of 4x4 tokens"):
        pool_masks(maps, [torch.zeros(1, 4, 5, dtype=torch.bool)] * 2)
    with pytest.raises(UserError, match="0x7 pixels"):
        masks_to_grid(torch.zeros(1, 0, 7, dtype=torch.bool), (4, 4), antialias=False)
