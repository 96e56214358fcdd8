"""timm's attention modules with `attend` inside; parameters keep timm's names."""

from typing import Optional, cast

import torch
from jaxtyping import Float
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import Attention
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.ops.attention import attend

VALUE_MODES = ("value", "catseg")


class DenseAttention(Attention):
    """Self-attention whose backend is a named choice (`backend`, see rsc_seg.ops.attention)."""

    backend = "auto"

    def forward(
        self, x: Float[Tensor, "B L D"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """Tokens in, tokens out; `attn_mask` is an additive bias. Causal attention raises ValueError."""
        if is_causal:
            raise ValueError("DenseAttention serves image encoders: it has no causal mode.")
        q, k, v = self.queries_keys_values(x)
        out = attend(q, k, v, attn_mask, backend=self.backend)
        # (B, N, L, K) -> (B, L, D)
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))

    def queries_keys_values(
        self, x: Float[Tensor, "B L D"], rope: Optional[Tensor] = None
    ) -> tuple[Float[Tensor, "B N L K"], Float[Tensor, "B N L K"], Float[Tensor, "B N L K"]]:
        """What the attention of these tokens is made of; there are no rotary positions here (`rope`)."""
        # (B, L, 3*D) -> 3 x (B, N, L, K)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def values_only(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Output projection of the value projection, no mixing of tokens (CLIPSelf's dense path)."""
        weight, bias = self.qkv.weight.chunk(3)[2], self.qkv.bias
        v = nn.functional.linear(x, weight, None if bias is None else bias.chunk(3)[2])
        return self.proj(self.norm(v))


class DenseEvaAttention(EvaAttention):
    """EVA-02's self-attention (separate projections, rotary positions, inner norm) with a named backend."""

    backend = "auto"

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rope: Optional[Float[Tensor, "N K2"]] = None,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """Tokens in, tokens out; `rope` turns the patches' queries and keys. Causal attention raises ValueError."""
        if is_causal:
            raise ValueError("DenseEvaAttention serves image encoders: it has no causal mode.")
        q, k, v = self.queries_keys_values(x, rope)
        out = attend(q, k, v, attn_mask, backend=self.backend)
        # (B, N, L, K) -> (B, L, D)
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))

    def queries_keys_values(
        self, x: Float[Tensor, "B L D"], rope: Optional[Float[Tensor, "N K2"]] = None
    ) -> tuple[Float[Tensor, "B N L K"], Float[Tensor, "B N L K"], Float[Tensor, "B N L K"]]:
        """What the attention of these tokens is made of, patches' queries and keys turned by `rope`."""
        heads = (self.num_heads, self.head_dim)
        # (B, L, D) -> (B, N, L, K)
        projections = cast(tuple[nn.Linear, ...], (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (p(x).unflatten(2, heads).transpose(1, 2) for p in projections)
        if rope is not None:
            q, k = (self._turned(t, rope).type_as(v) for t in (q, k))
        return q, k, v

    def _turned(self, t: Tensor, rope: Tensor) -> Tensor:
        p = self.num_prefix_tokens
        return torch.cat([t[:, :, :p], apply_rot_embed_cat(t[:, :, p:], rope, half=self.rotate_half)], dim=2)

    def values_only(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Output projection of the normed value projection, no mixing of tokens (CLIPSelf's dense path of EVA)."""
        return self.proj(self.norm(cast(nn.Linear, self.v_proj)(x)))


def use_dense_attention(trunk: nn.Module) -> nn.Module:
    """Turns the attention modules of a timm ViT or Eva into ours, in place; weights stay as they are.

    Raises UserError for attention that has no counterpart here (packed projections of other Eva models, gates).
    """
    for module in trunk.modules():
        if type(module) is Attention:
            module.__class__ = DenseAttention
        elif type(module) is EvaAttention:
            if module.v_proj is None or module.gate is not None or not isinstance(module.q_norm, nn.Identity):
                raise UserError("this Eva architecture is not supported: only EVA-02-CLIP's attention is.")
            module.__class__ = DenseEvaAttention
    return trunk


def set_backend(module: nn.Module, backend: str) -> None:
    """Chooses the attention backend of every dense attention inside `module`."""
    for m in module.modules():
        if isinstance(m, (DenseAttention, DenseEvaAttention)):
            m.backend = backend


def run_block(block: nn.Module, tokens: Float[Tensor, "B L D"], rope: Optional[Tensor]) -> Float[Tensor, "B L D"]:
    """A timm block as it stands; only EVA's blocks take rotary positions."""
    return block(tokens) if rope is None else block(tokens, rope=rope)


def _eva_attention(block: nn.Module) -> Optional[DenseEvaAttention]:
    attn = getattr(block, "attn", None)
    return attn if isinstance(attn, DenseEvaAttention) else None


def value_block(block: nn.Module, tokens: Float[Tensor, "B L D"], mode: str = "value") -> Float[Tensor, "B L D"]:
    """A timm block whose attention passes values through; LayerScale and FFN are kept.

    value: the residual is the token itself (CLIPSelf). catseg: the residual is the block input's [CLS], for every token
    (CAT-Seg). Raises TypeError for a block without dense attention.
    """
    if isinstance(block, Block) and isinstance(block.attn, DenseAttention):
        mixed = block.ls1(block.attn.values_only(block.norm1(tokens)))
        tokens = (tokens[:, :1] if mode == "catseg" else tokens) + mixed
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))
    attn = _eva_attention(block)
    if attn is not None and isinstance(block, EvaBlock):
        first, second = (1.0 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2))
        mixed = first * attn.values_only(block.norm1(tokens))
        tokens = (tokens[:, :1] if mode == "catseg" else tokens) + mixed
        return tokens + second * block.mlp(block.norm2(tokens))
    raise TypeError("value modes need timm's blocks with dense attention (create_trunk's dense_attention).")


def unused_in_value_mode(block: nn.Module) -> list[nn.Parameter]:
    """Parameters that a value mode never reads, so that they get no gradient; packed projections have none."""
    attn = _eva_attention(block)
    unread = () if attn is None else (attn.q_proj, attn.k_proj)
    return [parameter for linear in unread for parameter in cast(nn.Linear, linear).parameters()]
