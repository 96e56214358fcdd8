"""The Refiner: region tokens without the context that distorts them (Eq. 8-12)."""

import copy
from typing import Optional

import torch
from jaxtyping import Float
from timm.layers import LayerScale
from torch import Tensor, nn

from rsc_seg.config import RefinerConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.attention import VALUE_MODES, unused_in_value_mode
from rsc_seg.models.encoder import BlockStack, DenseEncoder, EarlyFeatures, to_map
from rsc_seg.ops.boxes import roi_pool, roi_tokens, whole_image_boxes

HEADS = ("clone", "random", "exogenous", "pacl")
PLACEMENTS = ("early", "late")
_PAPER_TAPS = {(12, 4): (4, 7), (24, 6): (9, 14)}  # (N, K) -> l1, l2


def default_taps(depth: int, head_blocks: int) -> tuple[int, int]:
    """l1, l2 (counted from 1): the paper's for ViT-B and L; otherwise the middle of f_A and its last block but one."""
    early = depth - head_blocks
    return _PAPER_TAPS.get((depth, head_blocks), (max(1, early // 2), max(1, early - 1)))


def _mlp(width_in: int, hidden: int, width_out: int, *, last_std: float = 0.0) -> nn.Sequential:
    """Two layers with GELU between; the last one starts at zero, so that the Refiner starts at the frozen encoder.

    `last_std` above zero: the last layer starts with truncated normal weights of this deviation instead.
    """
    first, last = nn.Linear(width_in, hidden), nn.Linear(hidden, width_out)
    if last_std > 0:
        nn.init.trunc_normal_(last.weight, std=last_std)
    else:
        nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.GELU(), last)


def _reinitialise(module: nn.Module) -> None:
    """Fresh weights: truncated normal of 0.02, zero biases, norms and LayerScale at one."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
        elif isinstance(m, LayerScale):
            nn.init.ones_(m.gamma)


class ResidualEmbedder(nn.Module):
    """PACL's vision embedder on normalised tokens: a linear layer (starts as identity) plus an MLP (starts at zero)."""

    def __init__(self, norm: nn.Module, project: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.project = norm, project
        self.main = nn.Linear(width, width)
        nn.init.eye_(self.main.weight)
        nn.init.zeros_(self.main.bias)
        self.branch = _mlp(width, hidden, width)

    def forward(
        self, tokens: Float[Tensor, "B N D"], num_prefix_tokens: int, grid: tuple[int, int]
    ) -> Float[Tensor, "B L E"]:
        """Prefix and patch tokens in, embedded (CLIP: and projected) patch tokens out; `grid` is not needed here."""
        z = self.norm(tokens[:, num_prefix_tokens:])
        return self.project(self.main(z) + self.branch(z))


def _make_head(encoder: DenseEncoder, kind: str, depth: int, hidden: int) -> nn.Module:
    shared = encoder.split(depth)
    # frozen, as in CLIPSelf
    norm, project = (copy.deepcopy(part).requires_grad_(False) for part in (shared.norm, shared.project))
    if kind == "pacl":
        return ResidualEmbedder(norm, project, encoder.embed_dim, hidden)
    blocks = [copy.deepcopy(b) for b in shared.blocks]
    head = BlockStack(blocks, norm, shared.last_block, project=project, rope=shared.rope)
    head.blocks.requires_grad_(True)
    if head.last_block in VALUE_MODES:
        for parameter in unused_in_value_mode(head.blocks[-1]):
            parameter.requires_grad_(False)
    head.gradient_checkpointing = encoder.gradient_checkpointing
    if kind in ("random", "exogenous"):
        _reinitialise(head.blocks)
    if kind == "exogenous":  # a new space needs its own norm
        head.norm.requires_grad_(True)
        _reinitialise(head.norm)
    return head


class Refiner(nn.Module):
    """f_R with FC_inter and FC_cls on the early features of a frozen encoder.

    `front_depth` blocks and the block outputs `taps` are what `DenseEncoder.early` must be asked for. Ablations: see
    RefinerConfig. FC_cls does not exist where no region reaches the head (placement late) or no [CLS] is read (pacl, or
    one block in value mode).
    Raises UserError for a depth or taps that the encoder does not have.
    """

    def __init__(self, encoder: DenseEncoder, config: RefinerConfig) -> None:
        super().__init__()
        require_choice("refiner.head", config.head, HEADS)
        require_choice("refiner.placement", config.placement, PLACEMENTS)
        depth = config.depth if config.depth is not None else min(encoder.row.head_blocks, encoder.depth - 1)
        if not 0 < depth < encoder.depth:
            raise UserError(
                f"refiner.depth={depth}: {encoder.name} has {encoder.depth} blocks, "
                f"so 1 to {encoder.depth - 1} are possible."
            )
        on_top = config.head in ("exogenous", "pacl")
        self.front_depth = encoder.depth if on_top else encoder.depth - depth
        self.taps = self._checked_taps(encoder, config, depth)
        self.placement = config.placement
        self.patch_size, self.num_prefix_tokens = encoder.patch_size, encoder.num_prefix_tokens
        self.cls_residual = config.cls_residual
        width = encoder.embed_dim
        self.head = _make_head(encoder, config.head, depth, config.hidden)
        self.inter = _mlp(2 * width, config.hidden, width) if config.inter else None
        self.region_cls: Optional[nn.Sequential] = None
        reads_cls = config.head != "pacl" and (depth > 1 or encoder.last_block != "value")
        if config.region_cls and config.placement == "early" and reads_cls:
            # without the residual, the paper to the letter: an ordinary MLP, nothing added
            self.region_cls = _mlp(width, config.hidden, width, last_std=0.0 if config.cls_residual else 0.02)

    def _checked_taps(self, encoder: DenseEncoder, config: RefinerConfig, depth: int) -> tuple[int, ...]:
        if not config.inter:
            return ()
        taps = tuple(config.taps) if config.taps is not None else default_taps(encoder.depth, depth)
        if len(taps) != 2 or any(not 1 <= t <= self.front_depth for t in taps):
            raise UserError(
                f"refiner.taps={list(taps)}: two blocks of f_A are needed, "
                f"each from 1 to {self.front_depth} (counted from 1)."
            )
        return taps

    def early(self, encoder: DenseEncoder, x: Float[Tensor, "B 3 H W"]) -> EarlyFeatures:
        """The frozen half: no gradient."""
        with torch.no_grad():
            return encoder.early(x, self.front_depth, self.taps)

    def _fused(self, early: EarlyFeatures) -> Float[Tensor, "B D h w"]:
        """f_A(X) + Z_inter (Eq. 11)."""
        if self.inter is None:
            return early.patches
        # (B, 2, D, h, w) -> (B, h, w, 2*D)
        concat = early.taps.flatten(1, 2).permute(0, 2, 3, 1)
        return early.patches + self.inter(concat).permute(0, 3, 1, 2)

    def _prefix(self, early: EarlyFeatures, boxes: Float[Tensor, "B R 4"]) -> Float[Tensor, "BR P D"]:
        """[CLS] of every region (Eq. 10), then the image's registers."""
        prefix = early.prefix.repeat_interleave(boxes.shape[1], dim=0)
        if self.region_cls is None:
            return prefix
        cls = self.region_cls(roi_pool(early.patches, boxes, patch_size=self.patch_size).to(prefix.dtype))
        if self.cls_residual:
            cls = cls + prefix[:, 0]
        return torch.cat([cls[:, None], prefix[:, 1:]], dim=1)

    def forward(
        self, early: EarlyFeatures, boxes: Float[Tensor, "B R 4"], grid: tuple[int, int]
    ) -> Float[Tensor, "BR L E"]:
        """Refined tokens of every box (xyxy in pixels), `grid` each, in the encoder's output space; images in order."""
        fused, p = self._fused(early), self.num_prefix_tokens
        if self.placement == "late":  # Eq. 12
            tokens = torch.cat([early.prefix, fused.flatten(2).transpose(1, 2)], dim=1)
            side = (fused.shape[2], fused.shape[3])
            refined = to_map(self.head(tokens, p, side), side)
            return roi_tokens(refined, boxes, patch_size=self.patch_size, grid=grid)
        prefix = self._prefix(early, boxes)
        regions = roi_tokens(fused, boxes, patch_size=self.patch_size, grid=grid).to(prefix.dtype)
        return self.head(torch.cat([prefix, regions], dim=1), p, grid)

    def whole_image(self, early: EarlyFeatures) -> Float[Tensor, "B E h w"]:
        """The image as its own single region, at its own grid: the Refiner's dense features."""
        h, w = early.patches.shape[-2:]
        box = whole_image_boxes(len(early.patches), h * self.patch_size, w * self.patch_size, like=early.patches)
        return to_map(self(early, box, (h, w)), (h, w))
