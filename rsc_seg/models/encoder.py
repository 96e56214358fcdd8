"""One dense encoder for all backbones: a timm ViT, our position rules, and access to any run of blocks."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Optional, cast

import torch
from jaxtyping import Float
from timm.layers import RotaryEmbeddingCat
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsc_seg.errors import UserError
from rsc_seg.models.attention import VALUE_MODES, run_block, unused_in_value_mode, value_block
from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.weights_info import LAST_BLOCKS
from rsc_seg.ops.position import resample_pos_embed


class EarlyFeatures(NamedTuple):
    """What the first blocks f_A make of a batch: everything that a Refiner or the remaining blocks need."""

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B D h w"]
    taps: Float[Tensor, "B K D h w"]


def _required(parameter: Optional[Tensor], name: str) -> Tensor:
    if parameter is None:
        raise TypeError(f"DenseEncoder needs a trunk with {name}.")
    return parameter


def to_map(tokens: Float[Tensor, "B L D"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """Patch tokens, row by row, as a map."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class BlockStack(nn.Module):
    """The last transformer blocks with the final norm and projection (f_B, or the Refiner's head).

    `rope` is timm's module of rotary positions, for EVA; `project` leads into the joint space, for CLIP.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        last_block: str,
        *,
        project: Optional[nn.Module] = None,
        rope: Optional[nn.Module] = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.project = project if project is not None else nn.Identity()
        self.rope = rope
        self.last_block = last_block
        self.gradient_checkpointing = False

    def forward(
        self, tokens: Float[Tensor, "B N D"], num_prefix_tokens: int, grid: tuple[int, int]
    ) -> Float[Tensor, "B L E"]:
        """Prefix and the patch tokens of `grid` in, normalised and projected patch tokens out."""
        tokens = run_blocks(
            list(self.blocks),
            tokens,
            self.last_block,
            rope=rotary_positions(self.rope, grid),
            checkpointed=self.gradient_checkpointing,
        )
        return self.project(self.norm(tokens)[:, num_prefix_tokens:])


def rotary_positions(rope: Optional[nn.Module], grid: tuple[int, int]) -> Optional[Float[Tensor, "L K2"]]:
    """Sines and cosines of timm's rotary module for `grid`, in float32; None without one."""
    return None if rope is None else cast(RotaryEmbeddingCat, rope).get_embed(shape=list(grid))


def run_blocks(
    blocks: Sequence[nn.Module],
    tokens: Float[Tensor, "B N D"],
    last_block: str,
    *,
    rope: Optional[Tensor] = None,
    checkpointed: bool = False,
) -> Float[Tensor, "B N D"]:
    """All blocks in order; the last of them in the mode `last_block` (full, value or catseg)."""
    for i, block in enumerate(blocks):
        by_value = last_block in VALUE_MODES and i == len(blocks) - 1
        step = partial(value_block, mode=last_block) if by_value else partial(run_block, rope=rope)
        if checkpointed and torch.is_grad_enabled():
            tokens = checkpoint(step, block, tokens, use_reentrant=False)
        else:
            tokens = step(block, tokens)
    return tokens


class DenseEncoder(nn.Module):
    """A ViT that gives dense features at any size that its patch divides.

    `trunk` is a timm VisionTransformer or Eva with dense attention (its parameter names are the checkpoint's).
    `last_block`: full (DINOv2), value (the last block passes values only, CLIPSelf's dense path) or catseg (CAT-Seg's
    variant of it). CLIP's features lie in the joint space with text (`joint_dim`), never l2-normalised here. Input:
    images normalised by `mean` and `std`.
    """

    def __init__(
        self, trunk: VisionTransformer | Eva, row: BackboneRow, *, position_rule: str, last_block: str
    ) -> None:
        super().__init__()
        if last_block not in LAST_BLOCKS:
            raise UserError(f"last_block={last_block}: must be one of {', '.join(LAST_BLOCKS)}.")
        self.trunk = trunk
        self.row = row
        self.name = row.name
        self.position_rule = position_rule
        self.last_block = last_block
        self.embed_dim, self.patch_size = row.embed_dim, row.patch_size
        self.num_prefix_tokens = row.num_prefix_tokens
        self.joint_dim = row.joint_dim
        self.out_dim = row.embed_dim if row.joint_dim is None else row.joint_dim
        self.mean, self.std = row.mean, row.std
        self.gradient_checkpointing = False

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.trunk.blocks)

    @property
    def rope(self) -> Optional[nn.Module]:
        """timm's module of rotary positions, None for encoders without."""
        return self.trunk.rope if isinstance(self.trunk, Eva) else None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens in height and width of an image; UserError with the nearest valid size when the patch does not fit."""
        p = self.patch_size
        if height % p or width % p or min(height, width) < p:
            near = [max(p, round(s / p) * p) for s in (height, width)]
            raise UserError(
                f"image of {height}x{width} pixels: {self.name} needs multiples of {p} (nearest: {near[0]}x{near[1]})."
            )
        return height // p, width // p

    def position_map(self, grid: tuple[int, int]) -> Float[Tensor, "D h w"]:
        """Position embeddings of the patches, resampled to `grid` by the encoder's rule."""
        pos = _required(self.trunk.pos_embed, "learned position embeddings")[0]
        side = self.row.native_size // self.patch_size
        patches = pos[pos.shape[0] - side * side :]
        return resample_pos_embed(patches.transpose(0, 1).unflatten(1, (side, side)), grid, self.position_rule)

    def embed(
        self, x: Float[Tensor, "B 3 H W"], positions: Optional[Float[Tensor, "B D h w"]] = None
    ) -> Float[Tensor, "B N D"]:
        """Tokens before the first block: [CLS], registers, patches.

        `positions` replaces the position embeddings of the patches (default: the image's own grid).
        """
        grid = self.grid(x.shape[-2], x.shape[-1])
        trunk = self.trunk
        patches = trunk.patch_embed(x).flatten(1, 2)  # (B, h, w, D) -> (B, L, D)
        pos = self.position_map(grid)[None] if positions is None else positions
        patches = patches + pos.flatten(2).transpose(1, 2)
        cls = _required(trunk.cls_token, "a [CLS] token")
        if not trunk.no_embed_class:
            cls = cls + _required(trunk.pos_embed, "learned position embeddings")[:, :1]
        prefix = [cls] if trunk.reg_token is None else [cls, trunk.reg_token]
        tokens = torch.cat([t.expand(x.shape[0], -1, -1) for t in prefix] + [patches], dim=1)
        return trunk.norm_pre(tokens)

    def run(
        self,
        tokens: Float[Tensor, "B N D"],
        grid: tuple[int, int],
        start: int = 0,
        stop: Optional[int] = None,
        *,
        last_block: Optional[str] = None,
    ) -> Float[Tensor, "B N D"]:
        """Blocks start..stop-1 (from 0) on the tokens of `grid`; the encoder's last block in its own or given mode."""
        stop = self.depth if stop is None else stop
        mode = (last_block or self.last_block) if stop == self.depth else "full"
        return run_blocks(
            list(self.trunk.blocks[start:stop]),
            tokens,
            mode,
            rope=rotary_positions(self.rope, grid),
            checkpointed=self.gradient_checkpointing,
        )

    def tokens(
        self, x: Float[Tensor, "B 3 H W"], positions: Optional[Float[Tensor, "B D h w"]] = None
    ) -> Float[Tensor, "B N D"]:
        """Tokens of the last block before the final norm."""
        return self.run(self.embed(x, positions), self.grid(x.shape[-2], x.shape[-1]))

    def project(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        """Normed tokens into the joint space; encoders without one give them back."""
        return tokens if self.joint_dim is None else self.trunk.head(tokens)

    def finish(self, tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B E h w"]:
        """Final norm and projection of a block's output, patches as a map."""
        return to_map(self.project(self.trunk.norm(tokens)[:, self.num_prefix_tokens :]), grid)

    def dense(
        self, x: Float[Tensor, "B 3 H W"], positions: Optional[Float[Tensor, "B D h w"]] = None
    ) -> Float[Tensor, "B E h w"]:
        """Dense features (f_I): after the final norm and, for CLIP, the projection; width `out_dim`."""
        return self.finish(self.tokens(x, positions), self.grid(x.shape[-2], x.shape[-1]))

    def cls(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """[CLS] after the final norm (CLIP: projected); the last block attends in full, whatever the dense mode."""
        tokens = self.run(self.embed(x), self.grid(x.shape[-2], x.shape[-1]), last_block="full")
        return self.project(self.trunk.norm(tokens)[:, 0])

    def intermediates(
        self, x: Float[Tensor, "B 3 H W"], blocks: Sequence[int], *, norm: bool = False
    ) -> list[Float[Tensor, "B E h w"]]:
        """Outputs of the blocks named by number, counted from 1; when `norm`, through final norm and projection."""
        grid = self.grid(x.shape[-2], x.shape[-1])
        tokens, out, done = self.embed(x), {}, 0
        for number in sorted(set(blocks)):
            if not 1 <= number <= self.depth:
                raise UserError(f"block {number} of {self.name}: it has blocks 1 to {self.depth}.")
            tokens, done = self.run(tokens, grid, done, number), number
            out[number] = self.finish(tokens, grid) if norm else to_map(tokens[:, self.num_prefix_tokens :], grid)
        return [out[number] for number in blocks]

    def early(self, x: Float[Tensor, "B 3 H W"], blocks: int, taps: Sequence[int] = ()) -> EarlyFeatures:
        """f_A: the first `blocks` blocks, and the outputs of the blocks `taps` (counted from 1, in this order)."""
        grid = self.grid(x.shape[-2], x.shape[-1])
        p, tokens, kept, done = self.num_prefix_tokens, self.embed(x), {}, 0
        for number in sorted({*taps, blocks}):
            tokens, done = self.run(tokens, grid, done, number), number
            kept[number] = tokens
        maps = [to_map(kept[number][:, p:], grid) for number in taps]
        stacked = torch.stack(maps, dim=1) if maps else x.new_zeros(x.shape[0], 0, self.embed_dim, *grid)
        return EarlyFeatures(kept[blocks][:, :p], to_map(kept[blocks][:, p:], grid), stacked)

    def split(self, blocks: int) -> BlockStack:
        """The last `blocks` blocks, norm and projection (f_B), this encoder's own parameters; what `early` leaves."""
        if not 0 < blocks < self.depth:
            raise UserError(
                f"cannot take the last {blocks} of {self.depth} blocks of {self.name}: "
                f"1 to {self.depth - 1} are possible."
            )
        return BlockStack(
            list(self.trunk.blocks[self.depth - blocks :]),
            self.trunk.norm,
            self.last_block,
            project=None if self.joint_dim is None else self.trunk.head,
            rope=self.rope,
        )


def trainable_parameters(encoder: DenseEncoder, policy: str) -> list[str]:
    """Applies a freezing policy to the encoder and returns the names of the parameters that train.

    blocks: all transformer blocks (CLIPSelf's choice). blocks_norm: and the final norm. last_K: the last K blocks.
    all: everything. none: nothing. What the last block's value mode never reads stays frozen, and so does the bias that
    timm's head has and OpenAI's projection has not. UserError for another policy.
    """
    depth = encoder.depth
    if policy.startswith("last_") and policy[5:].isdigit() and 1 <= int(policy[5:]) <= depth:
        wanted = tuple(f"blocks.{i}." for i in range(depth - int(policy[5:]), depth))
    else:
        table = {"blocks": ("blocks.",), "blocks_norm": ("blocks.", "norm."), "all": ("",), "none": ()}
        if policy not in table:
            raise UserError(f"trainable={policy}: must be blocks, blocks_norm, last_1 ... last_{depth}, all or none.")
        wanted = table[policy]
    names = []
    unused = unused_in_value_mode(encoder.trunk.blocks[-1]) if encoder.last_block in VALUE_MODES else []
    idle = {id(parameter) for parameter in unused}
    if encoder.joint_dim is not None and not isinstance(encoder.trunk, Eva):
        idle.add(id(encoder.trunk.head.bias))
    for name, parameter in encoder.trunk.named_parameters():
        parameter.requires_grad_(bool(wanted) and name.startswith(wanted) and id(parameter) not in idle)
        if parameter.requires_grad:
            names.append(name)
    return names
