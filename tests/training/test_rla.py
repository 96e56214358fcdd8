"""Region-language alignment: what it learns, how it stands beside a distillation, what it leaves out."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.config import AlignConfig, DistillStageConfig, RlaConfig
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.ops.alignment import clipself_loss
from rsc_seg.ops.regions import pool_boxes
from rsc_seg.pipelines.stream import frozen_copy
from rsc_seg.training.batch import Batch, Regions
from rsc_seg.training.distill import DistillTask
from rsc_seg.training.optim import make_optimizer
from rsc_seg.training.rla import RlaTask, distill_weight
from rsc_seg.training.task import Task
from rsc_seg.training.tasks import EndToEndTask, RefinerTask
from tests.training.clip_helpers import CROP, GRID, NOUNS, noun_text, rla_batch, rla_task, tiny_clip, tiny_refiner
from tests.training.helpers import changed, groups, optim, tiny_encoder, values

SCD = DistillStageConfig()
KINDS = ("clipself", "regiontext")


def train(task: Task, steps: int) -> list[float]:
    optimizer, batch, losses = make_optimizer(groups(task, optim(lr=1e-3))), rla_batch(), []
    for _ in range(steps):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def regions_of(batch: Batch) -> Regions:
    assert batch.regions is not None
    return batch.regions


def with_regions(batch: Batch, **changes: Any) -> Batch:
    return dataclasses.replace(batch, regions=dataclasses.replace(regions_of(batch), **changes))


def value(task: RlaTask, batch: Batch, name: str = "rla") -> float:
    return float(task(batch)[name].detach())


@pytest.mark.parametrize("name", ["clip_tiny16", "evaclip_tiny16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distill", [None, SCD])
def test_learns_and_changes_the_students_blocks_only(kind: str, distill: DistillStageConfig | None, name: str) -> None:
    task = rla_task(kind, distill=distill, encoder=tiny_clip(name))
    before = values(task)
    losses = train(task, 4)
    assert losses[-1] < losses[0]
    moved = {n for n in changed(before, values(task)) if not n.startswith("distill.student.")}  # the same tensors
    assert moved == {n for n, p in task.named_parameters() if p.requires_grad}
    assert moved and all(n.startswith("student.trunk.blocks.") for n in moved)


def test_clipself_is_one_minus_the_cosine_of_box_and_crop() -> None:
    task, batch = rla_task(), rla_batch()
    regions, encoder = regions_of(batch), task.teacher
    assert encoder is not None and regions.crops is not None
    found = []
    with torch.no_grad():
        for i, places in enumerate(([0], [0, 1])):
            for place in places:
                box = [torch.zeros(0, 4), torch.zeros(0, 4)]
                box[i] = regions.boxes[i, place][None]
                feature = pool_boxes(encoder.dense(batch.pictures), box, patch_size=16)
                crop = F.normalize(encoder.cls(regions.crops[i, place][None]), dim=-1)
                found.append(1 - float((feature * crop).sum()))
    out = task(batch)
    assert float(out["rla"]) == float(out["loss"].detach()) == pytest.approx(sum(found) / 3, abs=1e-5)
    assert set(out) == {"loss", "rla", "token_norm", "token_norm_max"}


def test_boxes_that_are_not_valid_do_not_count() -> None:
    batch = rla_batch()
    regions = regions_of(batch)
    assert regions.crops is not None
    rubbish = with_regions(
        batch,
        boxes=torch.where(regions.valid[..., None], regions.boxes, torch.tensor(33.0)),
        crops=torch.where(regions.valid[..., None, None, None], regions.crops, torch.tensor(math.nan)),
    )
    for kind in KINDS:
        assert value(rla_task(kind), rubbish) == value(rla_task(kind), batch)


def test_the_teacher_looks_at_valid_crops_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch, seen = rla_task(), rla_batch(), []
    assert task.teacher is not None
    cls = task.teacher.cls
    monkeypatch.setattr(task.teacher, "cls", lambda x: seen.append(tuple(x.shape)) or cls(x))
    task(batch)
    assert seen == [(3, 3, CROP, CROP)]


def test_a_batch_without_a_box_is_no_error() -> None:
    batch = rla_batch()
    none = with_regions(batch, valid=torch.zeros_like(regions_of(batch).valid))
    for kind in KINDS:
        for distill in (None, SCD):
            task = rla_task(kind, distill=distill)
            out = task(none)
            out["loss"].backward()
            assert float(out["rla"]) == 0
            wanted = [p for p in task.student.parameters() if p.requires_grad]
            assert all(p.grad is not None for p in wanted)  # as several processes need
            assert any(bool(p.grad.any()) for p in wanted if p.grad is not None) == (distill is not None)


def test_sum_of_both_terms_and_their_logs() -> None:
    batch, config = rla_batch(), DistillStageConfig(weight=0.3)
    task = rla_task(distill=config, refined=True)
    out, alone = task(batch), rla_task()(batch)
    assert task.refiner is not None
    own = DistillTask(frozen_copy(tiny_clip()), tiny_clip(), task.refiner, config, grid=GRID)(batch)
    assert float(out["rla"]) == pytest.approx(float(alone["rla"]), abs=1e-6)
    assert float(out["scd"]) == pytest.approx(float(own["loss"].detach()), abs=1e-6)
    assert float(out["loss"].detach()) == pytest.approx(float(out["rla"]) + 0.3 * float(out["scd"]), abs=1e-6)
    for key in ("excess", "token_norm", "token_norm_max"):
        assert float(out[key]) == pytest.approx(float(own[key]), abs=1e-5)
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


def test_lambda_changes_the_gradient_and_zero_is_rla_alone() -> None:
    batch, found = rla_batch(), {}
    for weight in (0.0, 0.2, 0.4):
        task = rla_task(distill=DistillStageConfig(weight=weight), refined=True)
        task(batch)["loss"].backward()
        found[weight] = task.student.trunk.blocks[0].mlp.fc1.weight.grad
    alone = rla_task()
    alone(batch)["loss"].backward()
    torch.testing.assert_close(found[0.0], alone.student.trunk.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(found[0.4] - found[0.0], 2 * (found[0.2] - found[0.0]))
    assert not torch.allclose(found[0.2], found[0.0], atol=1e-6)


def test_lambda_by_depth() -> None:
    assert [distill_weight(SCD, depth) for depth in (4, 12, 24, 40)] == [0.2, 0.2, 0.4, 0.4]
    assert distill_weight(DistillStageConfig(weight=0.0), 24) == 0
    with pytest.raises(UserError, match=r"distill\.weight=-0\.1"):
        distill_weight(DistillStageConfig(weight=-0.1), 12)


@pytest.mark.parametrize("refined", [False, True])
def test_one_pass_of_the_student_serves_both_terms(refined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch, passes = rla_task(distill=SCD, refined=refined), rla_batch(), []
    tokens = DenseEncoder.tokens

    def counted(self: DenseEncoder, x: Tensor, positions: Tensor | None = None) -> Tensor:
        passes.append(self is task.student)
        return tokens(self, x, positions)

    monkeypatch.setattr(DenseEncoder, "tokens", counted)
    task(batch)
    assert passes.count(True) == 1


def test_regiontext_has_no_teacher_and_leaves_boxes_without_a_noun_out() -> None:
    task, batch = rla_task("regiontext"), rla_batch()
    assert task.teacher is None
    regions = regions_of(batch)
    assert regions.nouns is not None
    nouns = regions.nouns.clone()
    nouns[1, 1] = -1
    without, fewer = with_regions(batch, nouns=nouns), regions.valid.clone()
    fewer[1, 1] = False
    assert value(task, without) == value(task, with_regions(batch, valid=fewer)) != value(task, batch)


def test_regiontext_rises_with_the_cosine_of_the_own_noun() -> None:
    batch = rla_batch()
    task = rla_task("regiontext", rla=RlaConfig(sampled=NOUNS))
    regions = regions_of(batch)
    assert regions.nouns is not None and task.nouns is not None
    with torch.no_grad():
        features = task.features(task.student.dense(batch.pictures), regions.boxes, regions.valid)
    best = (features @ task.nouns.T).argmax(dim=1)
    nouns = regions.nouns.clone()
    nouns[regions.valid] = best
    assert value(task, with_regions(batch, nouns=nouns)) < value(task, batch)


def test_federated_classes_follow_seed_and_step() -> None:
    batch = rla_batch()

    def loss(seed: int, step: int) -> float:
        task = RlaTask(frozen_copy(tiny_clip()), None, RlaConfig(sampled=5), "regiontext", text=noun_text(), seed=seed)
        task.begin(step)
        return value(task, batch)

    assert loss(0, 3) == loss(0, 3)
    assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3


def test_scale_is_the_texts() -> None:
    batch, student = rla_batch(), frozen_copy(tiny_clip())
    found = [
        value(RlaTask(student, None, RlaConfig(), "regiontext", text=noun_text(scale=scale)), batch)
        for scale in (1.0, 50.0)
    ]
    assert found[1] > 3 * found[0]


def test_end_to_end_with_alignment_keeps_the_losses_apart() -> None:
    task = rla_task(distill=SCD, refined=True)
    refiner = task.refiner
    assert refiner is not None and task.teacher is not None
    refiner.head.blocks.requires_grad_(True)
    batch = rla_batch()
    batch.crops = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = EndToEndTask(RefinerTask(task.teacher, refiner, AlignConfig(), grid=GRID), task)
    out = whole(batch)
    assert {"refine_loss", "distill_rla", "distill_scd"} <= set(out)
    assert float(out["loss"].detach()) == pytest.approx(float(out["refine_loss"] + out["distill_loss"]))
    task(batch)["loss"].backward()
    names = [n for n, p in whole.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert names and all(n.startswith("distill.student.trunk.blocks.") for n in names)


def test_what_does_not_fit_is_named() -> None:
    encoder = tiny_clip()
    with pytest.raises(UserError, match="dinov2_tiny14: region-language alignment needs"):
        RlaTask(tiny_encoder(), tiny_encoder(), RlaConfig(), "clipself")
    with pytest.raises(UserError, match="objective=clipshelf"):
        RlaTask(encoder, encoder, RlaConfig(), "clipshelf")
    with pytest.raises(UserError, match=r"rla\.sampled=0"):
        RlaTask(encoder, None, RlaConfig(sampled=0), "regiontext", text=noun_text())
    with pytest.raises(UserError, match="width 7 .* has 32"):
        RlaTask(encoder, None, RlaConfig(), "regiontext", text=NounText(torch.ones(3, 7), 1.0))
    batch = rla_batch()
    regions = regions_of(batch)
    assert regions.nouns is not None
    beyond = torch.where(regions.nouns >= 0, NOUNS, -1)
    with pytest.raises(UserError, match=f"noun {NOUNS} of a box is beyond the {NOUNS} nouns"):
        rla_task("regiontext")(with_regions(batch, nouns=beyond))
    with pytest.raises(ValueError, match="no `regions`"):
        rla_task()(dataclasses.replace(batch, regions=None))
    with pytest.raises(ValueError, match="no `crops`"):
        rla_task()(with_regions(batch, crops=None))
    with pytest.raises(ValueError, match="no `nouns`"):
        rla_task("regiontext")(with_regions(batch, nouns=None))
    other = DistillTask(frozen_copy(encoder), encoder, None, SCD, grid=GRID)
    with pytest.raises(ValueError, match="same student"):
        RlaTask(frozen_copy(encoder), encoder, RlaConfig(), "clipself", distill=other)


def test_mean_over_boxes_and_not_over_images() -> None:
    batch, task = rla_batch(), rla_task()
    regions = regions_of(batch)
    assert regions.crops is not None
    features = task.features(task.student.dense(batch.pictures), regions.boxes, regions.valid).detach()
    assert task.teacher is not None
    target = task.teacher.cls(regions.crops[regions.valid])
    by_image = (clipself_loss(features[:1], target[:1]) + clipself_loss(features[1:], target[1:])) / 2
    assert value(task, batch) == pytest.approx(float(clipself_loss(features, target)), abs=1e-6)
    assert abs(float(by_image) - value(task, batch)) > 1e-3


def test_refiner_is_never_seen_by_the_alignment() -> None:
    batch, encoder = rla_batch(), tiny_clip()
    found = []
    for seed in (1, 2):
        student = frozen_copy(encoder)
        second = DistillTask(student, encoder, tiny_refiner(encoder, seed), SCD, grid=GRID)
        task = RlaTask(student, encoder, RlaConfig(), "clipself", distill=second, weight=0.2)
        found.append((value(task, batch), value(task, batch, "scd")))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]
