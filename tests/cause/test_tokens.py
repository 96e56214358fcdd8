"""Tokens of views: on the fly and from the cache are the same, and a cache is never another checkpoint's."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsc_seg.cause.labels import OpenedSet, open_cause_set
from rsc_seg.cause.tokens import LiveTokens, cache_gb, encoder_digest, input_batch, open_tokens
from rsc_seg.cause.views import signed, train_views, val_views
from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from tests.cause.trees import plain_tree
from tests.training.helpers import tiny_encoder


@pytest.fixture
def opened(tmp_path: Path) -> OpenedSet:
    return open_cause_set("plain", str(plain_tree(tmp_path / "set", 3)), "train")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the batches that the encoder sees."""
    seen: list[int] = []
    dense = DenseEncoder.dense

    def counted(self: DenseEncoder, x: Tensor, positions: Tensor | None = None) -> Tensor:
        seen.append(len(x))
        return dense(self, x, positions)

    monkeypatch.setattr(DenseEncoder, "dense", counted)
    yield seen


def test_tokens_are_the_encoders_row_by_row(opened: OpenedSet) -> None:
    encoder, views = tiny_encoder(), train_views(opened, 42)
    source = open_tokens(encoder, views, None, batch_size=2)
    assert len(source) == 15 and source.grid == (3, 3) and source.dim == 64
    tokens = source.tokens([4, 0, 7])
    picture = torch.from_numpy(views.pixels(0).copy()).permute(2, 0, 1) / 255
    picture = (picture - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    with torch.no_grad():
        expected = encoder.dense(picture[None])[0]
    torch.testing.assert_close(tokens[1].T.unflatten(1, (3, 3)), expected, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 9, 64) and tokens.dtype == torch.float32 and not tokens.requires_grad
    (tokens * torch.ones(64, requires_grad=True)).sum().backward()  # a head can train on them
    labels = source.labels([4, 0])
    assert labels.dtype == torch.int16 and labels.shape == (2, 42, 42)
    assert np.array_equal(labels[0].numpy(), signed(views.labels(4))) and int(labels.min()) == -1


@pytest.mark.parametrize("name", ["dinov2_tiny14", "dinov2_vits14_reg", "clip_vitb16"])
def test_any_number_of_prefix_tokens_and_any_grid(opened: OpenedSet, name: str) -> None:
    encoder, _ = build_backbone(BackboneConfig(name=name, weights="none", depth=1))
    side = 2 * encoder.patch_size
    source = LiveTokens(encoder, val_views(opened, side))
    assert source.grid == (2, 2) and source.tokens([0]).shape == (1, 4, encoder.out_dim)


def test_the_cache_gives_the_same_and_is_made_once(opened: OpenedSet, tmp_path: Path, passes: list[int]) -> None:
    encoder, views, cache = tiny_encoder(), train_views(opened, 42), tmp_path / "cache"
    live = open_tokens(encoder, views, None)
    source = open_tokens(encoder, views, cache, batch_size=4)
    assert passes == [4, 4, 4, 3]
    expected = live.tokens(range(15))
    passes.clear()
    again = open_tokens(encoder, train_views(opened, 42), cache)
    for found in (source, again):
        torch.testing.assert_close(found.tokens(range(15)), expected.half().float(), rtol=2e-3, atol=1e-4)
        assert torch.equal(found.tokens([3, 3, 9]), found.tokens(range(15))[[3, 3, 9]])
        assert torch.equal(found.labels(range(15)), live.labels(range(15)))
        assert (len(found), found.grid, found.dim) == (15, (3, 3), 64)
    assert passes == []
    assert len(list(cache.glob("labels-*.npy"))) == 1
    assert cache_gb(encoder, views) == pytest.approx(15 * (9 * 64 * 2 + 42 * 42) / 1e9)


@pytest.mark.parametrize("left", [0, 20, 2000])
def test_damaged_files_are_made_again(
    opened: OpenedSet, tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, views, cache = tiny_encoder(), train_views(opened, 42), tmp_path / "cache"
    source = open_tokens(encoder, views, cache)
    tokens, labels = source.tokens(range(15)), source.labels(range(15))
    for path in (*cache.glob("labels-*.npy"), *cache.glob("*/tokens.npy")):
        path.write_bytes(path.read_bytes()[:left])
    with caplog.at_level(logging.WARNING, "rsc_seg"):
        again = open_tokens(encoder, views, cache)
        assert torch.equal(again.tokens(range(15)), tokens) and torch.equal(again.labels(range(15)), labels)
    assert "damaged feature cache" in caplog.text and "damaged label file" in caplog.text


def test_another_checkpoint_view_or_resolution_has_its_own_cache(
    opened: OpenedSet, tmp_path: Path, passes: list[int]
) -> None:
    views, cache = val_views(opened, 28), tmp_path / "cache"
    first = open_tokens(tiny_encoder(0), views, cache).tokens([0])
    other = open_tokens(tiny_encoder(1), views, cache).tokens([0])
    assert len(passes) == 2 and not torch.allclose(first, other, atol=0.1)
    open_tokens(tiny_encoder(0), val_views(opened, 28, flipped=True), cache)
    open_tokens(tiny_encoder(0), val_views(opened, 42), cache)
    open_tokens(tiny_encoder(0), views, cache, dtype="float32")
    assert len(passes) == 5
    assert torch.equal(open_tokens(tiny_encoder(0), views, cache).tokens([0]), first)
    assert len(passes) == 5
    assert encoder_digest(tiny_encoder(0)) == encoder_digest(tiny_encoder(0)) != encoder_digest(tiny_encoder(1))


def test_flipped_views_have_the_tokens_of_the_mirrored_input(opened: OpenedSet) -> None:
    encoder = tiny_encoder()
    plain, flipped = val_views(opened, 28), val_views(opened, 28, flipped=True)
    x = input_batch(plain, [1], encoder.mean, encoder.std)
    with torch.no_grad():
        expected = encoder.dense(x.flip(-1)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(LiveTokens(encoder, flipped).tokens([1]), expected, rtol=1e-4, atol=1e-4)


def test_a_failure_leaves_no_cache(opened: OpenedSet, tmp_path: Path) -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.trunk.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"tokens are not finite on train/images/0\.png"):
        open_tokens(encoder, val_views(opened, 28), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with torch.no_grad():
        encoder.trunk.norm.weight[0] = 1e6
    with pytest.raises(UserError, match="exceed float16; cache in float32"):
        open_tokens(encoder, val_views(opened, 28), tmp_path / "cache")
    with pytest.raises(UserError, match="needs multiples of 14"):
        open_tokens(encoder, val_views(opened, 30), None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="feature cache not written"):
        open_tokens(tiny_encoder(), val_views(opened, 28), tmp_path / "file")
