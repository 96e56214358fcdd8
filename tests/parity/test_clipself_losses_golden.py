"""RlaTask against losses, box features and gradients of the official CLIPSelf code (make_losses_golden.py)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rsc_seg.config import RlaConfig
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.weight_formats import fit_state, to_timm_names
from rsc_seg.training import rla
from rsc_seg.training.batch import Batch, Regions
from rsc_seg.training.rla import RlaTask
from tests.parity.compare_clip import encoder_of, row_of
from tests.parity.make_clip_golden import GOLDEN, seeded_images, seeded_weights
from tests.parity.make_losses_golden import LOSSES, SAMPLED, SCALE, SIZE, padded_boxes, seeded_crops, seeded_nouns

torch.set_num_threads(1)


def golden(variant: str, kind: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{variant}.npz") as file:
        return {k.removeprefix(f"{kind}/"): torch.from_numpy(file[k]) for k in file.files if k.startswith(f"{kind}/")}


def batch(variant: str) -> Batch:
    boxes, valid = padded_boxes()
    pixels = boxes * torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    nouns = torch.where(valid, seeded_nouns(LOSSES[variant].joint)[1], -1)
    regions = Regions(pixels, valid, seeded_crops(), nouns)
    return Batch(boxes=pixels[:, :1], names=["a", "b"], images=seeded_images(SIZE), regions=regions)


def official_gradients(variant: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored gradients under our names: a change of names and layouts serves weights and gradients alike."""
    whole = {name: torch.zeros_like(value) for name, value in seeded_weights(variant).items()}
    whole |= {k.removeprefix("gradient/"): v for k, v in found.items() if k.startswith("gradient/")}
    assert whole.keys() == seeded_weights(variant).keys()
    row = row_of(variant)
    named = to_timm_names({"state_dict": {f"visual.{name}": value for name, value in whole.items()}}, variant)
    return {k: v for k, v in fit_state(named, row, row.depth, variant).items() if k.startswith("blocks.")}


def step(variant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[RlaTask, float]:
    """A task after one backward pass, and its loss."""
    student, text = encoder_of(variant), None
    if kind == "regiontext":
        classes = golden(variant, kind)["classes"]
        text = NounText(seeded_nouns(LOSSES[variant].joint)[0], float(np.exp(SCALE)))

        def drawn(appeared: Tensor, total: int, sampled: int, generator: torch.Generator) -> Tensor:
            assert (total, sampled) == (150, SAMPLED) and set(appeared.tolist()) < set(classes.tolist())
            return classes

        monkeypatch.setattr(rla, "federated_classes", drawn)
    task = RlaTask(student, encoder_of(variant), RlaConfig(sampled=SAMPLED), kind, text=text)
    loss = task(batch(variant))["loss"]
    loss.backward()
    return task, float(loss.detach())


@pytest.mark.parametrize("kind", ["clipself", "regiontext"])
@pytest.mark.parametrize("variant", LOSSES)
def test_official_losses_and_gradients(variant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = golden(variant, kind)
    task, loss = step(variant, kind, monkeypatch)
    assert loss == pytest.approx(float(found["loss"]), abs=1e-6 * max(1.0, float(found["loss"])))
    theirs, largest = official_gradients(variant, found), 0.0
    ours = dict(task.student.trunk.named_parameters())
    assert set(theirs) <= set(ours)
    for name, gradient in theirs.items():
        mine = ours[name].grad
        assert (mine is None) == (not ours[name].requires_grad)
        if mine is None:  # EVA's last queries and keys, which have no say
            assert ".attn." in name and not gradient.any()
            continue
        assert float((mine - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name
        largest = max(largest, float(gradient.abs().max()))
    assert largest > 0.01
    assert all(p.grad is None for n, p in ours.items() if not n.startswith("blocks."))


@pytest.mark.parametrize("variant", LOSSES)
def test_official_box_features(variant: str) -> None:
    encoder = encoder_of(variant)
    task, given = RlaTask(encoder, encoder_of(variant), RlaConfig(), "clipself"), batch(variant)
    assert given.regions is not None
    with torch.no_grad():
        ours = task.features(encoder.dense(given.pictures), given.regions.boxes, given.regions.valid)
    assert float((ours - golden(variant, "clipself")["features"]).abs().max()) < 1e-5


def test_the_comparison_sees_a_box_moved_by_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = next(iter(LOSSES))
    task, loss = step(variant, "clipself", monkeypatch)
    moved = batch(variant)
    assert moved.regions is not None
    moved.regions.boxes[0, 1] += 1
    assert abs(float(task(moved)["loss"].detach()) - loss) > 1e-5


def test_golden_files_hold_few_numbers_and_say_where_they_come_from() -> None:
    for variant in LOSSES:
        path = GOLDEN / f"{variant}.npz"
        assert path.stat().st_size < 100_000
        with np.load(path) as file:
            assert len(str(file["commit"])) == 40
