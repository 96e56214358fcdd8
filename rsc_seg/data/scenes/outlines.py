"""Masks as COCO polygons that rasterise back to exactly the same pixels."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Vertex = tuple[int, int]


def mask_polygons(mask: Bool[np.ndarray, "H W"]) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] along pixel borders, whose union covers exactly the mask.

    COCO unites the polygons of one thing, so a part with a hole is cut through the hole into parts without.
    """
    polygons: list[list[float]] = []
    parts, _ = ndimage.label(mask)
    for k, (rows, cols) in enumerate(ndimage.find_objects(parts), 1):
        _add_part(parts[rows, cols] == k, int(cols.start), int(rows.start), polygons)
    return polygons


def _add_part(part: np.ndarray, left: int, top: int, polygons: list[list[float]]) -> None:
    loops = _loops(part)
    if len(loops) == 1:
        polygons.append([float(v) for x, y in loops[0] for v in (x + left, y + top)])
        return
    hole = min(loops, key=_signed_area)  # the outer loop is positive, holes are negative
    cut = int(np.median([x for x, _ in hole]))
    cut = min(max(cut, 1), part.shape[1] - 1)
    for half, shift in ((part[:, :cut], 0), (part[:, cut:], cut)):
        pieces, _ = ndimage.label(half)
        for k, (rows, cols) in enumerate(ndimage.find_objects(pieces), 1):
            _add_part(pieces[rows, cols] == k, left + shift + int(cols.start), top + int(rows.start), polygons)


def _signed_area(loop: list[Vertex]) -> float:
    xs, ys = np.asarray(loop, np.int64).T
    return float((xs * np.roll(ys, -1) - np.roll(xs, -1) * ys).sum()) / 2


def _loops(part: np.ndarray) -> list[list[Vertex]]:
    """Closed border lines with the part on their right, corners only; tight turns where pixels touch at a corner."""
    padded = np.pad(part, 1)
    ahead: dict[Vertex, list[Vertex]] = {}
    steps = ((-1, 0, (0, 0), (1, 0)), (0, 1, (1, 0), (0, 1)), (1, 0, (1, 1), (-1, 0)), (0, -1, (0, 1), (0, -1)))
    for dy, dx, start, step in steps:
        rows, cols = np.nonzero(padded & ~np.roll(padded, (-dy, -dx), (0, 1)))
        for y, x in zip((rows - 1).tolist(), (cols - 1).tolist(), strict=True):
            ahead.setdefault((x + start[0], y + start[1]), []).append(step)
    loops = []
    while ahead:
        first = next(iter(ahead))
        loops.append(_follow(ahead, first))
    return loops


def _follow(ahead: dict[Vertex, list[Vertex]], first: Vertex) -> list[Vertex]:
    corners: list[Vertex] = []
    at, last = first, ahead[first][0]
    while True:
        choices = ahead[at]
        right = (-last[1], last[0])
        step = right if len(choices) > 1 and right in choices else choices[0]
        choices.remove(step)
        if not choices:
            del ahead[at]
        if step != last or not corners:
            corners.append(at)
        at, last = (at[0] + step[0], at[1] + step[1]), step
        if at == first:
            return corners
