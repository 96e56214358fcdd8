"""Regions of token maps: RoIAlign to tokens, RoIPool to one vector, boxes of whole images."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align


def whole_image_boxes(batch: int, height: int | float, width: int | float, *, like: Tensor) -> Float[Tensor, "B 1 4"]:
    """One box an image that covers it whole, xyxy in pixels, on the device of `like`."""
    box = torch.tensor([0.0, 0.0, width, height], device=like.device)
    return box.expand(batch, 1, 4)


def roi_map(
    maps: Float[Tensor, "B D H W"], boxes: Float[Tensor, "B R 4"], *, patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "BR D h w"]:
    """RoIAlign (aligned, adaptive sampling) of every box to `grid` tokens, in float32, images in order.

    Boxes are xyxy in pixels of the image behind `maps`. A box of the whole image at the map's own grid is the identity.
    """
    # divided here, not by spatial_scale: 98 * (1 / 14) is above 7 in float32, and the adaptive sampling would double
    per_image = [b.float() / patch_size for b in boxes]
    with torch.autocast(maps.device.type, enabled=False):  # no bfloat16 kernel on CPU; float32 everywhere for equality
        return roi_align(maps.float(), per_image, output_size=grid, spatial_scale=1.0, sampling_ratio=0, aligned=True)


def roi_tokens(
    maps: Float[Tensor, "B D H W"], boxes: Float[Tensor, "B R 4"], *, patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "BR L D"]:
    """`roi_map` as tokens, row by row: L = h * w."""
    # (BR, D, h, w) -> (BR, L, D)
    return roi_map(maps, boxes, patch_size=patch_size, grid=grid).flatten(2).transpose(1, 2)


def roi_pool(
    maps: Float[Tensor, "B D H W"], boxes: Float[Tensor, "B R 4"], *, patch_size: int
) -> Float[Tensor, "BR D"]:
    """The mean of each box: RoIAlign to one cell (Eq. 10's RoIPool)."""
    return roi_map(maps, boxes, patch_size=patch_size, grid=(1, 1)).flatten(1)
