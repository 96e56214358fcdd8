import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.viz.refiner_maps import ALONE, BoxMaps, affinity_correlation, refiner_groups, token_agreement
from tests.viz.conftest import smooth_map, smooth_picture


def shot(seed: int) -> BoxMaps:
    crop = smooth_map(seed)
    maps = {"untuned, in the picture": smooth_map(seed + 1), "Refiner": crop + 0.05 * smooth_map(seed + 2), ALONE: crop}
    return BoxMaps(f"photo {seed}", smooth_picture(seed), smooth_picture(seed + 1), (0.25, 0.25, 0.75, 0.5), maps)


def test_numbers_equal_a_slow_count() -> None:
    a, b = smooth_map(0), smooth_map(1)
    one, other = (m.flatten(1).T.numpy().astype(np.float64) for m in (a, b))
    one, other = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (one, other))
    hits = [int(np.argmax([float(x @ y) for y in other])) == i for i, x in enumerate(one)]
    cosine, nearest = token_agreement(a, b)
    assert cosine == pytest.approx(np.mean([x @ y for x, y in zip(one, other, strict=True)]), abs=1e-6)
    assert nearest == pytest.approx(np.mean(hits))
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    expected = np.corrcoef([one[i] @ one[j] for i, j in pairs], [other[i] @ other[j] for i, j in pairs])[0, 1]
    assert affinity_correlation(a, b) == pytest.approx(expected, abs=1e-5)
    assert token_agreement(a, 3 * a) == pytest.approx((1.0, 1.0)) and affinity_correlation(a, a) == pytest.approx(1)


def test_all_boxes_share_a_scale_and_a_box_its_pca() -> None:
    groups = refiner_groups([shot(0), shot(10)])
    assert groups[0].scale == groups[1].scale is not None
    photographs, colors, glow = groups[0].rows
    assert [f.label for f in colors] == ["untuned, in the picture", "Refiner", ALONE]
    assert colors[2].note == "" and colors[1].note.endswith("nearest 100 %")
    assert "correlation of affinities 1.00" in glow[1].note
    assert len(photographs) == 2 and groups[0].title == "photo 0, box 0.25, 0.25, 0.75, 0.5"
    same = shot(0)
    same.maps = {**same.maps, "Refiner": same.maps[ALONE]}
    again = refiner_groups([same])[0].rows[1]
    assert np.array_equal(np.asarray(again[1].image), np.asarray(again[2].image))
    assert refiner_groups([]) == []


def test_the_box_is_drawn_where_it_is() -> None:
    one = shot(0)
    one.image = Image.new("RGB", (100, 50), (90, 90, 90))
    framed = np.asarray(refiner_groups([one])[0].rows[0][0].image).astype(int)
    height, width = framed.shape[:2]
    assert (framed[height // 4 + 1, width // 2] == 255).all() and (framed[height // 2 - 1, width // 2] == 255).all()
    assert (framed[height // 8, width // 2] == 90).all() and (framed[3 * height // 8, width // 2] == 90).all()
    assert torch.is_tensor(one.maps[ALONE])
