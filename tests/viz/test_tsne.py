import sys

import numpy as np
import pytest

from rsc_seg.errors import UserError
from rsc_seg.viz.drawing import Mark
from rsc_seg.viz.tsne import (
    COLORS,
    MOST_CLASSES,
    Panel,
    check_perplexity,
    embed,
    neighbour_share,
    scatter,
    style_of,
    tsne_group,
    turned_to,
)


def clusters(count: int = 12, spread: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of unit vectors."""
    state = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), count)
    features = np.eye(8)[labels] + spread * state.standard_normal((3 * count, 8))
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


def test_groups_of_features_stay_groups_and_the_seed_decides() -> None:
    features, labels = clusters()
    places = embed(features, 5, seed=0)
    assert places.shape == (36, 2) and np.array_equal(places, embed(features, 5, seed=0))
    near = ((places[:, None] - places[None]) ** 2).sum(2) + 1e9 * np.eye(36)
    assert (labels[near.argmin(1)] == labels).mean() > 0.95


def test_too_large_a_perplexity_is_refused_with_the_largest_that_fits() -> None:
    check_perplexity(11, 34)
    with pytest.raises(UserError, match=r"--perplexity 11: too large for 33 objects.*at most 10\.7 here"):
        check_perplexity(11, 33)
    with pytest.raises(UserError, match="--perplexity 0.5"):
        embed(clusters()[0], 0.5, seed=0)


def test_neighbour_share_equals_counting_one_by_one() -> None:
    features, labels = clusters(spread=0.8)
    right, chance = [], []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        others.sort(key=lambda j: (-float(features[i] @ features[j]), j))
        right += [labels[j] == labels[i] for j in others[:10]]
        chance.append(np.mean([labels[j] == labels[i] for j in others]))
    share, by_chance = neighbour_share(features, labels)
    assert share == pytest.approx(np.mean(right)) and 0.4 < share < 1
    assert by_chance == pytest.approx(np.mean(chance))
    assert neighbour_share(features[:2], labels[:2]) == (1.0, 1.0)


def test_a_panel_is_turned_and_mirrored_but_never_stretched() -> None:
    state = np.random.default_rng(1)
    reference = state.standard_normal((20, 2))
    angle = 2.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = reference @ turn * np.array([1, -1]) + 7
    assert np.allclose(turned_to(moved, reference), reference - reference.mean(0))
    doubled = turned_to(2 * moved, reference)
    assert np.allclose(doubled, 2 * (reference - reference.mean(0)))


def test_every_class_has_a_look_of_its_own_and_points_fill_the_frame() -> None:
    looks = [style_of(k) for k in range(MOST_CLASSES)]
    assert len(set(looks)) == MOST_CLASSES and len({shape for _, shape in looks}) == MOST_CLASSES == len(COLORS)
    places = np.array([[0.0, 0.0], [10.0, 0.0], [5.0, 2.0]])
    drawing = scatter(places, np.array([0, 1, 2]), seed=0)
    marks = {m.color: m for m in drawing.items if isinstance(m, Mark)}
    left, right, top = (marks[COLORS[k]] for k in range(3))
    assert left.x == pytest.approx(26) and right.x == pytest.approx(drawing.width - 26)
    assert left.y == right.y > top.y  # larger second coordinates lie higher
    assert right.x - left.x == pytest.approx(5 * (left.y - top.y))


def test_the_figure_has_a_panel_an_encoder_and_counts_in_its_legend() -> None:
    features, labels = clusters()
    panels = [Panel(name, features, embed(features, 5, seed)) for seed, name in enumerate(("before", "after"))]
    group = tsne_group(panels, labels, ["cat", "dog", "car"], "36 objects.", seed=0)
    assert [f.label for f in group.rows[0]] == ["before", "after"]
    assert all("% of the same class (31.4 % by chance)" in f.note for f in group.rows[0])
    assert group.rows[1][0].alt == "Classes and numbers of objects: cat 12, dog 12, car 12"
    assert "Only neighbourhoods" in group.about


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"scikit-learn: pip install 'rsc-seg\[viz\]'"):
        embed(clusters()[0], 5, seed=0)
