"""Whether labels reach the features that the clusters are found in: never in `detached` mode, always in `released`."""

import pytest
import torch
from torch import Tensor

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.stages import train_codebook, train_head, train_probes
from tests.cause.tiny import GRID, TinySource, block_map, tiny_options

LABELS = {
    "true": None,
    "others": block_map(8, seed=50),
    "none": torch.full((8, *GRID), -1),
}


def trained(kind: str, probe_grad: str, labels: str) -> tuple[CauseModel, ClusterProbe]:
    """All three steps with the same seed on the same tokens; only the labels differ."""
    source = TinySource(8, labels=LABELS[labels])
    # a clip that bites: the official one norm over head and linear probe would carry labels into the head
    options = tiny_options(kind, head_clip=0.05, probe_clip=0.05, head_epochs=2, probe_epochs=2)
    codes = train_codebook(source, options)
    model = train_head(source, codes, options, probe_grad)
    return model, train_probes(source, model, codes, options, probe_grad)


def part(model: CauseModel, name: str) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(f"{name}.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_detached_no_label_reaches_anything_but_the_linear_probe(kind: str) -> None:
    (model, probe), *others = [trained(kind, "detached", labels) for labels in LABELS]
    for other, other_probe in others:
        for name in ("head", "head_ema", "projection_head", "projection_head_ema"):
            assert same(part(model, name), part(other, name)), name
        assert torch.equal(probe.cluster_probe, other_probe.cluster_probe)
        assert not same(part(model, "linear"), part(other, "linear"))


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_released_labels_train_the_teacher_and_move_the_clusters(kind: str) -> None:
    (model, probe), (other, other_probe) = (trained(kind, "released", labels) for labels in ("true", "others"))
    assert not same(part(model, "head_ema"), part(other, "head_ema"))
    assert not torch.equal(probe.cluster_probe, other_probe.cluster_probe)


@pytest.mark.parametrize("probe_grad", ["detached", "released"])
def test_step_three_alone(probe_grad: str) -> None:
    source, options = TinySource(8), tiny_options("mlp")
    codes = train_codebook(source, options)
    model = train_head(source, codes, options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_probes(source, model, codes, options, probe_grad)
    assert same({k: v for k, v in before.items() if k.startswith("head_ema.")}, part(model, "head_ema")) == (
        probe_grad == "detached"
    )
    # the student and both projections rest in either mode; the linear probe learns in either
    for name in ("head", "projection_head", "projection_head_ema"):
        assert same({k: v for k, v in before.items() if k.startswith(f"{name}.")}, part(model, name))
    assert not torch.equal(before["linear.f.weight"], model.linear.f.weight)
    assert not any(p.requires_grad for p in model.head_ema.parameters()) and not model.training


def test_released_step_two_reaches_the_student_through_the_shared_clip() -> None:
    heads = {}
    for probe_grad in ("detached", "released"):
        for labels in ("true", "others"):
            source = TinySource(8, labels=LABELS[labels])
            options = tiny_options("mlp", head_clip=0.05, head_epochs=2)
            model = train_head(source, train_codebook(source, options), options, probe_grad)
            heads[probe_grad, labels] = part(model, "head")
    assert same(heads["detached", "true"], heads["detached", "others"])
    assert not same(heads["released", "true"], heads["released", "others"])
