"""DenseAttention stands in for timm's module: same names, same numbers."""

import pytest
import torch
from timm.layers import LayerNorm
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rsc_seg.models.attention import DenseAttention, set_backend, value_block

torch.set_num_threads(1)


def seeded(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return module.eval()


def tokens() -> Tensor:
    return torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {"qkv_bias": True},
        {"qkv_bias": False},
        {"qkv_bias": True, "qk_norm": True, "norm_layer": LayerNorm},
        {"qkv_bias": True, "scale_norm": True, "norm_layer": LayerNorm},
    ],
)
def test_equals_timm_with_the_same_parameters(options: dict, backend: str) -> None:
    plain = seeded(Attention(24, num_heads=3, **options))
    ours = DenseAttention(24, num_heads=3, **options).eval()
    ours.load_state_dict(plain.state_dict(), strict=True)
    set_backend(ours, backend)
    torch.testing.assert_close(ours(tokens()), plain(tokens()), atol=1e-5, rtol=0)
    bias = torch.randn(9, 9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(tokens(), bias), plain(tokens(), attn_mask=bias), atol=1e-5, rtol=0)


def test_causal_mode_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no causal mode"):
        DenseAttention(24, num_heads=3)(tokens(), is_causal=True)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_values_only_is_attention_that_stays_on_its_own_token(qkv_bias: bool) -> None:
    attn = seeded(DenseAttention(24, num_heads=3, qkv_bias=qkv_bias))
    own = torch.full((9, 9), -torch.inf).fill_diagonal_(0.0)
    torch.testing.assert_close(attn.values_only(tokens()), attn(tokens(), own), atol=1e-5, rtol=0)


def test_value_block_keeps_residual_layerscale_and_ffn() -> None:
    block = seeded(Block(24, 3, qkv_bias=True, init_values=1.0, attn_layer=DenseAttention))
    own = torch.full((9, 9), -torch.inf).fill_diagonal_(0.0)
    torch.testing.assert_close(value_block(block, tokens()), block(tokens(), attn_mask=own), atol=1e-5, rtol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(value_block(block, tokens())[:, order], value_block(block, tokens()[:, order]))


def test_value_block_refuses_other_attention() -> None:
    with pytest.raises(TypeError, match="dense attention"):
        value_block(Block(24, 3), tokens())


def test_set_backend_reaches_every_module_inside_and_no_other() -> None:
    stack = nn.Sequential(*(Block(24, 3, attn_layer=DenseAttention) for _ in range(2)))
    other = DenseAttention(24, num_heads=3)
    set_backend(stack, "eager")
    assert [b.attn.backend for b in stack] == ["eager", "eager"]
    assert other.backend == "auto"
