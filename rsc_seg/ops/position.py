"""Resampling of learned position embeddings: four rules, because the reference codes use four."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rsc_seg.errors import UserError

POSITION_RULES = ("antialias", "plain", "dinov2", "dinov2_reg")
_DINOV2_OFFSET = 0.1


def resample_pos_embed(pos: Float[Tensor, "D H0 W0"], grid: tuple[int, int], rule: str) -> Float[Tensor, "D h w"]:
    """Bicubic resampling of a position map to `grid` (tokens: height, width), in float32, without align_corners.

    antialias: by size, antialiased (timm, open_clip). plain: by size, not antialiased (CLIPSelf; the exported graph of
    the demo weights). dinov2: by the scale factor (size + 0.1) / native, not antialiased (official DINOv2 without
    registers). dinov2_reg: by size, antialiased (official DINOv2 with registers). At the native grid every rule
    returns `pos` itself. Raises UserError for an unknown rule.
    """
    if rule not in POSITION_RULES:
        raise UserError(f"position_rule={rule}: must be one of {', '.join(POSITION_RULES)}.")
    native = (pos.shape[1], pos.shape[2])
    if grid == native:
        return pos
    batch = pos.float()[None]
    if rule == "dinov2":
        scale = [(want + _DINOV2_OFFSET) / have for want, have in zip(grid, native, strict=True)]
        out = F.interpolate(batch, scale_factor=scale, mode="bicubic", antialias=False)
    else:
        out = F.interpolate(batch, size=grid, mode="bicubic", antialias=rule in ("antialias", "dinov2_reg"))
    if tuple(out.shape[-2:]) != grid:
        raise UserError(f"position_rule={rule} cannot make a {grid[0]}x{grid[1]} grid from {native[0]}x{native[1]}.")
    return out[0].to(pos.dtype)
