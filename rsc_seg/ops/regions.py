"""Features of boxes and masks in the way that CLIPSelf reads them off a dense map, and masks on the token grid."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from rsc_seg.errors import UserError
from rsc_seg.ops.boxes import roi_pool

EMPTY = 1e-12  # added to a mask's area, as CLIPSelf does: an empty mask pools to zeros


def _check_count(maps: Tensor, regions: Sequence[Tensor], what: str) -> None:
    if len(regions) != maps.shape[0]:
        raise UserError(f"{what} of {len(regions)} images for {maps.shape[0]} feature maps: give one entry per map.")


def pool_boxes(
    maps: Float[Tensor, "B D H W"], boxes: Sequence[Float[Tensor, "_ 4"]], *, patch_size: int | None
) -> Float[Tensor, "R D"]:
    """Box features of unit length: `maps` l2-normalised per token, RoIAlign to one cell, l2-normalised again.

    Boxes are xyxy in pixels of the image behind `maps`, or, with `patch_size` None, shares (0..1) of its width and
    height; any number per image (none is allowed); features come image by image, in float32. A box without area gives
    zeros. RoIAlign counts its samples as ceil(side in tokens), so that the last bit of a side may matter: pixels over
    patch is exact where scaling by a rounded 1 / patch may add a sample, and shares times the grid is CLIPSelf's own
    arithmetic. Raises UserError when boxes and maps differ in number. Matches CLIPSelf's `encode_pseudo_boxes` (v2).
    """
    _check_count(maps, boxes, "boxes")
    normed = functional.normalize(maps.float(), dim=1)
    if patch_size is None:
        height, width = maps.shape[-2:]
        boxes = [own * own.new_tensor([width, height, width, height]) for own in boxes]
    side = patch_size or 1  # shares are in tokens by now
    pooled = [roi_pool(one[None], own[None], patch_size=side) for one, own in zip(normed, boxes, strict=True)]
    return functional.normalize(torch.cat(pooled), dim=1)


def pool_masks(maps: Float[Tensor, "B D H W"], masks: Sequence[Bool[Tensor, "_ H W"]]) -> Float[Tensor, "R D"]:
    """Mask features of unit length: the mean of l2-normalised tokens under each mask, l2-normalised again.

    Masks lie on the token grid (`masks_to_grid` brings them there), any number per image; weights between 0 and 1 work
    as well. Features come image by image, in float32. An empty mask gives zeros. Raises UserError when masks and maps
    differ in number or grid. Matches CLIPSelf's `encode_masks`.
    """
    _check_count(maps, masks, "masks")
    pooled = []
    with torch.autocast(maps.device.type, enabled=False):
        for one, own in zip(functional.normalize(maps.float(), dim=1), masks, strict=True):
            if own.shape[1:] != one.shape[1:]:
                have, need = ("x".join(map(str, shape[1:])) for shape in (own.shape, one.shape))
                raise UserError(f"masks on a grid of {have} for a map of {need} tokens: bring them there first.")
            weights = own.flatten(1).to(one)  # (R, H, W) -> (R, L)
            pooled.append(weights @ one.flatten(1).T / (weights.sum(dim=1, keepdim=True) + EMPTY))
        return functional.normalize(torch.cat(pooled), dim=1)


def masks_to_grid(masks: Bool[Tensor, "R H W"], grid: tuple[int, int], *, antialias: bool) -> Bool[Tensor, "R h w"]:
    """Masks of an unpadded image, in pixels, on the token grid (h, w) of its padded frame, by CLIPSelf's rule.

    One scale for both axes, as large as the grid allows; bicubic; a token belongs to a mask where the result is above
    zero; what lies right of and below the image belongs to none. `antialias` is for the caller to say because it
    changes the masks: torchvision resized tensors without it up to 0.16, as CLIPSelf was published, and with it from
    0.17 on, which adds a rim of tokens to every object. A mask may come out empty. Raises UserError for masks
    without pixels.
    """
    height, width = masks.shape[-2:]
    if not height or not width:
        raise UserError(f"masks of {height}x{width} pixels: an image has at least one.")
    scale = min(grid[0] / height, grid[1] / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if not len(masks):
        return masks.new_zeros(0, *grid)
    small = functional.interpolate(
        masks[:, None].float(), size, mode="bicubic", align_corners=False, antialias=antialias
    )
    return functional.pad(small[:, 0] > 0, (0, grid[1] - size[1], 0, grid[0] - size[0]))
