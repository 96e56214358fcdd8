"""One pass of an encoder with all that the losses read off it: tokens, dense features, queries and keys."""

from typing import NamedTuple, Optional, cast

from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.models.attention import VALUE_MODES, DenseAttention, DenseEvaAttention
from rsc_seg.models.encoder import DenseEncoder, rotary_positions


class QueriesKeys(NamedTuple):
    """Queries and keys of the patches as maps of width D, heads one after the other."""

    queries: Float[Tensor, "B D h w"]
    keys: Float[Tensor, "B D h w"]
    heads: int


class EncoderPass(NamedTuple):
    """Tokens of the last block before the final norm, dense features, and what the attention of a block is made of."""

    tokens: Float[Tensor, "B N D"]
    dense: Float[Tensor, "B E h w"]
    attention: Optional[QueriesKeys] = None


def attending_block(encoder: DenseEncoder) -> int:
    """The last block (from 0) whose attention has a say in dense features: in a value mode, the last but one.

    UserError for an encoder whose only block passes values.
    """
    block = encoder.depth - (2 if encoder.last_block in VALUE_MODES else 1)
    if block < 0:
        raise UserError(f"{encoder.name} of one block has no attention in its dense features; take more blocks.")
    return block


def _queries_keys(encoder: DenseEncoder, number: int, tokens: Tensor, grid: tuple[int, int]) -> QueriesKeys:
    block = encoder.trunk.blocks[number]
    attention = cast(DenseAttention | DenseEvaAttention, block.attn)
    normed = cast(nn.Module, block.norm1)(tokens)
    q, k, _ = attention.queries_keys_values(normed, rotary_positions(encoder.rope, grid))
    # (B, N, L, K) -> (B, N*K, h, w), patches only
    patches = [t[:, :, encoder.num_prefix_tokens :].transpose(2, 3).flatten(1, 2).unflatten(2, grid) for t in (q, k)]
    return QueriesKeys(patches[0], patches[1], q.shape[1])


def attention_of(encoder: DenseEncoder, images: Float[Tensor, "B 3 H W"]) -> QueriesKeys:
    """Queries and keys of the last block that attends, and nothing of what comes behind it."""
    grid, block = encoder.grid(images.shape[-2], images.shape[-1]), attending_block(encoder)
    return _queries_keys(encoder, block, encoder.run(encoder.embed(images), grid, 0, block), grid)


def encoder_pass(
    encoder: DenseEncoder, images: Float[Tensor, "B 3 H W"], *, with_attention: bool = False
) -> EncoderPass:
    """Runs the encoder once; `with_attention` keeps the queries and keys of the last block that attends."""
    grid = encoder.grid(images.shape[-2], images.shape[-1])
    if not with_attention:
        tokens = encoder.tokens(images)
        return EncoderPass(tokens, encoder.finish(tokens, grid))
    block = attending_block(encoder)
    before = encoder.run(encoder.embed(images), grid, 0, block)
    attention = _queries_keys(encoder, block, before, grid)
    tokens = encoder.run(before, grid, block)
    return EncoderPass(tokens, encoder.finish(tokens, grid), attention)


def patch_norms(encoder: DenseEncoder, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B L"]:
    """Lengths of patch tokens, in float32, without gradient."""
    return tokens.detach()[:, encoder.num_prefix_tokens :].float().norm(dim=-1)
