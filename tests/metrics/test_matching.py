"""Clusters named after classes."""

from itertools import permutations

import torch

from rsc_seg.metrics.confusion import IGNORE
from rsc_seg.metrics.matching import hungarian_match, majority_match


def test_hungarian_undoes_a_permutation() -> None:
    counts = torch.tensor([[0, 0, 9], [7, 1, 0], [1, 8, 0]])
    assert hungarian_match(counts).tolist() == [1, 2, 0]


def test_hungarian_differs_from_majority_where_classes_compete() -> None:
    counts = torch.tensor([[10, 9], [0, 8]])  # both clusters are mostly class 0
    assert hungarian_match(counts).tolist() == [0, 1]
    assert majority_match(counts).tolist() == [0, 0]


def test_hungarian_is_the_best_of_all_permutations() -> None:
    counts = torch.randint(0, 50, (5, 5), generator=torch.Generator().manual_seed(0))
    names = hungarian_match(counts)
    found = counts[names, torch.arange(5)].sum().item()
    assert sorted(names.tolist()) == list(range(5))
    assert found == max(sum(counts[t, k].item() for k, t in enumerate(order)) for order in permutations(range(5)))


def test_more_clusters_than_classes_leave_some_unmatched() -> None:
    names = hungarian_match(torch.tensor([[5, 1, 4], [0, 6, 0]]))
    assert names.tolist() == [0, 1, IGNORE]


def test_fewer_clusters_than_classes() -> None:
    assert hungarian_match(torch.tensor([[5.0, 0.0], [1.0, 0.5], [0.0, 7.0]])).tolist() == [0, 2]


def test_majority_leaves_an_empty_cluster_without_a_class() -> None:
    assert majority_match(torch.tensor([[1, 0, 2], [3, 0, 1]])).tolist() == [1, IGNORE, 0]
