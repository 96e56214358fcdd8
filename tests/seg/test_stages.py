"""Each stage of the aggregator against the plain formula that its shortcut stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.seg.aggregator import ABSENT, ClassLogits, cost_volume
from rsc_seg.seg.classes import ClassBlock
from rsc_seg.seg.decoder import DoubleConv
from rsc_seg.seg.loss import segmentation_loss
from rsc_seg.seg.spatial import WindowAttention, Windows
from rsc_seg.seg.volume import by_chunks

torch.manual_seed(0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(6, 6), (5, 8), (7, 12), (24, 24)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_come_back_in_place(grid: tuple[int, int], shifted: bool) -> None:
    windows = Windows.of(grid, 4, shifted)
    x = randn(2, *grid, 3)
    cut = windows.split(x)
    assert cut.shape[2] == windows.side**2
    assert torch.equal(windows.join(cut), x)


@pytest.mark.parametrize(("grid", "side"), [((6, 6), 3), ((5, 8), 4), ((3, 4), 5), ((7, 9), 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_is_attention_among_the_tokens_of_a_window(
    grid: tuple[int, int], side: int, shifted: bool
) -> None:
    windows, (h, w) = Windows.of(grid, side, shifted), grid
    layer = WindowAttention(8, 8, 2)
    x, guidance = randn(2, 3, h, w, 8), randn(2, h, w, 8, seed=1)
    with torch.no_grad():
        share = windows.split(layer.of_guidance(guidance))
        cut = windows.split(x.flatten(0, 1)).unflatten(0, (2, 3))
        found = windows.join(layer(cut, share, windows)).unflatten(0, (2, 3))
        both = torch.cat([x, guidance[:, None].expand(-1, 3, -1, -1, -1)], dim=-1)
        q, k, v = (part.unflatten(-1, (2, 4)).flatten(2, 3) for part in (layer.q(both), layer.k(both), layer.v(x)))
        bias = torch.zeros(h * w, h * w)
        for a in range(h * w):
            for b in range(h * w):
                rolled = [((p // w - windows.shift) % h, (p % w - windows.shift) % w) for p in (a, b)]
                same = all(rolled[0][i] // windows.side == rolled[1][i] // windows.side for i in (0, 1))
                # those that rolling took around the border
                zones = [(p // w < windows.shift, p % w < windows.shift) for p in (a, b)]
                bias[a, b] = float("-inf") if not same else 0.0 if zones[0] == zones[1] else -100.0
        scores = torch.einsum("btqnk,btpnk->btnqp", q, k) / 2 + bias
        mixed = torch.einsum("btnqp,btpnk->btqnk", scores.softmax(-1), v)
        wanted = layer.proj(mixed.flatten(3)).unflatten(2, (h, w))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("classes", "length"), [(5, 12), (12, 12), (5, 0)])
@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("doubled", [True, False])
def test_class_attention_with_padding_written_out(classes: int, length: int, pool: int, doubled: bool) -> None:
    layer = ClassBlock(8, 8, 2, length=length, doubled_identity=doubled)
    if length:
        layer.padding_tokens.data.normal_()
        layer.padding_guidance.data.normal_()
    x, guidance = randn(2, classes, 6, 7, 8), randn(2, classes, 8, seed=1)
    with torch.no_grad():
        found = layer(x, guidance, pool=pool, chunk=2)
        pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), pool)
        tokens = pooled.permute(0, 2, 3, 1).unflatten(0, (2, classes))
        h, w = tokens.shape[2:4]
        text = guidance[:, :, None, None].expand(-1, -1, h, w, -1)
        extra = max(0, length - classes)
        if extra:
            tokens = torch.cat([tokens, layer.padding_tokens[..., None, None, :].expand(2, extra, h, w, 8)], dim=1)
            text = torch.cat([text, layer.padding_guidance[..., None, None, :].expand(2, extra, h, w, 8)], dim=1)
        normed = layer.norm1(tokens)
        a = layer.attention
        both = torch.cat([normed, text], dim=-1)
        q, k, v = (part.unflatten(-1, (2, 4)) for part in (a.q(both), a.k(both), a.v(normed)))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = torch.einsum("bthwnk,bshwnk->bhwnts", q, k)
        mixed = torch.einsum("bhwnts,bshwnk->bthwnk", weights, v)
        mixed = mixed / (weights.sum(-1).permute(0, 4, 1, 2, 3)[..., None] + 1e-6)
        out = tokens + mixed.flatten(-2)
        out = (out + layer.MLP(layer.norm2(out)))[:, :classes]
        if not doubled:
            out = out - tokens[:, :classes]
        maps = out.flatten(0, 1).permute(0, 3, 1, 2)
        grown = F.interpolate(maps, size=(6, 7), mode="bilinear", align_corners=True)
        wanted = x + grown.permute(0, 2, 3, 1).unflatten(0, (2, classes))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_guidance_of_the_decoder_enters_as_if_joined() -> None:
    layer = DoubleConv(10, 16)
    x, guidance = randn(6, 7, 8, 8), randn(2, 3, 8, 8, seed=1)
    with torch.no_grad():
        found = layer(x, layer.of_guidance(guidance))
        wanted = layer.double_conv(torch.cat([x, guidance.repeat_interleave(3, dim=0)], dim=1))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_chunks_without_gradients_are_bounded_and_joined_in_place() -> None:
    seen: list[int] = []

    def step(part: Tensor) -> Tensor:
        seen.append(part.shape[1])
        return 2 * part[..., None]

    x = randn(2, 7, 3)
    with torch.no_grad():
        assert torch.equal(by_chunks(step, x, chunk=3, checkpointed=False), 2 * x[..., None])
    assert seen == [3, 3, 1]
    by_chunks(step, x.requires_grad_(), chunk=3, checkpointed=False)
    assert seen[3:] == [7]  # the backward pass keeps everything anyway


def test_cost_is_the_cosine_whatever_the_scale() -> None:
    dense, text = randn(2, 6, 3, 4), randn(5, 2, 6, seed=1)
    found = cost_volume(7 * dense, text[None])
    wanted = torch.einsum("behw,tpe->bpthw", F.normalize(dense, dim=1), F.normalize(text, dim=-1))
    assert found.shape == (2, 2, 5, 3, 4)
    torch.testing.assert_close(found, wanted)


def test_logits_of_kept_classes_by_number() -> None:
    values = torch.arange(8.0).view(2, 2, 2, 1)
    kept = ClassLogits(values, 6, torch.tensor([[4, 1], [1, 5]]))
    dense = kept.dense()
    assert torch.equal(dense[0, 4], values[0, 0])
    assert torch.equal(dense[1, 1], values[1, 0])
    assert (dense == ABSENT).sum() == 2 * 4 * 2
    assert kept.kept().tolist() == [1, 4, 5]
    assert torch.equal(kept.select(torch.tensor([5, 1])), dense[:, [5, 1]])
    assert torch.equal(ClassLogits(dense, 6).select(torch.tensor([3, 4])), dense[:, 3:5])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_loss_is_binary_cross_entropy_with_ignored_pixels_as_negatives(checkpointed: bool, kept: bool) -> None:
    values = (3 * randn(2, 5, 4, 4)).requires_grad_()
    classes = torch.tensor([[0, 3, 1, 6, 2], [5, 4, 6, 0, 1]]) if kept else None
    logits = ClassLogits(values, 7 if kept else 5, classes)
    targets = torch.randint(0, logits.total, (2, 9, 11), generator=torch.Generator().manual_seed(1))
    targets[:, :2] = 255
    found = {
        rule: segmentation_loss(logits, targets, ignore=rule, chunk=2, checkpointed=checkpointed)
        for rule in ("negative", "mask")
    }
    z = F.interpolate(logits.dense(), size=(9, 11), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    valid = targets != 255
    hot = torch.zeros_like(z)
    hot[valid] = F.one_hot(targets[valid], logits.total).float()
    wanted = {
        "negative": F.binary_cross_entropy_with_logits(z, hot),
        "mask": F.binary_cross_entropy_with_logits(z[valid], hot[valid]),
    }
    for rule in wanted:
        torch.testing.assert_close(found[rule], wanted[rule], atol=1e-6, rtol=1e-6)
        ours, theirs = (torch.autograd.grad(loss[rule], values, retain_graph=True)[0] for loss in (found, wanted))
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-4)
