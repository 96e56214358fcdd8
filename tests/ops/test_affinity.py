"""Class affinity against a slow, obvious implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from rsc_seg.ops.affinity import BANDS, class_affinity, ranking_scores


def slow_ap(scores: list[float], positive: list[bool]) -> float:
    """Precision at every distinct threshold, weighted by the gain in recall."""
    total, before, ap = sum(positive), 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        ap += (sum(chosen) - before) / total * (sum(chosen) / len(chosen))
        before = sum(chosen)
    return ap


def slow_auc(scores: list[float], positive: list[bool]) -> float:
    """Share of pairs in the right order, ties a half."""
    good = [s for s, p in zip(scores, positive, strict=True) if p]
    bad = [s for s, p in zip(scores, positive, strict=True) if not p]
    return sum(1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad) / (len(good) * len(bad))


def slow_affinity(tokens: Tensor, labels: list[int], width: int, low: float, high: float) -> list[tuple[float, float]]:
    unit = F.normalize(tokens.double(), dim=1)
    found = []
    for i, name in enumerate(labels):
        if name < 0:
            continue
        scores, positive = [], []
        for j, other in enumerate(labels):
            distance = math.dist(divmod(i, width), divmod(j, width))
            if other >= 0 and low < distance <= high:
                scores.append(round(float(unit[i] @ unit[j]) * 1e6))
                positive.append(other == name)
        both = any(positive) and not all(positive)
        found.append((slow_ap(scores, positive), slow_auc(scores, positive)) if both else (math.nan, math.nan))
    return found


@pytest.mark.parametrize("band", list(BANDS))
def test_agrees_with_the_slow_loop(band: str) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 3, (7 * 9,), generator=generator)
    tokens = torch.randn(63, 16, generator=generator) + torch.eye(4, 16)[labels + 1]
    result = class_affinity(tokens, labels, (7, 9), chunk=20)
    k = list(BANDS).index(band)
    expected = torch.tensor(slow_affinity(tokens, labels.tolist(), 9, *BANDS[band]), dtype=torch.float64)
    assert result.classes.tolist() == labels[labels >= 0].tolist()
    torch.testing.assert_close(result.ap[k], expected[:, 0], atol=1e-6, rtol=0, equal_nan=True)
    torch.testing.assert_close(result.auc[k], expected[:, 1], atol=1e-6, rtol=0, equal_nan=True)


def test_ranking_with_many_ties_agrees_with_the_slow_loop_and_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 5, (12, 40), generator=generator).float()
    positive = torch.rand(12, 40, generator=generator) < 0.3
    mask = torch.rand(12, 40, generator=generator) < 0.7
    ap, auc = ranking_scores(similarity, positive, [torch.ones_like(mask), mask])
    for k, chosen in enumerate((torch.ones_like(mask), mask)):
        for q in range(12):
            scores, truth = similarity[q, chosen[q]].tolist(), positive[q, chosen[q]].tolist()
            assert ap[k, q].item() == pytest.approx(slow_ap(scores, truth), abs=1e-9)
            assert ap[k, q].item() == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
            assert auc[k, q].item() == pytest.approx(slow_auc(scores, truth), abs=1e-9)
            assert auc[k, q].item() == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)


def test_order_in_memory_does_not_matter_among_ties() -> None:
    positive = torch.tensor([[True, False, False, True]])
    every = torch.ones_like(positive)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        ap, auc = ranking_scores(torch.zeros(1, 4), positive[:, order], [every])
        assert (ap.item(), auc.item()) == (0.5, 0.5)


def test_equal_tokens_score_at_chance() -> None:
    tokens = torch.randn(1, 24, generator=torch.Generator().manual_seed(0)).expand(100, 24)
    labels = torch.arange(100) % 4
    result = class_affinity(tokens, labels, (10, 10))
    assert result.auc[0].tolist() == [0.5] * 100
    assert result.ap[0].tolist() == pytest.approx([24 / 99] * 100)


def test_separated_classes_are_perfect_and_queries_without_both_kinds_are_left_out() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    result = class_affinity(F.one_hot(labels, 3).float(), labels, (1, 5))
    assert result.ap[0, :4].tolist() == [1.0] * 4
    assert result.auc[0, :4].tolist() == [1.0] * 4
    assert math.isnan(result.ap[0, 4])  # class 2 has a single token
    assert result.ap[list(BANDS).index(">6")].isnan().all()  # nothing is that far away


def test_distances_leave_near_tokens_out() -> None:
    # the query's twin of its class is near; far away its class looks like the other class
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], *[[0.0, 1.0]] * 6, [0.5, 0.5], [1.0, 0.1]])
    labels = torch.tensor([0, 0, *[1] * 6, 0, 1])
    result = class_affinity(tokens, labels, (1, 10))
    near, far = (list(BANDS).index(name) for name in ("1-2", ">6"))
    assert result.ap[near, 0] == 1.0
    assert result.ap[far, 0].item() == pytest.approx(1 / 2)  # at distances 7 (class 1, cos 0), 8 (class 0), 9 (class 1)


def test_image_without_labels_has_no_query() -> None:
    result = class_affinity(torch.randn(6, 4), torch.full((6,), -1), (2, 3))
    assert result.ap.shape == result.auc.shape == (len(BANDS), 0)
