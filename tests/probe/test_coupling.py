"""Coupling ratio over pairs of images."""

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.probe.coupling import coupling_probe, sample_pairs
from tests.probe.sets import SETTINGS, BlockImages, colour_tokens


def leaky_tokens(images: Tensor) -> Tensor:
    """Colours with the mean of the whole picture mixed in: tokens see their context."""
    tokens = colour_tokens(images)
    return tokens + 3 * tokens.mean((2, 3), keepdim=True) + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)


def test_pairs_are_seeded_and_use_no_image_twice() -> None:
    pairs = sample_pairs(20, 8, seed=1)
    assert len(pairs) == 8
    assert len({i for pair in pairs for i in pair}) == 16
    assert pairs == sample_pairs(20, 8, seed=1) != sample_pairs(20, 8, seed=2)
    assert len(sample_pairs(7, 30, seed=0)) == 3


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="at least two images, got 1"):
        sample_pairs(1, 4, seed=0)


def test_encoder_without_context_has_ratio_one() -> None:
    found = coupling_probe(colour_tokens, colour_tokens, BlockImages(9), SETTINGS)
    assert found["pairs"] == 4
    assert found["median"] == pytest.approx(1.0, abs=1e-5)
    assert found["ratio_of_means"] == pytest.approx(1.0, abs=1e-5)


def test_context_raises_the_ratio_and_a_pair_function_without_context_does_not() -> None:
    def one_colour(i: int) -> Tensor:
        return torch.full((4, 6), i % 3).numpy()

    images = BlockImages(8)
    for i in range(8):
        images.blocks[i] = one_colour(i)
    leaky = coupling_probe(leaky_tokens, leaky_tokens, images, SETTINGS)
    assert leaky["mean_joint"] > leaky["mean_alone"]
    assert leaky["ratio_of_means"] > 1.1

    def halves(joined: Tensor) -> Tensor:
        return torch.cat([leaky_tokens(half) for half in joined.chunk(2, dim=3)], dim=3)

    apart = coupling_probe(leaky_tokens, halves, images, SETTINGS)
    assert apart["ratio_of_means"] == pytest.approx(1.0, abs=1e-5)


def test_map_of_the_wrong_width_is_named() -> None:
    with pytest.raises(UserError, match=r"joined image gave a map \(1, 3, 4, 6\)"):
        coupling_probe(colour_tokens, lambda x: colour_tokens(x)[..., :6], BlockImages(4), SETTINGS)
