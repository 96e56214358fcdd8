"""Class-agnostic boxes from a map of tokens: neighbouring tokens merge, and every region on the way is a candidate."""

import heapq
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import nms

_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


class TokenBoxes(NamedTuple):
    """Boxes xyxy in tokens (edges of cells) and their scores, best first."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]


class _Regions:
    """Connected regions of a grid, merged pair by pair at the least increase in squared error (Ward)."""

    def __init__(self, unit: Float[np.ndarray, "L D"], grid: tuple[int, int]) -> None:
        height, width = grid
        count = height * width
        most = 2 * count - 1
        self.sums = np.zeros((most, unit.shape[1]), np.float32)
        self.sums[:count] = unit
        self.size = np.zeros(most, np.int64)
        self.size[:count] = 1
        row, column = np.divmod(np.arange(count), width)
        self.boxes = np.zeros((most, 4), np.int64)
        self.boxes[:count] = np.stack([column, row, column + 1, row + 1], axis=1)
        self.distance = np.zeros(most, np.float32)  # to the region that each merged with
        self.near: list[set[int]] = [set() for _ in range(most)]
        self.alive = np.zeros(most, bool)
        self.alive[:count] = True
        self.used = count
        self.heap: list[tuple[float, int, int]] = []
        for i in range(count):
            for down, right in _NEIGHBOURS:
                y, x = row[i] + down, column[i] + right
                if y < height and 0 <= x < width:
                    j = int(y * width + x)
                    self.near[i].add(j)
                    self.near[j].add(i)
        for i in range(count):
            self._push(i, np.array([j for j in sorted(self.near[i]) if j > i], np.int64))

    def _push(self, i: int, others: np.ndarray) -> None:
        if not len(others):
            return
        mine = self.sums[i] / self.size[i]
        gap = ((self.sums[others] / self.size[others, None] - mine) ** 2).sum(axis=1)
        cost = gap * (self.size[others] * self.size[i] / (self.size[others] + self.size[i]))
        for value, j in zip(cost.tolist(), others.tolist(), strict=True):
            heapq.heappush(self.heap, (value, i, j))

    def merge_all(self) -> None:
        """Until one region is left; the n-th merge makes the region of number L + n - 1."""
        while self.heap:
            _, a, b = heapq.heappop(self.heap)
            if not (self.alive[a] and self.alive[b]):
                continue
            new = self.used
            self.used += 1
            gap = self.sums[a] / self.size[a] - self.sums[b] / self.size[b]
            self.distance[a] = self.distance[b] = float((gap**2).sum())
            self.sums[new], self.size[new] = self.sums[a] + self.sums[b], self.size[a] + self.size[b]
            low, high = self.boxes[[a, b], :2].min(axis=0), self.boxes[[a, b], 2:].max(axis=0)
            self.boxes[new] = [*low, *high]
            self.alive[[a, b]], self.alive[new] = False, True
            others = (self.near[a] | self.near[b]) - {a, b}
            for j in others:
                self.near[j] -= {a, b}
                self.near[j].add(new)
            self.near[new], self.near[a], self.near[b] = others, set(), set()
            self._push(new, np.array(sorted(others), np.int64))


def token_boxes(
    tokens: Float[Tensor, "D H W"], *, least: int = 2, overlap: float = 0.7, count: int = 100
) -> TokenBoxes:
    """Boxes of regions whose tokens are alike and unlike their surroundings.

    Tokens of unit length merge with one of their eight neighbours, each time the pair of regions whose union raises
    the squared error least, until one region is left; the boxes of all regions of `least` tokens or more are
    candidates. Score: the squared distance between the mean of a region and that of the region it merges with (0 to 4),
    times the square root of its share of the map. Boxes that overlap a better one by more than `overlap` (IoU) are left
    out; at most `count` stay. Depends on the tokens alone: nothing is drawn. In float32, on the CPU.
    """
    height, width = tokens.shape[1:]
    unit = F.normalize(tokens.detach().float().cpu().flatten(1).T, dim=1).numpy()
    regions = _Regions(unit, (height, width))
    regions.merge_all()
    kept = (regions.size >= least) & (np.arange(len(regions.size)) < regions.used)
    boxes = torch.from_numpy(regions.boxes[kept]).float()
    share = regions.size[kept] / (height * width)
    scores = torch.from_numpy(regions.distance[kept] * np.sqrt(share)).float()
    best = nms(boxes, scores, overlap)[:count]
    return TokenBoxes(boxes[best], scores[best])
