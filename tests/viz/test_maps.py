import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.maps import (
    affinity,
    affinity_levels,
    affinity_scale,
    draw_cross,
    draw_ring,
    joint_pca,
    norm_scale,
    query_points,
    token_at,
    token_norms,
    upsample,
)

MakeMap = Callable[..., torch.Tensor]


def test_query_points_are_fixed_spread_and_nested() -> None:
    points = query_points(18, 24, 12)
    assert points[0] == (9, 12)
    assert points[:3] == query_points(18, 24, 3)
    assert len(set(points)) == 12
    assert all(1 <= row < 17 and 2 <= column < 22 for row, column in points)
    quarters = {(row >= 9, column >= 12) for row, column in points}
    assert len(quarters) == 4


def test_query_by_hand_is_a_share_of_the_picture() -> None:
    assert token_at(10, 20, 0.0, 0.0) == (0, 0)
    assert token_at(10, 20, 1.0, 1.0) == (9, 19)
    assert token_at(10, 20, 0.5, 0.25) == (2, 10)
    with pytest.raises(UserError, match="between 0 and 1"):
        token_at(10, 20, 1.5, 0.5)


def test_affinity_is_the_cosine(feature_map: MakeMap) -> None:
    features = feature_map(0)
    values = affinity(features, (2, 3))
    expected = torch.cosine_similarity(features[:, 2, 3], features[:, 7, 1], dim=0)
    assert values[7, 1] == pytest.approx(expected.item(), abs=1e-6)
    assert values[2, 3] == pytest.approx(1.0, abs=1e-6)
    assert np.allclose(values, affinity(features.numpy() * 7, (2, 3)), atol=1e-6)


def test_affinity_names_a_query_off_the_map_and_a_batch_axis(feature_map: MakeMap) -> None:
    with pytest.raises(UserError, match="9 x 12 tokens"):
        affinity(feature_map(0), (9, 0))
    with pytest.raises(UserError, match="without a batch axis"):
        affinity(feature_map(0)[None], (0, 0))


def test_affinity_scale_is_pooled_and_rounded_down() -> None:
    one, other = np.full((4, 4), 0.37), np.full((4, 4), -0.12)
    assert affinity_scale([one]).low == pytest.approx(0.3)
    assert affinity_scale([one, other]).low == pytest.approx(-0.2)
    assert affinity_scale([one, other]).high == 1.0
    assert affinity_scale([np.ones((2, 2))]).low < 1


def test_affinity_levels_split_at_the_distance() -> None:
    values = np.zeros((1, 20))
    values[0, 0], values[0, 1:7] = 1.0, 0.5
    assert affinity_levels(values, (0, 0)) == (0.5, 0.0)
    near, far = affinity_levels(np.ones((3, 3)), (1, 1))
    assert near == 1.0 and math.isnan(far)


def test_norms_keep_an_outlier_visible(feature_map: MakeMap) -> None:
    features = feature_map(0)
    features[:, 4, 4] *= 50
    norms = token_norms(features)
    assert norms[4, 4] == pytest.approx(features[:, 4, 4].norm().item(), rel=1e-6)
    assert norm_scale([norms, norms / 2]).high == pytest.approx(norms[4, 4])
    assert norm_scale([norms, norms / 2]).low == pytest.approx(norms.min() / 2)


def test_pca_is_deterministic_and_shares_one_rule_over_models(feature_map: MakeMap) -> None:
    a, b = feature_map(0), feature_map(1)
    first, second = joint_pca({"a": a, "b": b}), joint_pca({"a": a.clone(), "b": b.clone()})
    assert all((x == y).all() for x, y in zip(first.pictures, second.pictures, strict=True))
    # the order of the models changes nothing but the order of the pictures
    swapped = joint_pca({"b": b, "a": a})
    assert np.abs(first.pictures[0].astype(int) - swapped.pictures[1].astype(int)).max() <= 1
    # the same map beside another is coloured like itself
    twice = joint_pca({"a": a, "b": b, "again": a})
    assert (twice.pictures[0] == twice.pictures[2]).all()


def test_pca_sign_makes_the_largest_loading_positive() -> None:
    ramp = torch.linspace(-1, 1, 12).repeat(9, 1)
    features = torch.zeros(8, 9, 12)
    features[3], features[5] = ramp, -0.5 * ramp  # the one direction with variance; channel 3 dominates
    for sign in (1.0, -1.0):
        red = joint_pca({"m": sign * features}, normalize=False).pictures[0][..., 0].astype(int)
        assert (red[:, 11] > red[:, 0]).all() == (sign > 0)


def test_pca_ignores_an_offset_only_when_asked(feature_map: MakeMap) -> None:
    a = feature_map(0)
    shifted = a + 20.0
    apart = joint_pca({"a": a, "b": shifted}, normalize=False)
    assert np.abs(apart.pictures[0].astype(int) - apart.pictures[1].astype(int)).max() > 100
    centred = joint_pca({"a": a, "b": shifted}, normalize=False, center="each")
    assert np.abs(centred.pictures[0].astype(int) - centred.pictures[1].astype(int)).max() <= 1
    assert 0 < sum(centred.variance) < 1 and sorted(centred.variance, reverse=True) == list(centred.variance)


def test_pca_of_a_constant_map_is_grey_and_unequal_widths_are_named(feature_map: MakeMap) -> None:
    assert (joint_pca({"flat": torch.ones(4, 3, 3)}).pictures[0] == 128).all()
    with pytest.raises(UserError, match="a 16, b 8"):
        joint_pca({"a": feature_map(0), "b": feature_map(0, 8)})


def test_nearest_repeats_tokens_and_bilinear_blends_numbers() -> None:
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    assert upsample(values, (1, 4)).tolist() == [[0, 0, 1, 1]]
    assert upsample(values, (1, 4), "bilinear").tolist() == [[0, 0.25, 0.75, 1]]
    assert upsample(np.full((2, 2, 3), 7, dtype=np.uint8), (4, 4)).dtype == np.uint8
    with pytest.raises(UserError, match="nearest, bilinear"):
        upsample(values, (2, 2), "bicubic")


def test_marks_stand_on_the_token_and_leave_the_input_alone() -> None:
    plain = Image.new("RGB", (240, 180), (90, 90, 90))
    cross = np.asarray(draw_cross(plain, (0, 11), (9, 12)))
    assert (cross[10, 230] == 255).all() and (cross[90, 120] == 90).all()
    pair = np.asarray(draw_cross(plain, (4, 0), (9, 12), columns=(1, 2)))
    assert (pair[90, 125] == 255).all()
    ring = np.asarray(draw_ring(plain, (4, 6), (9, 12)))
    assert (ring[90, 130] == 90).all() and (ring != 90).any()
    assert (np.asarray(plain) == 90).all()
