"""Tokens and labels in memory, small enough that every step of CAUSE takes well below a second."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.stages import CauseOptions

GRID, DIM, CLASSES, PATCH = (8, 8), 12, 4, 7

TINY = CauseOptions(
    classes=CLASSES,
    codes=16,
    reduced=6,
    projection=10,
    batch_size=4,
    lr=1e-2,
    share=1.0,
    head_epochs=1,
    probe_epochs=1,
    bank=5,
)


def tiny_options(head: str, **changes: object) -> CauseOptions:
    return dataclasses.replace(TINY, head=head, **changes)  # type: ignore[arg-type]


def block_map(views: int, seed: int) -> Tensor:
    """(views, 8, 8) kinds in blocks of 4x4."""
    kinds = torch.randint(CLASSES, (views, 1, 2, 2), generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(kinds, size=GRID, mode="nearest")[:, 0].long()


class TinySource:
    """Blocks of four kinds of tokens; `labels` says what the labels are: the kinds, or something else."""

    grid, dim = GRID, DIM

    def __init__(self, views: int = 8, seed: int = 0, labels: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(seed + 100)
        directions = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(7))
        kinds = block_map(views, seed)
        noise = 0.3 * torch.randn(views, GRID[0] * GRID[1], DIM, generator=generator)
        self.held = directions[kinds].flatten(1, 2) + noise
        small = kinds if labels is None else labels
        self.maps = small.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).to(torch.int16)

    def __len__(self) -> int:
        return len(self.held)

    def tokens(self, indices: Sequence[int]) -> Tensor:
        return self.held[list(indices)]

    def labels(self, indices: Sequence[int]) -> Tensor:
        return self.maps[list(indices)]


def tiny_codes(seed: int = 3) -> Tensor:
    """Sixteen codes around the kinds' directions."""
    directions = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(16, DIM, generator=torch.Generator().manual_seed(seed))
    return 0.01 * (directions.repeat(4, 1) + 0.4 * noise)
