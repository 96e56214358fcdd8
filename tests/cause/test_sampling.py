"""One token per cell of 4x4, and draws that follow their generator."""

import pytest
import torch

from rsc_seg.cause.sampling import SeededDraws, cell_positions, cells_of, take_tokens
from rsc_seg.errors import UserError


def draws(seed: int) -> SeededDraws:
    return SeededDraws(torch.Generator().manual_seed(seed))


def test_cells_run_row_by_row_and_a_choice_runs_row_by_row_inside() -> None:
    # a grid of 9 x 13 holds 2 x 3 whole cells
    assert cells_of((9, 13)) == (2, 3)
    first = cell_positions((9, 13), torch.zeros(1, 6, dtype=torch.long))[0].tolist()
    assert first == [0, 4, 8, 4 * 13, 4 * 13 + 4, 4 * 13 + 8]
    last = cell_positions((9, 13), torch.full((1, 6), 15))[0].tolist()
    assert last == [p + 3 * 13 + 3 for p in first]
    assert cell_positions((8, 8), torch.tensor([[1, 4, 0, 0]]))[0].tolist() == [1, 12, 32, 36]


@pytest.mark.parametrize(("side", "tokens"), [(16, 16), (20, 25), (23, 25), (40, 100)])
def test_the_official_resolutions_give_the_official_numbers_of_tokens(side: int, tokens: int) -> None:
    assert draws(0).cells(2, (side, side)).shape == (2, tokens)


def test_each_image_gets_its_own_tokens() -> None:
    x = torch.arange(2 * 64.0).view(2, 64, 1)
    at = cell_positions((8, 8), torch.tensor([[0, 0, 0, 0], [5, 6, 7, 8]]))
    assert take_tokens(x, at)[:, :, 0].tolist() == [[0, 4, 32, 36], [64 + 9, 64 + 4 + 10, 64 + 32 + 11, 64 + 36 + 16]]


def test_all_sixteen_tokens_of_a_cell_are_drawn_alike() -> None:
    counts = draws(0).cells(4000, (8, 8)).flatten().bincount(minlength=16)
    assert counts.min() > 900 and counts.max() < 1100  # 1000 expected


def test_a_seed_fixes_every_draw() -> None:
    one, two, other = draws(1), draws(1), draws(2)
    assert one.views(50) == two.views(50) != other.views(50)
    assert torch.equal(one.cells(3, (8, 8)), two.cells(3, (8, 8)))
    halves = one.halves([1, 2, 7])
    assert [len(h) for h in halves] == [0, 1, 3]
    assert all(torch.equal(a, b) for a, b in zip(halves, two.halves([1, 2, 7]), strict=True))
    assert sorted(one.views(50)) == list(range(50))


def test_a_grid_without_a_whole_cell_is_refused() -> None:
    with pytest.raises(UserError, match="token grid 3x9: .* use a larger resolution"):
        draws(0).cells(1, (3, 9))


def test_choices_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="4 choices for 25 cells"):
        cell_positions((20, 20), torch.zeros(1, 4, dtype=torch.long))
