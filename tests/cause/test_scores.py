"""Scores by hand: matching, absent classes, dead clusters, ignored pixels, seeds, and the table of classes."""

import csv
import itertools
import math
from pathlib import Path

import pytest
import torch

from rsc_seg.cause.scores import (
    cluster_scores,
    count_pixels,
    linear_scores,
    name_clusters,
    over_seeds,
    write_class_csv,
)
from rsc_seg.errors import UserError


def test_ignored_pixels_do_not_count() -> None:
    labels = torch.tensor([[0, 1, 255, -1], [2, 2, 1, 0]], dtype=torch.int16)
    predicted = torch.tensor([[1, 0, 2, 2], [2, 0, 0, 1]])
    assert count_pixels(labels, predicted, 3).tolist() == [[0, 2, 0], [2, 0, 0], [1, 0, 1]]
    assert count_pixels(labels, predicted, 2, 3).tolist() == [[0, 2, 0], [2, 0, 0]]
    with pytest.raises(UserError, match="do not fit 2 clusters"):
        count_pixels(labels, predicted, 3, 2)
    with pytest.raises(UserError, match="differ in shape"):
        count_pixels(labels, predicted[:1], 3)


def test_scores_of_a_small_matrix_by_hand() -> None:
    # clusters 1, 0, 2 are classes 0, 1, 2
    scores = cluster_scores(torch.tensor([[1, 6, 1], [8, 2, 0], [0, 1, 5]]))
    assert scores.matching == [1, 0, 2] and scores.dead_clusters == ()
    assert scores.iou == pytest.approx([6 / 11, 8 / 11, 5 / 7])
    assert scores.miou == pytest.approx((6 / 11 + 8 / 11 + 5 / 7) / 3)
    assert scores.pacc == pytest.approx(19 / 24)
    assert scores.recall == pytest.approx([6 / 8, 8 / 10, 5 / 6])
    assert scores.macc == pytest.approx((6 / 8 + 8 / 10 + 5 / 6) / 3)
    assert scores.precision == pytest.approx([6 / 9, 8 / 9, 5 / 6])
    assert scores.pixels == [8, 10, 6]


def test_the_matching_is_the_best_of_all() -> None:
    counts = torch.randint(0, 50, (5, 5), generator=torch.Generator().manual_seed(3))
    best = max(sum(int(counts[t, k]) for t, k in enumerate(p)) for p in itertools.permutations(range(5)))
    scores = cluster_scores(counts)
    assert scores.matching is not None and sorted(scores.matching) == list(range(5))
    assert sum(int(counts[t, k]) for t, k in enumerate(scores.matching)) == best
    assert scores.pacc == pytest.approx(best / int(counts.sum()))


def test_an_absent_class_counts_zero_only_when_its_cluster_is_alive() -> None:
    alive = cluster_scores(torch.tensor([[9, 0, 1], [0, 8, 0], [0, 0, 0]]))
    assert alive.iou == pytest.approx([9 / 10, 1.0, 0.0]) and alive.dead_clusters == ()
    assert alive.miou == pytest.approx(1.9 / 3) and alive.macc == pytest.approx(1.9 / 2)
    dead = cluster_scores(torch.tensor([[9, 0, 0], [0, 8, 0], [0, 0, 0]]))
    assert dead.dead_clusters == (2,) and math.isnan(dead.iou[2]) and dead.miou == 1.0
    assert dead.iou[:2] == [1.0, 1.0]
    # a class that is there without a cluster of its own counts 0 whatever its dead cluster
    lost = cluster_scores(torch.tensor([[9, 0, 0], [8, 0, 0], [0, 3, 0]]))
    assert lost.dead_clusters == (2,) and lost.miou == pytest.approx((9 / 17 + 0 + 1) / 3)


def test_names_of_clusters() -> None:
    named = name_clusters(torch.tensor([[0, 1], [2, 1]]), [1, 2, 0])
    assert named.tolist() == [[2, 0], [1, 0]] and named.dtype == torch.uint8


def test_a_linear_probe_is_not_matched() -> None:
    scores = linear_scores(torch.tensor([[1, 3], [2, 2]]))
    assert scores.matching is None and scores.iou == pytest.approx([1 / 6, 2 / 7]) and scores.pacc == 3 / 8


def test_what_cannot_be_scored() -> None:
    with pytest.raises(UserError, match="4 clusters do not fit 3 classes"):
        cluster_scores(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="no pixel of the evaluated images is labelled"):
        cluster_scores(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(UserError, match="linear probe of 4 outputs does not fit 3 classes"):
        linear_scores(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="no seed"):
        over_seeds([])


def test_mean_and_spread_over_seeds() -> None:
    runs = [cluster_scores(torch.tensor([[a, 10 - a], [0, 10]])) for a in (10, 8)]
    summary = over_seeds(runs)
    assert summary["pacc"]["mean"] == pytest.approx(95.0)
    assert summary["pacc"]["std"] == pytest.approx(100 * 0.1 / math.sqrt(2))
    assert set(summary) == {"miou", "pacc", "macc"} and summary["miou"]["seeds"][0] == 100.0
    assert over_seeds(runs[:1])["miou"]["std"] is None


def test_the_table_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "out/classes.csv"
    rows = {
        "cluster": cluster_scores(torch.tensor([[0, 9, 0], [8, 0, 0], [0, 0, 0]])),
        "linear": linear_scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])),
    }
    write_class_csv(path, ["road", "sky, blue", "car"], rows)
    with open(path, newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["row", "class", "name", "iou", "recall", "precision", "pixels", "cluster"]
    assert table[2] == ["cluster", "1", "sky, blue", "100.000", "100.000", "100.000", "8", "0"]
    assert table[3] == ["cluster", "2", "car", "", "", "", "0", "2"]
    assert table[4] == ["linear", "0", "road", "75.000", "75.000", "100.000", "4", ""]
    with pytest.raises(UserError, match="scores of 3 classes do not fit 2 names"):
        write_class_csv(path, ["road", "sky"], rows)
    assert len(table) == 7 and [p.name for p in path.parent.iterdir()] == ["classes.csv"]
