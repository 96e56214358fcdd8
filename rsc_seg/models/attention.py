"""timm's attention module with `attend` inside; parameters keep timm's names."""

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rsc_seg.ops.attention import attend


class DenseAttention(Attention):
    """Self-attention whose backend is a named choice (`backend`, see rsc_seg.ops.attention)."""

    backend = "auto"

    def forward(
        self, x: Float[Tensor, "B L D"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """Tokens in, tokens out; `attn_mask` is an additive bias. Causal attention raises ValueError."""
        if is_causal:
            raise ValueError("DenseAttention serves image encoders: it has no causal mode.")
        # (B, L, 3*D) -> 3 x (B, N, L, K)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(self.q_norm(q), self.k_norm(k), v, attn_mask, backend=self.backend)
        # (B, N, L, K) -> (B, L, D)
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))

    def values_only(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Output projection of the value projection, no mixing of tokens (CLIPSelf's dense path)."""
        weight, bias = self.qkv.weight.chunk(3)[2], self.qkv.bias
        v = nn.functional.linear(x, weight, None if bias is None else bias.chunk(3)[2])
        return self.proj(self.norm(v))


def set_backend(module: nn.Module, backend: str) -> None:
    """Chooses the attention backend of every DenseAttention inside `module`."""
    for m in module.modules():
        if isinstance(m, DenseAttention):
            m.backend = backend


def value_block(block: nn.Module, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """A timm ViT block whose attention passes values through: residual, LayerScale and FFN are kept.

    Raises TypeError for a block without DenseAttention.
    """
    if not isinstance(block, Block) or not isinstance(block.attn, DenseAttention):
        raise TypeError("value mode needs timm's ViT blocks with DenseAttention (create_trunk's attn_layer).")
    tokens = tokens + block.ls1(block.attn.values_only(block.norm1(tokens)))
    return torch.add(tokens, block.ls2(block.mlp(block.norm2(tokens))))
