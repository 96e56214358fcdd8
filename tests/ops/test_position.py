"""Position rules: each against the interpolation call that the code it matches makes."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.ops.position import POSITION_RULES, resample_pos_embed

torch.set_num_threads(1)
GRIDS = [(16, 16), (23, 23), (23, 35), (7, 7), (1, 1), (50, 40), (37, 36)]


@pytest.fixture(scope="module")
def pos() -> Tensor:
    return torch.randn(6, 37, 37, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", GRIDS)
def test_antialias_equals_timm(pos: Tensor, grid: tuple[int, int]) -> None:
    flat = pos.flatten(1).T[None]
    theirs = resample_abs_pos_embed(flat, new_size=list(grid), old_size=[37, 37], num_prefix_tokens=0)
    ours = resample_pos_embed(pos, grid, "antialias")
    torch.testing.assert_close(ours.flatten(1).T[None], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_dinov2_goes_by_the_scale_factor_with_the_offset(pos: Tensor, grid: tuple[int, int]) -> None:
    scale = (float(grid[0] + 0.1) / math.sqrt(37 * 37), float(grid[1] + 0.1) / math.sqrt(37 * 37))
    reference = F.interpolate(pos[None], scale_factor=scale, mode="bicubic", antialias=False)[0]
    assert torch.equal(resample_pos_embed(pos, grid, "dinov2"), reference)


@pytest.mark.parametrize("grid", GRIDS)
def test_rules_by_size(pos: Tensor, grid: tuple[int, int]) -> None:
    plain = F.interpolate(pos[None], size=grid, mode="bicubic", align_corners=False)[0]
    smooth = F.interpolate(pos[None], size=grid, mode="bicubic", align_corners=False, antialias=True)[0]
    assert torch.equal(resample_pos_embed(pos, grid, "plain"), plain)
    assert torch.equal(resample_pos_embed(pos, grid, "dinov2_reg"), smooth)
    assert torch.equal(resample_pos_embed(pos, grid, "antialias"), smooth)


def test_three_different_results_at_a_smaller_grid(pos: Tensor) -> None:
    a, b, c = (resample_pos_embed(pos, (16, 16), rule) for rule in ("antialias", "plain", "dinov2"))
    assert min((a - b).abs().max(), (a - c).abs().max(), (b - c).abs().max()) > 0.05


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_native_grid_is_untouched(pos: Tensor, rule: str) -> None:
    assert resample_pos_embed(pos, (37, 37), rule) is pos


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_computed_in_float32_and_given_back_in_the_dtype_that_came(pos: Tensor, rule: str) -> None:
    low = pos.bfloat16()
    out = resample_pos_embed(low, (16, 20), rule)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, resample_pos_embed(low.float(), (16, 20), rule).bfloat16())


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_a_constant_stays_and_height_is_height(rule: str) -> None:
    flat = torch.full((1, 8, 8), 2.5)
    torch.testing.assert_close(resample_pos_embed(flat, (5, 11), rule), torch.full((1, 5, 11), 2.5))
    slope = torch.arange(8.0)[:, None].expand(8, 8)[None]  # grows with the row only
    out = resample_pos_embed(slope, (5, 11), rule)[0]
    assert (out.diff(dim=0) > 0.5).all() and out.diff(dim=1).abs().max() < 1e-5


def test_gradient_reaches_the_stored_map() -> None:
    pos = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    resample_pos_embed(pos, (5, 6), "dinov2").sum().backward()
    assert pos.grad is not None and pos.grad.abs().sum() > 0


def test_unknown_rule_is_refused_with_all_names(pos: Tensor) -> None:
    with pytest.raises(UserError, match="position_rule=bicubic: must be one of antialias, plain, dinov2, dinov2_reg"):
        resample_pos_embed(pos, (16, 16), "bicubic")
