"""Random choices of CAUSE: one token per cell of 4x4 tokens, which projections the bank keeps, the order of views."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rsc_seg.errors import UserError

CELL = 4  # tokens along a side of a cell


def cells_of(grid: tuple[int, int]) -> tuple[int, int]:
    """Whole cells along height and width; UserError for a grid that holds none."""
    rows, columns = grid[0] // CELL, grid[1] // CELL
    if rows < 1 or columns < 1:
        raise UserError(
            f"token grid {grid[0]}x{grid[1]}: CAUSE samples cells of {CELL}x{CELL} tokens; use a larger resolution."
        )
    return rows, columns


def cell_positions(grid: tuple[int, int], choice: Int64[Tensor, "B C"]) -> Int64[Tensor, "B C"]:
    """Index in the flat grid of the token that `choice` (0..15, row by row inside its cell) names in each cell.

    Cells run row by row; the rows and columns that fill no whole cell are left out, as in the official code.
    """
    rows, columns = cells_of(grid)
    if choice.shape[1] != rows * columns:
        raise ValueError(f"{choice.shape[1]} choices for {rows * columns} cells")
    cell = torch.arange(rows * columns, device=choice.device)
    y = (cell // columns) * CELL + choice // CELL
    x = (cell % columns) * CELL + choice % CELL
    return y * grid[1] + x


def take_tokens(x: Float[Tensor, "B L D"], positions: Int64[Tensor, "B C"]) -> Float[Tensor, "B C D"]:
    """The tokens of each image at its own positions."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[2]))


class Draws(Protocol):
    """Every random choice that a stage makes besides dropout and initial weights."""

    def views(self, count: int) -> list[int]:
        """A new order of all training views, once per epoch."""
        ...

    def cells(self, batch: int, grid: tuple[int, int]) -> Int64[Tensor, "B C"]:
        """A token (0..15) for each cell of each image, once per iteration."""
        ...

    def halves(self, counts: Sequence[int]) -> list[Int64[Tensor, " n"]]:
        """For groups of `counts` entries: which half of each, rounded down, the bank gets; once per iteration."""
        ...


class SeededDraws:
    """The choices of one generator, which nothing else uses."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def views(self, count: int) -> list[int]:
        """Uniform random order."""
        return torch.randperm(count, generator=self._generator).tolist()

    def cells(self, batch: int, grid: tuple[int, int]) -> Int64[Tensor, "B C"]:
        """Uniform over the 16 tokens of a cell."""
        rows, columns = cells_of(grid)
        return torch.randint(CELL * CELL, (batch, rows * columns), generator=self._generator)

    def halves(self, counts: Sequence[int]) -> list[Int64[Tensor, " n"]]:
        """The first half of a random order of each group."""
        return [torch.randperm(n, generator=self._generator)[: n // 2] for n in counts]
