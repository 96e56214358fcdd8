"""Boxes for regions of an image and what is cut at them: free functions of their arguments and of given draws.

The rules of region-language alignment are CLIPSelf's: its grid layouts, its choice among annotated boxes, its enlarged
and letterboxed crops. Annotated boxes come as x, y, width, height, since its area bounds and its enlargement are
computed on these in double precision; everything else is xyxy.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.data.transforms import Geometry
from rsc_seg.errors import UserError

RATIO_MODES = ("shared", "per_axis", "area")
MOST_SPLITS = 6  # rows or columns of CLIPSelf's grids
OVERHANG = 2.0  # pixels that a box may reach over its image: what rounding makes

Box = tuple[float, float, float, float]


def check_ratio(ratio: Sequence[float]) -> None:
    """Raises UserError unless `ratio` is two numbers with 0 < low <= high <= 1."""
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] <= 1:
        raise UserError(f"crops.ratio={list(ratio)}: must be two numbers with 0 < low <= high <= 1.")


def sample_boxes(
    generator: np.random.Generator,
    count: int,
    *,
    ratio: Sequence[float],
    mode: str = "shared",
    valid: tuple[float, float],
) -> Float[Tensor, "R 4"]:
    """Random boxes xyxy inside `valid` (width, height), float32, positions uniform.

    `ratio` bounds a number drawn uniformly: the side ratio of both sides (`shared`, keeps the image's aspect: the
    paper's [0.3, 0.7] as read here), one for each side (`per_axis`), or the ratio of areas at the image's aspect
    (`area`). The first n boxes of a generator do not depend on `count`.
    """
    require_choice("crops.ratio_mode", mode, RATIO_MODES)
    check_ratio(ratio)
    low, high = ratio
    draws = generator.random((count, 4))
    sides = low + (high - low) * draws[:, :2]
    if mode != "per_axis":
        sides[:, 1] = sides[:, 0]
    if mode == "area":
        sides = np.sqrt(sides)
    whole = np.array(valid, np.float64)
    extent = sides * whole
    start = draws[:, 2:] * (whole - extent)
    boxes = torch.from_numpy(np.concatenate([start, start + extent], axis=1)).float()
    return torch.minimum(boxes, torch.tensor([*valid, *valid], dtype=torch.float32))


def grid_layouts(most: int = MOST_SPLITS) -> list[tuple[int, int]]:
    """CLIPSelf's (rows, columns): up to `most` of either, columns from half to twice the rows; 24 for six."""
    return [(m, n) for m in range(1, most + 1) for n in range((m + 1) // 2, min(2 * m, most) + 1)]


def grid_cells(layout: tuple[int, int], size: tuple[float, float]) -> Float[Tensor, "R 4"]:
    """The cells of a (rows, columns) grid over a picture of `size` (width, height), row by row, xyxy, float32."""
    rows, columns = layout
    width, height = size
    x, y = torch.linspace(0, 1, columns + 1), torch.linspace(0, 1, rows + 1)
    corners = torch.stack([x.expand(rows + 1, -1), y[:, None].expand(-1, columns + 1)], dim=-1)
    shares = torch.cat([corners[:-1, :-1], corners[1:, 1:]], dim=-1).flatten(0, 1)
    return shares * torch.tensor([width, height, width, height])


def pick_annotated(
    given: Float[np.ndarray, "N 4"], order: Sequence[int] | Int[np.ndarray, " N"], count: int, *, area: Sequence[float]
) -> Float[np.ndarray, "K 4"]:
    """Of boxes x, y, width, height the first `count` in the given `order`, less those whose area is out of bounds.

    As in CLIPSelf the bounds (both inside) apply to the boxes that were picked: K may be less than `count` although
    others would fit.
    """
    chosen = given[np.asarray(order, np.int64)[:count]]
    sides = chosen[:, 2] * chosen[:, 3]
    return chosen[(sides >= area[0]) & (sides <= area[1])]


def enlarged(box: Sequence[float], factor: float, size: tuple[int, int]) -> Box:
    """A box x, y, width, height with both sides times `factor` about its centre, as xyxy clipped to `size`."""
    x, y, w, h = (float(v) for v in box)
    cx, cy, half = x + w * 0.5, y + h * 0.5, factor / 2
    return (
        max(cx - w * half, 0.0),
        max(cy - h * half, 0.0),
        min(cx + w * half, float(size[0])),
        min(cy + h * half, float(size[1])),
    )


def fallback_box(size: tuple[int, int]) -> tuple[Box, Box]:
    """The box of an image that has none, and what is cut for it: the first quarter of either side, xyxy.

    Both are CLIPSelf's: the box has fractions, the cut whole pixels rounded down.
    """
    width, height = size
    return (0.0, 0.0, width / 4, height / 4), (0.0, 0.0, float(width // 4), float(height // 4))


def _whole_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners at whole pixels as PIL's crop rounds them, at least one pixel wide and high."""
    corners = [round(float(v)) for v in box]
    for axis, side in enumerate(size):
        low, high = max(0, corners[axis]), min(side, corners[axis + 2])
        low = max(0, min(low, side - 1))
        corners[axis], corners[axis + 2] = low, max(high, low + 1)
    return corners[0], corners[1], corners[2], corners[3]


def letterboxed(image: Image.Image, box: Sequence[float], size: Sequence[int]) -> Float[Tensor, "3 h w"]:
    """What a CLIPSelf teacher sees of a box (xyxy, pixels of `image`): `size` (height, width), values 0..1.

    The box is rounded to whole pixels and cut out, the cut resized (bicubic, PIL) at one scale, as large as it fits,
    and centred on black.
    """
    cut = image.crop(_whole_pixels(box, image.size))
    scale = min(size[1] / cut.width, size[0] / cut.height)
    inner = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    pixels = np.asarray(cut.resize(inner, Image.Resampling.BICUBIC), np.uint8)
    frame = np.zeros((size[0], size[1], 3), np.uint8)
    top, left = (size[0] - inner[1]) // 2, (size[1] - inner[0]) // 2
    frame[top : top + inner[1], left : left + inner[0]] = pixels
    return torch.from_numpy(frame).permute(2, 0, 1).contiguous().float() / 255


def frame_boxes(boxes: Float[Tensor, "R 4"], geometry: Geometry, fit: str) -> Float[Tensor, "R 4"]:
    """Boxes xyxy in pixels of the original to pixels of the frame, float32.

    For `pad` one scale serves both axes, as in CLIPSelf, though the picture's shorter side was rounded to whole
    pixels; for the others each axis has the scale of the resize.
    """
    if fit != "pad":
        return geometry.to_frame(boxes)
    (width, height), (w, h) = geometry.frame, geometry.original
    return boxes.float() * min(width / w, height / h)


def flip_annotated(given: Float[np.ndarray, "N 4"], width: int) -> Float[np.ndarray, "N 4"]:
    """Boxes x, y, width, height on the picture mirrored left to right."""
    flipped = given.copy()
    flipped[:, 0] = width - given[:, 0] - given[:, 2]
    return flipped


def check_inside(given: Float[np.ndarray, "N 4"], size: tuple[int, int], where: str) -> None:
    """Raises UserError, beginning with `where`, for a box x, y, width, height that reaches out of a picture of `size`.

    Two pixels are allowed, which rounding makes. Boxes without width or height cover nothing and may lie anywhere.
    """
    low, high = given[:, :2], given[:, :2] + given[:, 2:]
    bad = ((low < -OVERHANG) | (high > np.array(size) + OVERHANG)).any(axis=1) & (given[:, 2:] > 0).all(axis=1)
    if bad.any():
        box = [round(float(v), 2) for v in given[int(np.flatnonzero(bad)[0])]]
        raise UserError(
            f"{where}: box {box} (x, y, width, height) lies outside the image of {size[0]} x {size[1]} pixels, "
            f"{int(bad.sum())} of its {len(given)} boxes do; boxes must be in pixels of the original image."
        )


def first_valid(boxes: Float[Tensor, "N 4"], valid: Bool[Tensor, " N"], count: int) -> Float[Tensor, "C 4"]:
    """The first `count` boxes that are valid, gone through again from the first when there are fewer.

    Raises ValueError when none is valid.
    """
    kept = boxes[valid]
    if not len(kept):
        raise ValueError("an image without a valid box has none to repeat")
    return kept[torch.arange(count) % len(kept)]
