"""Token-norm statistics on norms that are known."""

import dataclasses

import pytest
import torch
from torch import Tensor

from rsc_seg.probe.norms import norm_probe, norm_statistics
from tests.probe.sets import SETTINGS, BlockImages


def test_counts_quantiles_and_outliers_by_hand() -> None:
    found = norm_statistics(torch.tensor([0.5, 1.0, 1.5, 2.5, 9.0, 30.0]), threshold=5.0, bins=5, maximum=10.0)
    assert found["edges"] == [0, 2, 4, 6, 8, 10]
    assert found["counts"] == [3, 1, 0, 0, 1]
    assert found["above_maximum"] == 1
    assert found["outlier_share"] == pytest.approx(2 / 6)
    assert found["outlier_threshold"] == 5.0
    assert found["quantiles"]["0.5"] == pytest.approx(2.0)
    assert (found["quantiles"]["0"], found["quantiles"]["1"]) == (0.5, 30.0)


def test_quantiles_agree_with_torch() -> None:
    norms = torch.rand(501, generator=torch.Generator().manual_seed(0)) * 40
    found = norm_statistics(norms, threshold=30.0, bins=10, maximum=50.0)
    for name, value in found["quantiles"].items():
        assert value == pytest.approx(torch.quantile(norms.double(), float(name)).item())
    assert sum(found["counts"]) == 501


def test_probe_takes_evenly_spaced_images_and_a_threshold_from_the_median() -> None:
    seen = []

    def norms(images: Tensor) -> Tensor:
        seen.append(len(images))
        out = torch.full((len(images), 4, 6), 2.0)
        out[:, 0, 0] = 50.0
        return out

    found = norm_probe(norms, BlockImages(9), dataclasses.replace(SETTINGS, norm_images=5))
    assert seen == [3, 2]  # images 0, 2, 4, 6, 8 in batches of three
    assert found["images"] == 5
    assert found["outlier_threshold"] == pytest.approx(6.0)
    assert found["outlier_share"] == pytest.approx(1 / 24)
