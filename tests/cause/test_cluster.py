"""The probes: assignment by cosine, and cross-entropy without the upsampled logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from rsc_seg.cause.cluster import ClusterProbe, upsampled_cross_entropy, upsampling_matrix
from rsc_seg.cause.modularity import modularity_loss


def test_clusters_are_directions() -> None:
    probe = ClusterProbe(3, 2)
    probe.cluster_probe.data = torch.tensor([[1.0, 0], [0, 5], [-1, -1]])
    maps = torch.tensor([[3.0, 1], [1, 9], [-2, -2]]).T[None, :, :, None]  # (1, E, 3, 1)
    cosine = probe(maps).detach()
    assert cosine.argmax(1).flatten().tolist() == [0, 1, 2]
    assert float(cosine[0, 2, 2, 0]) == pytest.approx(1)


def test_it_trains_by_modularity_and_leaves_the_features_alone() -> None:
    probe, features = ClusterProbe(4, 6), torch.randn(2, 9, 6, requires_grad=True)
    loss = probe.loss(features)
    loss.backward()
    assert torch.equal(loss, modularity_loss(features, probe.cluster_probe, 0.1))
    assert features.grad is None and probe.cluster_probe.grad is not None


def test_it_starts_uniform_within_one_over_the_number_of_clusters() -> None:
    start = ClusterProbe(27).cluster_probe
    assert start.shape == (27, 90) and 0.9 / 27 < float(start.detach().abs().max()) <= 1 / 27


@pytest.mark.parametrize(("source", "target"), [(16, 224), (23, 322), (3, 7)])
def test_the_matrix_is_bilinear_interpolation(source: int, target: int) -> None:
    line = torch.randn(1, 1, source)
    expected = F.interpolate(line, size=target, mode="linear", align_corners=False)
    assert torch.allclose(line @ upsampling_matrix(source, target).T, expected, atol=1e-5)


def test_loss_and_gradient_are_those_of_upsampled_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 4, 6, generator=generator)
    labels = torch.randint(-1, 7, (2, 28, 33), generator=generator)  # 5 and 6 are no classes
    mine, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = upsampled_cross_entropy(mine, labels.short())
    full = F.interpolate(plain, size=(28, 33), mode="bilinear", align_corners=False)
    reference = F.cross_entropy(full, torch.where(labels < 5, labels, -1), ignore_index=-1)
    (2 * loss).backward()
    (2 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert mine.grad is not None and plain.grad is not None
    assert torch.allclose(mine.grad, plain.grad, rtol=1e-4, atol=1e-7)


def test_nothing_labelled_is_no_number() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 8, 8), -1))
    loss.backward()
    assert math.isnan(loss.item()) and logits.grad is not None and bool(logits.grad.isnan().all())
