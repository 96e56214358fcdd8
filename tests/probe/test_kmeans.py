"""Spherical k-means on tokens whose clusters are known."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.probe.features import LabelledTokens, extract_tokens, token_labels
from rsc_seg.probe.kmeans import kmeans_probe, plus_plus_init, spherical_kmeans
from tests.probe.sets import SETTINGS, BlockImages, colour_tokens


def directions(per_cluster: int = 60, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = torch.arange(4).repeat_interleave(per_cluster)
    tokens = torch.eye(4, 8)[names] + noise * torch.randn(len(names), 8, generator=generator)
    return tokens * torch.rand(len(names), 1, generator=generator).add(0.1), names  # lengths must not matter


def test_recovers_clusters_whatever_the_token_lengths() -> None:
    tokens, names = directions()
    found = spherical_kmeans(tokens, 4, seed=0)
    table = F.one_hot(names).T @ F.one_hot(found.assignment, 4)
    assert table.max(1).values.tolist() == [60] * 4
    assert found.centroids.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_result_is_a_fixed_point() -> None:
    tokens, _ = directions(noise=0.6)
    found = spherical_kmeans(tokens, 5, seed=1)
    unit = F.normalize(tokens, dim=1)
    assert (unit @ found.centroids.T).argmax(1).tolist() == found.assignment.tolist()
    means = torch.stack([unit[found.assignment == k].mean(0) for k in range(5)])
    torch.testing.assert_close(F.normalize(means, dim=1), found.centroids)
    assert found.cohesion == pytest.approx((unit @ found.centroids.T).max(1).values.mean().item())


def test_seed_decides_and_nothing_else() -> None:
    tokens, _ = directions(noise=0.6)
    a, b, c = (spherical_kmeans(tokens, 6, seed=seed).centroids for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_empty_clusters_are_seeded_again() -> None:
    tokens, _ = directions()
    start = torch.cat([torch.eye(4, 8)[:1], -torch.ones(3, 8)])  # three centroids that no token is nearest to
    found = spherical_kmeans(tokens, 4, seed=0, init=start)
    sizes = torch.bincount(found.assignment, minlength=4)
    assert sizes.min() > 0
    assert found.centroids.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_fewer_directions_than_clusters_end() -> None:
    found = spherical_kmeans(torch.eye(2).repeat(10, 1), 4, seed=0, max_iterations=20)
    assert found.centroids.isfinite().all()
    assert found.cohesion == pytest.approx(1.0)


def test_plus_plus_prefers_far_tokens() -> None:
    unit = torch.cat([torch.eye(3)[:1].repeat(1000, 1), torch.eye(3)[1:]])
    for seed in range(5):
        chosen = plus_plus_init(unit, 3, torch.Generator().manual_seed(seed))
        assert sorted(chosen.argmax(1).tolist()) == [0, 1, 2]  # equal tokens are never drawn twice


def test_too_few_tokens_are_named() -> None:
    with pytest.raises(UserError, match="at least 3 tokens, got 2"):
        spherical_kmeans(torch.eye(2), 3, seed=0)


def labelled(count: int, seed: int) -> LabelledTokens:
    data = BlockImages(count, seed)
    features = extract_tokens(colour_tokens, data, SETTINGS)
    return LabelledTokens(features, token_labels(data, features.grid, 1.0))


def test_probe_finds_the_colours() -> None:
    train, val = labelled(8, 0), labelled(5, 1)
    exact = kmeans_probe(train, val, 3, SETTINGS)
    assert exact["matching"] == "one-to-one on val"
    assert exact["fitted_tokens"] == 8 * 24
    assert len(exact["miou"]["seeds"]) == 3
    assert exact["pacc"]["mean"] > 90  # blocks are exact; upsampling blurs their edges
    more = kmeans_probe(train, val, 5, SETTINGS)
    assert more["matching"] == "many-to-one from train"
    assert more["pacc"]["mean"] > 90


def test_clusters_in_excess_take_their_names_from_train_alone() -> None:
    train, val = labelled(8, 0), labelled(5, 1)
    swapped = train.labels.share[:, :, [1, 2, 0]]
    wrong = LabelledTokens(train.features, dataclasses.replace(train.labels, share=swapped))
    assert kmeans_probe(wrong, val, 5, SETTINGS)["pacc"]["mean"] < 10
    assert kmeans_probe(wrong, val, 3, SETTINGS)["pacc"]["mean"] > 90  # one-to-one reads val's labels
