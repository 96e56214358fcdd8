"""What each stage learns, what it leaves alone, and how its options differ."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from rsc_seg.config import AlignConfig, DistillStageConfig
from rsc_seg.errors import UserError
from rsc_seg.ops.boxes import whole_image_boxes
from rsc_seg.training.batch import Batch
from rsc_seg.training.optim import make_optimizer
from rsc_seg.training.tasks import EndToEndTask, RefinerTask, Task, crop_features
from tests.training.helpers import (
    CROP,
    GRID,
    SIZE,
    changed,
    distill_task,
    groups,
    optim,
    refiner_task,
    tiny_batch,
    tiny_encoder,
    tiny_refiner,
    values,
)


def train(task: Task, steps: int, lr: float = 1e-3) -> list[float]:
    """Losses of `steps` steps on one batch."""
    optimizer, batch, losses = make_optimizer(groups(task, optim(lr=lr))), tiny_batch(0), []
    for _ in range(steps):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def with_gradient(task: Task) -> set[str]:
    return {n for n, p in task.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def trainable(task: Task) -> set[str]:
    return {n for n, p in task.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["soft", "infonce", "cosine"])
def test_stage_1_learns_and_changes_the_refiner_only(loss: str) -> None:
    task = refiner_task(tiny_encoder(), AlignConfig(loss=loss))
    before = values(task)
    losses = train(task, 6)
    after = values(task)
    assert losses[-1] < losses[0]
    moved = changed(before, after)
    assert moved == trainable(task)
    assert moved and all(name.startswith("refiner.") for name in moved)
    assert not any(name.startswith("refiner.head.norm.") for name in moved)


def test_stage_1_gives_every_trainable_parameter_a_gradient() -> None:
    task = RefinerTask(tiny_encoder(), tiny_refiner(tiny_encoder(), noise=0.02), AlignConfig(), grid=GRID)
    task(tiny_batch(0))["loss"].backward()
    assert with_gradient(task) == trainable(task)


def test_stage_2_learns_and_changes_the_students_blocks_only() -> None:
    encoder = tiny_encoder()
    task = distill_task(encoder, tiny_refiner(encoder, noise=0.1))
    before = values(task)
    losses = train(task, 6)
    moved = changed(before, values(task))
    assert losses[-1] < losses[0]
    assert moved == trainable(task) == with_gradient(task)
    assert moved and all(name.startswith("student.trunk.blocks.") for name in moved)


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        ("last_1", ("student.trunk.blocks.3.",)),
        ("blocks_norm", ("student.trunk.blocks.", "student.trunk.norm.")),
        ("all", ("student.trunk.",)),
    ],
)
def test_stage_2_trains_what_the_policy_names(policy: str, starts: tuple[str, ...]) -> None:
    encoder = tiny_encoder()
    task = distill_task(encoder, tiny_refiner(encoder, noise=0.1), DistillStageConfig(trainable=policy))
    assert trainable(task) == {n for n, _ in task.named_parameters() if n.startswith(starts)}
    task(tiny_batch(0))["loss"].backward()
    assert with_gradient(task) <= trainable(task)


def test_control_starts_at_its_own_target() -> None:
    encoder = tiny_encoder()
    out = distill_task(encoder, None)(tiny_batch(0))
    assert abs(float(out["excess"])) < 1e-6
    assert float(out["loss"].detach()) > 0.1  # the entropy of the target's rows
    refined = distill_task(encoder, tiny_refiner(encoder, noise=0.1))(tiny_batch(0))
    assert float(refined["excess"]) > 1e-4


def test_excess_is_loss_less_the_targets_entropy_at_its_temperature() -> None:
    encoder = tiny_encoder()
    config = DistillStageConfig(temperature_student=0.4, temperature_teacher=0.2)
    out = distill_task(encoder, None, config)(tiny_batch(0))
    assert float(out["excess"]) > 1e-4  # a softer student does not reach the target with equal features
    assert float(out["loss"].detach()) > float(out["excess"])


def test_refiner_at_its_start_with_the_whole_image_is_the_teacher() -> None:
    encoder = tiny_encoder()
    batch = tiny_batch(0)
    config = DistillStageConfig(regions="global")
    plain = distill_task(encoder, None, config)
    refined = distill_task(encoder, tiny_refiner(encoder), config)
    ((boxes, grid, known),) = plain.regions(batch)
    assert known is None
    assert grid == (4, 6)
    assert boxes.tolist() == [[[0, 0, SIZE[1], SIZE[0]]]] * 2
    a, b = (t.target(batch.pictures, boxes, None, grid) for t in (plain, refined))
    assert a.shape == (2, 24, 64)
    assert torch.allclose(a, b, atol=1e-5)


def test_local_regions_are_the_batchs_boxes() -> None:
    batch = tiny_batch(0)
    ((boxes, grid, _),) = distill_task(tiny_encoder()).regions(batch)
    assert boxes is batch.boxes and grid == GRID


def test_both_kinds_of_regions_add_up() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    refiner = tiny_refiner(encoder, noise=0.1)
    loss = {}
    for kind in ("local", "global", "both"):
        loss[kind] = float(distill_task(encoder, refiner, DistillStageConfig(regions=kind))(batch)["loss"].detach())
    assert loss["both"] == pytest.approx(loss["local"] + loss["global"], abs=1e-5)
    assert loss["local"] != pytest.approx(loss["global"], abs=1e-3)


def test_cached_target_takes_the_place_of_the_computed_one() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    task = distill_task(encoder, tiny_refiner(encoder, noise=0.1))
    target = task.target(batch.pictures, batch.boxes, None, GRID)
    early = task.refiner.early(encoder, batch.pictures)

    def loss(**cached: Any) -> float:
        return float(task(dataclasses.replace(batch, **cached))["loss"].detach())

    assert loss(region_tokens=target) == pytest.approx(loss(), abs=1e-6)
    assert loss(early=early) == pytest.approx(loss(), abs=1e-6)
    assert loss(region_tokens=target * torch.linspace(-1, 1, 64)) != pytest.approx(loss(), abs=1e-3)


def test_directions_swap_what_the_refiner_and_the_encoder_see() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    out = {d: refiner_task(encoder, AlignConfig(direction=d))(batch) for d in ("g2l", "l2g")}
    assert float(out["g2l"]["loss"].detach()) != float(out["l2g"]["loss"].detach())
    # at its start the Refiner of a whole crop is the encoder of this crop
    swapped = refiner_task(encoder, AlignConfig(direction="l2g"))
    pred, target = swapped._local_to_global(batch)
    own = crop_features(encoder, SIZE, batch.boxes, batch.cuts, "own")
    assert torch.allclose(pred, own, atol=1e-5)
    assert torch.allclose(target, distill_task(encoder).target(batch.pictures, batch.boxes, None, GRID), atol=1e-6)


@pytest.mark.parametrize("direction", ["g2l", "l2g"])
def test_both_directions_learn(direction: str) -> None:
    losses = train(refiner_task(tiny_encoder(), AlignConfig(direction=direction)), 5)
    assert losses[-1] < losses[0]


def test_shared_positions_equal_own_ones_for_a_crop_that_is_the_image() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    whole = whole_image_boxes(2, *SIZE, like=batch.boxes)
    as_crops = batch.pictures[:, None]
    own = crop_features(encoder, SIZE, whole, as_crops, "own")
    assert own.shape == (2, 24, 64)
    assert torch.allclose(own, crop_features(encoder, SIZE, whole, as_crops, "shared"), atol=1e-6)


def test_shared_positions_depend_on_the_place_and_own_ones_do_not() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    shifted = batch.boxes.clone()
    shifted[..., 0::2] = SIZE[1] - batch.boxes[..., [2, 0]]
    own = [crop_features(encoder, SIZE, b, batch.cuts, "own") for b in (batch.boxes, shifted)]
    shared = [crop_features(encoder, SIZE, b, batch.cuts, "shared") for b in (batch.boxes, shifted)]
    assert torch.equal(own[0], own[1])
    assert not torch.allclose(shared[0], shared[1], atol=1e-4)
    assert not torch.allclose(shared[0], own[0], atol=1e-4)
    assert shared[0].shape == (4, 4, 64) and CROP == (28, 28)


def test_unknown_choices_are_user_errors() -> None:
    encoder = tiny_encoder()
    for bad in (AlignConfig(loss="infonec"), AlignConfig(direction="l2l")):
        with pytest.raises(UserError, match=r"refine\.align\."):
            refiner_task(encoder, bad)
    with pytest.raises(UserError, match=r"crops\.positions=there"):
        crop_features(encoder, SIZE, tiny_batch(0).boxes, tiny_batch(0).cuts, "there")
    with pytest.raises(UserError, match=r"distill\.regions=all"):
        distill_task(encoder, None, DistillStageConfig(regions="all"))
    with pytest.raises(UserError, match="trainable=half"):
        distill_task(encoder, None, DistillStageConfig(trainable="half"))


def test_missing_fields_are_named() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    with pytest.raises(ValueError, match="no `images`"):
        distill_task(encoder)(dataclasses.replace(batch, images=None))
    with pytest.raises(ValueError, match="no `crops`"):
        refiner_task(encoder)(dataclasses.replace(batch, crops=None))


def end_to_end() -> EndToEndTask:
    encoder = tiny_encoder()
    refiner = tiny_refiner(encoder, noise=0.05)
    first = RefinerTask(encoder, refiner, AlignConfig(), grid=GRID)
    second = distill_task(encoder)
    second.refiner = refiner
    return EndToEndTask(first, second)


def test_end_to_end_keeps_the_losses_apart() -> None:
    task, batch = end_to_end(), tiny_batch(0)
    out = task(batch)
    assert float(out["loss"].detach()) == pytest.approx(float(out["refine_loss"] + out["distill_loss"]))
    task.distill(batch)["loss"].backward()
    assert with_gradient(task) == {n for n in trainable(task) if n.startswith("distill.student.")}
    task.zero_grad()
    task.refine(batch)["loss"].backward()
    assert with_gradient(task) == {n for n in trainable(task) if n.startswith("refine.refiner.")}
    task.zero_grad()
    out["loss"].backward()
    assert with_gradient(task) == trainable(task)


def test_end_to_end_needs_one_refiner() -> None:
    encoder = tiny_encoder()
    with pytest.raises(UserError, match=r"distill\.target=refiner"):
        EndToEndTask(refiner_task(encoder), distill_task(encoder))


def test_training_mode_reaches_only_what_trains() -> None:
    task = end_to_end().train()
    assert task.training and task.refine.refiner.training and task.distill.student.training
    assert not any(m.training for m in task.refine.encoder.modules())
    task.eval()
    assert not any(m.training for m in task.modules())
    encoder = tiny_encoder()
    second = distill_task(encoder, tiny_refiner(encoder)).train()
    assert second.student.training
    assert not any(m.training for part in (second.teacher, second.refiner) for m in part.modules())


def test_logs_are_finite_scalars() -> None:
    out = end_to_end()(tiny_batch(0))
    assert all(v.ndim == 0 and math.isfinite(float(v.detach())) for v in out.values())
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


def test_batch_moves_whole() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    full = dataclasses.replace(
        batch, early=tiny_refiner(encoder).early(encoder, batch.pictures), crop_tokens=torch.zeros(4, 4, 64)
    )
    moved: Batch = full.to(torch.device("meta"))
    tensors = [moved.boxes, moved.images, moved.crops, moved.crop_tokens, *moved.early]
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.region_tokens is None and moved.names == batch.names


def test_whole_image_is_its_unpadded_part() -> None:
    encoder, batch = tiny_encoder(), tiny_batch(0)
    task = distill_task(encoder, tiny_refiner(encoder, noise=0.1), DistillStageConfig(regions="global"))
    valid = torch.tensor([[0.0, 0.0, 84.0, 40.0], [0.0, 0.0, 60.0, 56.0]])
    ((boxes, grid, _),) = task.regions(dataclasses.replace(batch, valid=valid))
    assert boxes.tolist() == [[[0, 0, 84, 40]], [[0, 0, 60, 56]]] and grid == (4, 6)
    frame = torch.tensor([[0.0, 0.0, 84.0, 56.0]] * 2)
    plain, full, padded = (dataclasses.replace(batch, valid=v) for v in (None, frame, valid))
    assert torch.equal(task(plain)["loss"], task(full)["loss"])
    assert torch.equal(task.targets(plain)["whole_tokens"], task.targets(full)["whole_tokens"])
    assert not torch.allclose(task.targets(padded)["whole_tokens"], task.targets(full)["whole_tokens"], atol=1e-3)


def test_teacher_looks_once_for_both_kinds_of_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = distill_task(tiny_encoder(), None, DistillStageConfig(regions="both")), tiny_batch(0)
    before, calls, dense = float(task(batch)["loss"].detach()), [], task.teacher.dense
    monkeypatch.setattr(task.teacher, "dense", lambda images: calls.append(len(images)) or dense(images))
    assert float(task(batch)["loss"].detach()) == before
    assert calls == [2]
