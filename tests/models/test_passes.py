"""One pass of an encoder equals its parts, and its queries and keys are those of its attention."""

import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.models.passes import attending_block, attention_of, encoder_pass, patch_norms
from tests.models.conftest import EncoderMaker

NAMES = ("dinov2_tiny14", "dinov2_tiny14_reg", "clip_tiny16", "evaclip_tiny16")


def pictures(patch: int) -> torch.Tensor:
    return torch.randn(2, 3, 4 * patch, 5 * patch, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_attention", [False, True])
def test_a_pass_gives_what_the_encoder_gives(make_encoder: EncoderMaker, name: str, with_attention: bool) -> None:
    encoder = make_encoder(name).eval()
    x = pictures(encoder.patch_size)
    with torch.no_grad():
        seen = encoder_pass(encoder, x, with_attention=with_attention)
        assert torch.equal(seen.tokens, encoder.tokens(x)) and torch.equal(seen.dense, encoder.dense(x))
        assert (seen.attention is not None) == with_attention
        if seen.attention is not None:
            alone = attention_of(encoder, x)
            assert torch.equal(seen.attention.queries, alone.queries) and alone.heads == 4
            assert torch.equal(seen.attention.keys, alone.keys)
        norms = encoder.tokens(x)[:, encoder.num_prefix_tokens :].norm(dim=-1)
    torch.testing.assert_close(patch_norms(encoder, seen.tokens), norms)


@pytest.mark.parametrize("name", NAMES)
def test_queries_and_keys_make_the_attention(make_encoder: EncoderMaker, name: str) -> None:
    encoder = make_encoder(name).eval()
    x, p = pictures(encoder.patch_size), encoder.num_prefix_tokens
    number, seen = attending_block(encoder), []
    block = encoder.trunk.blocks[number]
    block.attn.backend = "eager"
    softmax = torch.Tensor.softmax

    def noted(scores: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(scores)
        return softmax(scores, dim)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        made = attention_of(encoder, x)
        patch.setattr(torch.Tensor, "softmax", noted)
        encoder.tokens(x)
    (scores,) = seen  # of the one eager block
    # (B, N*K, h, w) -> (B, N, L, K)
    q, k = (maps.flatten(2).unflatten(1, (made.heads, -1)).transpose(2, 3) for maps in (made.queries, made.keys))
    torch.testing.assert_close(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, scores[:, :, p:, p:], atol=1e-5, rtol=1e-5)


def test_an_encoder_of_one_block_in_value_mode_attends_nowhere(make_encoder: EncoderMaker) -> None:
    encoder = make_encoder("clip_tiny16")
    encoder.trunk.blocks = encoder.trunk.blocks[:1]
    assert encoder.depth == 1
    with pytest.raises(UserError, match="one block has no attention"):
        attending_block(encoder)
