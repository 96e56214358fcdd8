"""DenseEncoder: the same numbers by every way in, plain timm's at the native size, any size, both last-block modes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, run_blocks, to_map, trainable_parameters
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.trunk import create_trunk

torch.set_num_threads(1)
Maker = Callable[..., DenseEncoder]
NAMES = ("dinov2_tiny14", "dinov2_tiny14_reg")
CLIP = ("clip_tiny16", "laion_tiny16", "evaclip_tiny16")


def images(height: int, width: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("name", NAMES + CLIP)
def test_native_size_equals_plain_timm(make_encoder: Maker, name: str) -> None:
    row = find_backbone(name)
    encoder, x = make_encoder(name, last_block="full"), images(row.native_size, row.native_size, 1)
    side = row.native_size // row.patch_size
    plain = create_trunk(row).eval()  # with timm's own attention module
    plain.load_state_dict(encoder.trunk.state_dict(), strict=True)
    with torch.no_grad():
        theirs = plain.forward_features(x)
        blocks = plain.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        close(encoder.dense(x), to_map(plain.head(theirs[:, encoder.num_prefix_tokens :]), (side, side)))
        close(encoder.cls(x), plain(x))
        for ours, reference in zip(encoder.intermediates(x, [1, 3]), blocks, strict=True):
            close(ours, reference)


@pytest.mark.parametrize("size", [(98, 98), (70, 126), (14, 14), (518, 28)])
@pytest.mark.parametrize("name", NAMES)
def test_antialias_equals_timm_at_any_size(make_encoder: Maker, name: str, size: tuple[int, int]) -> None:
    encoder, x = make_encoder(name, position_rule="antialias"), images(*size)
    with torch.no_grad():
        theirs = encoder.trunk.forward_features(x)
        close(encoder.dense(x).flatten(2).mT, theirs[:, encoder.num_prefix_tokens :])


@pytest.mark.parametrize("size", [(64, 64), (48, 112), (16, 96)])
@pytest.mark.parametrize("name", CLIP)
def test_clip_with_antialias_equals_timm_at_any_size(make_encoder: Maker, name: str, size: tuple[int, int]) -> None:
    encoder, x = make_encoder(name, position_rule="antialias", last_block="full"), images(*size)
    with torch.no_grad():
        theirs = encoder.trunk.forward_features(x)
        close(encoder.dense(x).flatten(2).mT, encoder.trunk.head(theirs[:, 1:]))


@pytest.mark.parametrize("mode", ["full", "value", "catseg"])
@pytest.mark.parametrize("name", NAMES + CLIP)
def test_all_ways_in_agree(make_encoder: Maker, name: str, mode: str) -> None:
    encoder = make_encoder(name, last_block=mode)
    x = images(5 * encoder.patch_size, 7 * encoder.patch_size)
    p, grid = encoder.num_prefix_tokens, (5, 7)
    dense = encoder.dense(x)
    assert dense.shape == (2, encoder.out_dim, *grid)
    assert encoder.out_dim == (32 if name in CLIP else 64)
    tokens = encoder.tokens(x)
    assert torch.equal(encoder.finish(tokens, grid), dense)
    assert torch.equal(encoder.intermediates(x, [4], norm=True)[0], dense)
    assert torch.equal(encoder.intermediates(x, [4])[0], to_map(tokens[:, p:], grid))
    for front in (1, 2, 3):
        early = encoder.early(x, front, taps=(front, 1))
        assert torch.equal(early.taps[:, 0], early.patches)
        assert torch.equal(early.taps[:, 1], encoder.intermediates(x, [1])[0])
        rest = encoder.split(4 - front)
        joined = torch.cat([early.prefix, early.patches.flatten(2).mT], dim=1)
        close(to_map(rest(joined, p, grid), grid), dense, 1e-6)


def test_value_mode_changes_the_last_block_only(make_encoder: Maker) -> None:
    full, value, x = make_encoder(), make_encoder(last_block="value"), images(56, 56)
    a, b = full.intermediates(x, [1, 2, 3, 4]), value.intermediates(x, [1, 2, 3, 4])
    assert all(torch.equal(i, j) for i, j in zip(a[:3], b[:3], strict=True))
    assert (a[3] - b[3]).abs().max() > 0.1
    assert torch.equal(full.cls(x), value.cls(x))  # [CLS] attends in full whatever the dense mode


@pytest.mark.parametrize("name", CLIP)
def test_dense_modes_of_clip_by_their_definition(make_encoder: Maker, name: str) -> None:
    """The last block written out: values through inner norm and output projection, residual, FFN, norm, projection."""
    modes = {mode: make_encoder(name, last_block=mode) for mode in ("full", "value", "catseg")}
    x, trunk = images(80, 48), modes["value"].trunk
    block, tokens = trunk.blocks[-1], modes["value"].run(modes["value"].embed(x), (5, 3), 0, 3)
    normed, attn = block.norm1(tokens), block.attn
    values = attn.v_proj(normed) if hasattr(attn, "v_proj") else attn.qkv(normed).chunk(3, dim=2)[2]
    mixed = attn.proj(attn.norm(values))
    for mode, residual in (("value", tokens), ("catseg", tokens[:, :1])):
        z = residual + mixed
        z = trunk.head(trunk.norm(z + block.mlp(block.norm2(z))))[:, 1:]
        close(modes[mode].dense(x).flatten(2).mT, z)
    assert (modes["full"].dense(x) - modes["value"].dense(x)).abs().max() > 1e-2
    assert torch.equal(modes["full"].cls(x), modes["catseg"].cls(x))


def test_quick_gelu_is_not_gelu(make_encoder: Maker) -> None:
    quick, plain, x = make_encoder("clip_tiny16"), make_encoder("laion_tiny16"), images(64, 64)
    plain.trunk.load_state_dict(quick.trunk.state_dict())
    assert (quick.dense(x) - plain.dense(x)).abs().max() > 1e-3


def test_rotary_positions_follow_the_grid(make_encoder: Maker) -> None:
    """EVA without learned positions still tells places apart."""
    encoder, x = make_encoder("evaclip_tiny16", last_block="full"), images(64, 96)
    encoder.trunk.pos_embed.zero_()
    a, b = encoder.dense(x), encoder.dense(x.roll(32, dims=3))
    assert (a.roll(2, dims=3) - b).abs().max() > 1e-3
    encoder.trunk.rope = None  # then a shift of whole tokens is only a permutation
    close(encoder.dense(x).roll(2, dims=3), encoder.dense(x.roll(32, dims=3)))


@pytest.mark.parametrize("mode", ["value", "catseg", "full"])
@pytest.mark.parametrize("name", CLIP)
def test_every_parameter_said_to_train_gets_a_gradient(make_encoder: Maker, name: str, mode: str) -> None:
    encoder = make_encoder(name, last_block=mode)
    names = trainable_parameters(encoder, "blocks")
    encoder.dense(images(64, 48)).square().sum().backward()
    grads = {n: p.grad for n, p in encoder.trunk.named_parameters()}
    assert all(grads[n] is not None and grads[n].abs().sum() > 0 for n in names)
    idle = {"blocks.3.attn.q_proj.weight", "blocks.3.attn.q_proj.bias", "blocks.3.attn.k_proj.weight"}
    everything = {n for n in grads if n.startswith("blocks.")}
    assert everything - set(names) == (idle if name.startswith("eva") and mode != "full" else set())


@pytest.mark.parametrize(("name", "trains"), [("clip_tiny16", False), ("evaclip_tiny16", True)])
def test_the_projections_bias_trains_only_where_the_model_has_one(make_encoder: Maker, name: str, trains: bool) -> None:
    assert ("head.bias" in trainable_parameters(make_encoder(name), "all")) == trains
    assert "head.weight" in trainable_parameters(make_encoder(name), "all")


@pytest.mark.parametrize("name", CLIP)
def test_gradient_checkpointing_changes_nothing_for_clip(make_encoder: Maker, name: str) -> None:
    found = []
    for checkpointed in (False, True):
        encoder = make_encoder(name, gradient_checkpointing=checkpointed)
        trainable_parameters(encoder, "blocks")
        encoder.dense(images(48, 64)).square().sum().backward()
        found.append([p.grad for p in encoder.trunk.blocks.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-6)


def test_intermediates_keep_the_order_asked_for_repeats_and_norm(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images(56, 56)
    three, one, again = encoder.intermediates(x, [3, 1, 3])
    assert torch.equal(three, again) and not torch.equal(three, one)
    normed = encoder.intermediates(x, [3], norm=True)[0]
    close(encoder.trunk.norm(three.flatten(2).mT), normed.flatten(2).mT, 1e-6)


@pytest.mark.parametrize("number", [0, 5, -1])
def test_blocks_that_do_not_exist_are_refused(make_encoder: Maker, number: int) -> None:
    with pytest.raises(UserError, match=f"block {number} of dinov2_tiny14: it has blocks 1 to 4"):
        make_encoder().intermediates(images(56, 56), [1, number])


@pytest.mark.parametrize("blocks", [0, 4, 9])
def test_split_leaves_something_on_both_sides(make_encoder: Maker, blocks: int) -> None:
    with pytest.raises(UserError, match=f"the last {blocks} of 4 blocks of dinov2_tiny14: 1 to 3"):
        make_encoder().split(blocks)


def test_split_shares_parameters(make_encoder: Maker) -> None:
    encoder = make_encoder()
    own = {id(p) for p in encoder.parameters()}
    assert {id(p) for p in encoder.split(2).parameters()} <= own


@pytest.mark.parametrize(
    ("size", "nearest"), [((224, 225), "224x224"), ((100, 50), "98x56"), ((7, 14), "14x14"), ((0, 28), "14x28")]
)
def test_other_sizes_are_refused_with_the_nearest_valid_one(
    make_encoder: Maker, size: tuple[int, int], nearest: str
) -> None:
    message = rf"{size[0]}x{size[1]} pixels: dinov2_tiny14 needs multiples of 14 \(nearest: {nearest}\)"
    with pytest.raises(UserError, match=message):
        make_encoder().dense(torch.zeros(1, 3, *size))


def test_registers_matter_and_are_not_dense_tokens(make_encoder: Maker) -> None:
    encoder, x = make_encoder("dinov2_tiny14_reg"), images(56, 70)
    before = encoder.dense(x)
    assert before.shape[2:] == (4, 5)
    assert encoder.early(x, 2).prefix.shape == (2, 5, 64)
    with torch.no_grad():
        encoder.trunk.reg_token.neg_()
    assert (encoder.dense(x) - before).abs().max() > 1e-3


def test_images_of_a_batch_do_not_see_each_other(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images(56, 56)
    close(encoder.dense(x)[1:], encoder.dense(x[1:]))


def test_value_mode_gives_no_gradient_to_queries_and_keys_of_the_last_block(make_encoder: Maker) -> None:
    encoder = make_encoder(last_block="value")
    trainable_parameters(encoder, "blocks")
    encoder.dense(images(56, 56)).square().sum().backward()
    queries, keys, values = encoder.trunk.blocks[3].attn.qkv.weight.grad.chunk(3)
    assert (queries == 0).all() and (keys == 0).all() and (values != 0).any()
    assert all((part != 0).any() for part in encoder.trunk.blocks[2].attn.qkv.weight.grad.chunk(3))


@pytest.mark.parametrize("mode", ["full", "value"])
def test_gradient_checkpointing_changes_no_gradient(make_encoder: Maker, mode: str) -> None:
    grads, x = [], images(56, 56)
    for checkpointed in (False, True):
        encoder = make_encoder(last_block=mode, gradient_checkpointing=checkpointed)
        trainable_parameters(encoder, "all")
        (encoder.dense(x).square().mean() + encoder.cls(x).square().mean()).backward()
        grads.append({name: p.grad for name, p in encoder.trunk.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 50
    for name, grad in grads[0].items():
        close(grads[1][name], grad, 1e-6)


def test_gradient_checkpointing_runs_blocks_again_in_backward(make_encoder: Maker) -> None:
    encoder = make_encoder(gradient_checkpointing=True)
    trainable_parameters(encoder, "all")
    calls = []
    encoder.trunk.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    out = encoder.dense(images(28, 28))
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("blocks", ("blocks.",)),
        ("blocks_norm", ("blocks.", "norm.")),
        ("last_1", ("blocks.3.",)),
        ("last_4", ("blocks.",)),
        ("all", ("",)),
    ],
)
def test_freezing_policies(make_encoder: Maker, policy: str, wanted: tuple[str, ...]) -> None:
    encoder = make_encoder()
    assert not any(p.requires_grad for p in encoder.parameters())
    names = trainable_parameters(encoder, policy)
    everything = [name for name, _ in encoder.trunk.named_parameters()]
    assert names == [name for name in everything if name.startswith(wanted)]
    assert names == [name for name, p in encoder.trunk.named_parameters() if p.requires_grad]
    assert trainable_parameters(encoder, "none") == []
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("policy", ["last_0", "last_5", "last_x", "block", ""])
def test_unknown_policies_are_refused(make_encoder: Maker, policy: str) -> None:
    with pytest.raises(UserError, match=f"trainable={policy}: must be blocks, blocks_norm, last_1 ... last_4, all"):
        trainable_parameters(make_encoder(), policy)


def test_depth_keeps_the_first_blocks_and_the_final_norm(make_encoder: Maker) -> None:
    whole, x = make_encoder(), images(56, 56)
    short = make_encoder(depth=2)
    names = short.trunk.state_dict().keys()
    short.trunk.load_state_dict({name: t for name, t in whole.trunk.state_dict().items() if name in names})
    assert short.depth == 2
    close(short.dense(x), whole.intermediates(x, [2], norm=True)[0], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_position_rule_matters_at_other_sizes_only(make_encoder: Maker, name: str) -> None:
    encoders = [make_encoder(name, position_rule=rule) for rule in ("antialias", "plain", "dinov2")]
    for size, differ in ((518, False), (224, True)):
        x = images(size, size, 1)
        with torch.no_grad():
            a, b, c = (e.intermediates(x, [1])[0] for e in encoders)
        for one, other in ((a, b), (a, c), (b, c)):
            assert ((one - other).abs().max() > 1e-2) if differ else torch.equal(one, other)


def test_positions_of_another_place_replace_the_images_own(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images(56, 56)
    own = encoder.position_map((4, 4))[None].expand(2, -1, -1, -1)
    assert torch.equal(encoder.dense(x, own), encoder.dense(x))
    assert (encoder.dense(x, own.flip(3)) - encoder.dense(x)).abs().max() > 1e-2


def test_attention_backends_agree(make_encoder: Maker) -> None:
    x = images(98, 70)
    close(make_encoder(attention="eager").dense(x), make_encoder(attention="sdpa").dense(x))


def test_wrong_last_block_and_trunks_without_our_attention(make_encoder: Maker) -> None:
    row = find_backbone("dinov2_tiny14")
    trunk = create_trunk(row)
    with pytest.raises(UserError, match="last_block=half: must be one of full, value, catseg"):
        DenseEncoder(trunk, row, position_rule="plain", last_block="half")
    with pytest.raises(TypeError, match="dense attention"):
        run_blocks(list(trunk.blocks), torch.zeros(1, 5, 64), "value")
    trunk.cls_token = None
    with pytest.raises(TypeError, match="a \\[CLS\\] token"):
        DenseEncoder(trunk, row, position_rule="plain", last_block="full").dense(images(28, 28))
