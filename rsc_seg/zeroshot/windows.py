"""Pictures of any size through an encoder whole or window by window, and from scores of tokens to a class a pixel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from rsc_seg.errors import UserError

Size = tuple[int, int]  # height, width
_VALUES = 2**26  # scores at a picture's size that are held at once (256 MiB)


@dataclass(frozen=True)
class Layout:
    """Where the views of a picture lie: all of one shape `view` (height, width), top and left in `corners`.

    `size` is that of the picture that they are cut from.
    """

    size: Size
    view: Size
    corners: tuple[tuple[int, int], ...]


def fitted_size(size: Size, short_side: int, multiple: int = 1) -> Size:
    """`size` (height, width) with its short side at `short_side` and its aspect kept, rounded to whole `multiple`s."""
    scale = short_side / min(size)
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return height, width


def _starts(side: int, window: int, stride: int) -> list[int]:
    found = list(range(0, side - window + 1, stride))
    return found if found[-1] == side - window else [*found, side - window]


def view_layout(original: Size, *, short_side: int, window: Optional[int], stride: int, patch: int) -> Layout:
    """How a picture of `original` (height, width) is resized and seen.

    Without `window` as one view, whose sides are the nearest whole patches. With it the short side is exact and square
    windows lie `stride` apart; the last of a row or column lies flush with the border, so each has its full size.
    """
    if window is None:
        size = fitted_size(original, short_side, patch)
        return Layout(size, size, ((0, 0),))
    size = fitted_size(original, short_side)
    rows, columns = (_starts(side, window, stride) for side in size)
    return Layout(size, (window, window), tuple((top, left) for top in rows for left in columns))


def check_windows(short_side: int, window: Optional[int], stride: int, patch: int, section: str = "maskclip") -> None:
    """Raises UserError, naming the key, for sizes that cannot be used."""
    if short_side < patch:
        raise UserError(f"{section}.short_side={short_side}: must be {patch} or more, one patch.")
    if window is None:
        return
    if window < patch or window % patch:
        near = max(patch, round(window / patch) * patch)
        raise UserError(f"{section}.window={window}: must be a multiple of the patch, {patch} (nearest: {near}).")
    if window > short_side:
        raise UserError(
            f"{section}.window={window}: larger than {section}.short_side={short_side}; make it smaller, or null for "
            "one view of the whole picture."
        )
    if not 1 <= stride <= window:
        raise UserError(
            f"{section}.stride={stride}: must be from 1 to {section}.window={window}, or pixels are missed."
        )


def view_maps(
    encode: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B E h w"]],
    image: Float[Tensor, "3 H W"],
    layout: Layout,
    batch: int,
) -> Float[Tensor, "V E h w"]:
    """`encode` on every view of `image`, which has the size of `layout`; at most `batch` views at once."""
    height, width = layout.view
    views = [image[:, top : top + height, left : left + width] for top, left in layout.corners]
    parts = [encode(torch.stack(views[start : start + batch])) for start in range(0, len(views), batch)]
    return torch.cat(parts)


def stitched(scores: Float[Tensor, "V N h w"], layout: Layout) -> Float[Tensor, "N H W"]:
    """Scores of the views' tokens enlarged bilinearly to their pixels; the mean of all views wherever they overlap."""
    height, width = layout.view
    full = F.interpolate(scores, size=layout.view, mode="bilinear", align_corners=False)
    if layout.size == layout.view:
        return full[0]
    total, count = full.new_zeros(full.shape[1], *layout.size), full.new_zeros(layout.size)
    for view, (top, left) in zip(full, layout.corners, strict=True):
        total[:, top : top + height, left : left + width] += view
        count[top : top + height, left : left + width] += 1
    return total / count


def best_classes(
    scores: Float[Tensor, "V T h w"], layout: Layout, size: Size, class_chunk: int
) -> Int64[Tensor, "H W"]:
    """The class with the highest score at every pixel of `size`, the lowest number at equal scores.

    Scores go to the resized picture (`stitched`) and from there bilinearly to `size`. Only `class_chunk` classes, fewer
    for very large pictures, are ever held at a picture's size; that changes no result.
    """
    pixels = max(size[0] * size[1], len(layout.corners) * layout.view[0] * layout.view[1])
    step = max(1, min(class_chunk, _VALUES // pixels))
    best = torch.full(size, -torch.inf, device=scores.device)
    labels = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for start in range(0, scores.shape[1], step):
        maps = stitched(scores[:, start : start + step].float(), layout)
        if layout.size != size:
            maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        top, place = maps.max(dim=0)
        better = top > best
        labels = torch.where(better, place + start, labels)
        best = torch.where(better, top, best)
    return labels
