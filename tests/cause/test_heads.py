"""Heads against torch's own layers put together plainly, their names, dropout and moving averages."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.contrast import assign_codes
from rsc_seg.cause.heads import CauseModel, Decoder, MlpHead, TrHead, make_head
from rsc_seg.errors import UserError
from tests.cause.tiny import DIM, GRID, TinySource, tiny_codes

TOKENS = GRID[0] * GRID[1]
X = TinySource(3).held


def plain_reduce(head: MlpHead | Decoder, x: Tensor) -> Tensor:
    """As convolutions on maps of one column."""
    maps = x.transpose(1, 2)[..., None]
    return (head.f1(maps) + head.f2(maps))[..., 0].transpose(1, 2)


def plain_tr(head: TrHead, x: Tensor, codes: Tensor) -> Tensor:
    """The decoder with torch's attention on all tokens, queries, keys and values projected as usual."""
    tr, pos = head.tr, head.query_pos
    v = codes[assign_codes(x, codes)]

    def attend(layer: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = layer(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))[0]
        return out.transpose(0, 1)

    v = tr.norm1(v + attend(tr.self_attn, v + pos, v + pos, v))
    v = tr.norm2(v + attend(tr.multihead_attn, v + pos, x, x))
    v = x + tr.norm3(v + tr.linear2(F.relu(tr.linear1(v))))
    return plain_reduce(tr, v)


def stirred(head: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All parameters away from zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return head.eval()


def test_tr_is_the_decoder_of_torchs_own_layers_with_the_same_gradients() -> None:
    head, codes = stirred(make_head("tr", DIM, TOKENS, reduced=5)), tiny_codes()
    assert isinstance(head, TrHead)
    weight = torch.randn(3, TOKENS, 5, generator=torch.Generator().manual_seed(1))
    slopes = []
    for out in (head(X, assign_codes(X, codes), codes), plain_tr(head, X, codes)):
        head.zero_grad()
        (out * weight).sum().backward()
        slopes.append({n: p.grad for n, p in head.named_parameters()})
    assert torch.allclose(head(X, None, codes), plain_tr(head, X, codes), atol=2e-5)
    for name, slope in slopes[1].items():
        mine = slopes[0][name]
        assert slope is not None and mine is not None
        assert torch.allclose(mine, slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()) + 2e-4), name


def test_mlp_is_two_convolutions() -> None:
    head = stirred(make_head("mlp", DIM, TOKENS, reduced=5))
    assert isinstance(head, MlpHead)
    assert torch.allclose(head(X), plain_reduce(head, X), atol=1e-5)
    assert head(X[:, :7]).shape == (3, 7, 5)


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_asked_for_some_positions_it_gives_what_all_of_them_would(kind: str) -> None:
    head, codes = stirred(make_head(kind, DIM, TOKENS, reduced=5)), tiny_codes()
    at = torch.tensor([[0, 9, 63], [5, 5, 7], [1, 2, 3]])
    some, everything = head(X, None, codes, at=at), head(X, None, codes)
    assert torch.allclose(some, everything.gather(1, at[..., None].expand(-1, -1, 5)), atol=1e-5)
    # and the gradient of a loss on them
    slopes = []
    for out in (some, everything.gather(1, at[..., None].expand(-1, -1, 5))):
        head.zero_grad()
        out.square().sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None]))
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-3, atol=1e-4)


def test_dropout_stands_where_the_official_code_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(self: Decoder, x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    monkeypatch.setattr(Decoder, "drop", watched)
    make_head("tr", DIM, TOKENS, reduced=5)(X, None, tiny_codes())
    attention, width = (3, TOKENS, TOKENS), (3, TOKENS, DIM)
    expected = [attention, width, attention, width, (3, TOKENS, 2048), width, width, width]
    assert shapes == expected  # self-attention, cross-attention, feed-forward, then once before f2 and once before f1


def test_dropped_attention_scales_the_value_bias_too(monkeypatch: pytest.MonkeyPatch) -> None:
    head = stirred(make_head("tr", DIM, TOKENS, reduced=5))
    assert isinstance(head, TrHead)
    mask = 0.5 + torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Decoder, "drop", lambda self, x: x * mask if x.shape[-1] == TOKENS else x)
    query = torch.randn(3, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    layer = head.tr.multihead_attn
    q, k, v = (
        F.linear(t, w, b)
        for t, w, b in zip((query, X, X), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    )
    weights = (q @ k.transpose(1, 2) / DIM**0.5).softmax(-1) * mask
    assert torch.allclose(head.tr._look_at_tokens(query, X), layer.out_proj(weights @ v), atol=1e-5)


def test_a_tenth_is_dropped_in_training_and_nothing_afterwards() -> None:
    head = make_head("mlp", DIM, TOKENS)
    ones = torch.ones(100, 1000)
    dropped = head.train().drop(ones) if isinstance(head, MlpHead) else ones
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert 0.095 < float((dropped == 0).float().mean()) < 0.105
    assert torch.equal(head.eval()(X), head(X)) and not torch.equal(head.train()(X), head(X))


def test_parameters_have_the_official_names_and_sizes() -> None:
    tr = CauseModel("tr", torch.zeros(2048, 384), (23, 23), 27).state_dict()
    shapes = {name.removeprefix("head."): tuple(t.shape) for name, t in tr.items() if name.startswith("head.")}
    assert shapes["query_pos"] == (529, 384)
    assert shapes["tr.self_attn.in_proj_weight"] == shapes["tr.multihead_attn.in_proj_weight"] == (1152, 384)
    assert shapes["tr.linear1.weight"] == (2048, 384) and shapes["tr.linear2.weight"] == (384, 2048)
    assert (shapes["tr.f1.weight"], shapes["tr.f2.0.weight"]) == ((90, 384, 1, 1), (384, 384, 1, 1))
    assert tuple(tr["linear.f.weight"].shape) == (27, 90, 1, 1) and "codes" not in tr
    assert len(tr) == 2 * 25 + 6
    assert sum(t.numel() for t in tr.values()) == 6_736_385
    mlp = CauseModel("mlp", torch.zeros(2048, 384), (16, 16), 27).state_dict()
    assert sorted(n for n in mlp if n.startswith("head.")) == [
        f"head.{layer}.{part}" for layer in ("f1", "f2.0", "f2.2") for part in ("bias", "weight")
    ]


def test_features_are_maps_of_the_teacher() -> None:
    model = CauseModel("mlp", tiny_codes(), GRID, 4, reduced=5, projection=6).eval()
    maps = model.features(X)
    assert maps.shape == (3, 5, *GRID)
    assert torch.equal(maps[1, :, 2, 3], model.head_ema(X)[1, 2 * GRID[1] + 3])
    assert model.features(X[:, :6], (2, 3)).shape == (3, 5, 2, 3)


def test_the_teacher_is_a_moving_average() -> None:
    model = CauseModel("mlp", tiny_codes(), GRID, 4, reduced=5, projection=6)
    model.start_teacher()
    assert all(torch.equal(t, s) for t, s in model._pairs())
    assert not any(t.requires_grad for t, _ in model._pairs()) and all(s.requires_grad for _, s in model._pairs())
    before = [t.clone() for t, _ in model._pairs()]
    for _, student in model._pairs():
        student.data += 1
    model.follow(0.99)
    assert all(torch.allclose(t, b + 0.01, atol=1e-6) for (t, _), b in zip(model._pairs(), before, strict=True))


def test_another_number_of_tokens_is_refused_by_tr_alone() -> None:
    head = make_head("tr", DIM, TOKENS)
    with pytest.raises(UserError, match="made for 64 tokens an image and got 60; use the resolution"):
        head(X[:, :60], None, tiny_codes())
    with pytest.raises(UserError, match="--head=tx: must be one of tr, mlp"):
        make_head("tx", DIM, TOKENS)
