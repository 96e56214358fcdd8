"""Affinity of a whole set: which average is taken."""

import math

import pytest
import torch

from rsc_seg.ops.affinity import class_affinity
from rsc_seg.probe.affinity import affinity_probe
from rsc_seg.probe.features import LabelledTokens, extract_tokens, token_labels
from tests.probe.sets import SETTINGS, BlockImages, colour_tokens, grey_tokens


def labelled(encoder: object, count: int = 4, grid_noise: float = 0.0) -> LabelledTokens:
    data = BlockImages(count)
    features = extract_tokens(encoder, data, SETTINGS)
    features.tokens.add_(grid_noise * torch.randn(features.tokens.shape, generator=torch.Generator().manual_seed(0)))
    return LabelledTokens(features, token_labels(data, features.grid, 1.0))


def test_colours_are_perfect_and_equal_tokens_at_chance() -> None:
    perfect = affinity_probe(labelled(colour_tokens))
    assert perfect["ap"]["all"] == pytest.approx(100)
    assert perfect["auc"]["1-2"] == pytest.approx(100)
    assert perfect["queries"]["all"] == 4 * 23  # the void corner is left out
    assert math.isnan(perfect["ap"][">6"])  # 4 x 6 tokens: no distance above 6
    assert perfect["queries"][">6"] == 0
    chance = affinity_probe(labelled(grey_tokens))
    assert chance["auc"]["all"] == pytest.approx(50)


def test_mean_is_over_the_queries_of_a_class_in_all_images_then_over_classes() -> None:
    data = labelled(colour_tokens, grid_noise=0.8)
    by_class: dict[int, list[float]] = {}
    for tokens, names in zip(data.features.tokens, data.labels.majority(), strict=True):
        result = class_affinity(tokens, names, (4, 6))
        for ap, name in zip(result.ap[0].tolist(), result.classes.tolist(), strict=True):
            if not math.isnan(ap):
                by_class.setdefault(name, []).append(ap)
    means = [100 * sum(v) / len(v) for _, v in sorted(by_class.items())]
    found = affinity_probe(data)
    assert found["class_ap"] == pytest.approx(means)
    assert found["ap"]["all"] == pytest.approx(sum(means) / 3)
    every = [v for values in by_class.values() for v in values]
    assert found["ap_query_mean"]["all"] == pytest.approx(100 * sum(every) / len(every))
    assert found["ap"]["all"] != pytest.approx(found["ap_query_mean"]["all"], abs=1e-6)
