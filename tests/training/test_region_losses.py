"""Every value of distill.loss: two steps on a DINOv2 and a CLIP, gradients where they belong, what it depends on."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from rsc_seg.config import DistillStageConfig
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.passes import attending_block
from rsc_seg.ops.correlation import frobenius_loss, inter_image_loss, scd_loss
from rsc_seg.pipelines.stream import frozen_copy
from rsc_seg.training.batch import Batch
from rsc_seg.training.distill import DistillTask
from rsc_seg.training.optim import make_optimizer
from rsc_seg.training.region_losses import LOSSES
from rsc_seg.training.task import begin_step, end_step
from tests.training.clip_helpers import GRID, rla_batch, rla_task, tiny_clip
from tests.training.helpers import changed, distill_task, groups, optim, tiny_batch, tiny_encoder, tiny_refiner, values

MAKERS: dict[str, tuple[Callable[[], DenseEncoder], Callable[[int], Batch]]] = {
    "dinov2": (tiny_encoder, tiny_batch),
    "clip": (tiny_clip, rla_batch),
    "evaclip": (lambda: tiny_clip("evaclip_tiny16"), rla_batch),
}


def new_task(encoder: DenseEncoder, loss: str, **changes: object) -> DistillTask:
    config = DistillStageConfig(loss=loss, target="teacher", ema=0.9, **changes)  # type: ignore[arg-type]
    return DistillTask(frozen_copy(encoder), encoder, None, config, grid=GRID)


def train(task: DistillTask, batches: list[Batch]) -> list[float]:
    optimizer, losses = make_optimizer(groups(task, optim(lr=1e-3))), []
    for step, batch in enumerate(batches):
        begin_step(task, step)
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end_step(task)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_steps_change_what_trains_and_nothing_else(kind: str, loss: str) -> None:
    make, batch = MAKERS[kind]
    encoder = make()
    task = new_task(encoder, loss)
    with torch.no_grad():  # away from the start, where the correlations are equal and nothing is to be learnt
        for p in task.student.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    before, frozen = values(task), values(encoder)
    losses = train(task, [batch(1), batch(2)])
    assert all(0 < value < 100 for value in losses)
    moved, after = changed(before, values(task)), values(task)
    wanted = {n for n, p in task.named_parameters() if p.requires_grad}
    kept = set(task.kept())
    assert moved <= wanted | kept
    # what lies behind the attention has no gradient: decay alone moves its matrices, and nothing its vectors
    last = f"student.trunk.blocks.{attending_block(task.student)}."
    behind = {n for n in wanted if n > last and not n.startswith((f"{last}norm1", f"{last}attn.q", f"{last}attn.k"))}
    assert wanted - moved <= (behind if loss == "attention" else set())
    assert not changed(frozen, values(encoder)) and all(torch.isfinite(v.float()).all() for v in after.values())
    assert moved - wanted == {n for n in kept if not torch.equal(before[n], after[n])}
    blocks = {n for n in wanted if n.startswith("student.trunk.blocks.")}
    assert blocks and all(n.startswith("averaged.") for n in wanted - blocks)
    assert bool(wanted - blocks) == bool(kept) == (loss in ("densecl", "ibot"))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_only_where_they_belong(loss: str) -> None:
    task = new_task(tiny_clip(), loss)
    with torch.no_grad():
        for p in task.student.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    task(rla_batch(1))["loss"].backward()
    trained = [p for p in task.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)  # as several processes need
    assert all(p.grad is None for p in task.parameters() if not p.requires_grad)
    touched = {n for n, p in task.named_parameters() if p.grad is not None and bool(p.grad.any())}
    last = [n for n in touched if n.startswith(f"student.trunk.blocks.{task.student.depth - 1}.")]
    assert bool(last) == (loss != "attention")  # CLIP's last block passes values: the one before attends last
    assert any(n.startswith("student.trunk.blocks.0.") for n in touched)


def perturbed(loss: str) -> tuple[DistillTask, Batch]:
    task = new_task(tiny_clip(), loss)
    with torch.no_grad():
        for p in task.student.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return task, rla_batch(1)


@pytest.mark.parametrize("loss", ["scd", "frobenius", "inter"])
def test_token_losses_are_their_functions_of_the_regions_tokens(loss: str) -> None:
    task, batch = perturbed(loss)
    with torch.no_grad():
        target = task.target(batch.pictures, batch.boxes, None, GRID)
        pred = task.target(batch.pictures, batch.boxes, task.student.dense(batch.pictures), GRID)
        expected = {
            "scd": scd_loss(pred, target),
            "frobenius": frobenius_loss(pred, target),
            "inter": inter_image_loss(pred.unflatten(0, (2, 2)), target.unflatten(0, (2, 2))),
        }
        assert float(task(batch)["loss"]) == pytest.approx(float(expected[loss]), abs=1e-6)
    assert len({round(float(v), 4) for v in expected.values()}) == 3
    known = dataclasses.replace(batch, region_tokens=target)
    assert float(task(known)["loss"].detach()) == pytest.approx(float(expected[loss]), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_excess_is_zero_at_the_start_where_the_loss_has_a_least_value(loss: str) -> None:
    out = new_task(tiny_clip(), loss)(rla_batch(1))
    assert ("excess" in out) == (loss in ("scd", "inter", "attention"))
    if "excess" in out:
        assert abs(float(out["excess"])) < 1e-5
        assert float(perturbed(loss)[0](rla_batch(1))["excess"]) > 1e-4
    assert float(out["token_norm_max"]) >= float(out["token_norm"]) > 0


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("loss", ["frobenius", "inter"])
def test_token_losses_take_a_refiner_as_target(loss: str, refined: bool) -> None:
    encoder = tiny_encoder()
    refiner = tiny_refiner(encoder, noise=0.1) if refined else None
    out = distill_task(encoder, refiner, DistillStageConfig(loss=loss))(tiny_batch(0))
    start = 0.0 if loss == "frobenius" else float(out["loss"].detach() - out["excess"])
    assert (float(out["loss"].detach()) > start + 1e-4) == refined


def test_attention_reads_the_last_block_that_attends() -> None:
    assert attending_block(tiny_encoder()) == 3
    assert attending_block(tiny_clip()) == 2
    encoder, batch = tiny_clip(), rla_batch(1)
    for block, seen in ((1, True), (2, True), (3, False)):
        task = new_task(encoder, "attention")
        with torch.no_grad():
            task.student.trunk.blocks[block].attn.qkv.weight.mul_(1.5)
        assert (float(task(batch)["excess"]) > 1e-6) == seen, block
    value = new_task(encoder, "attention")
    with torch.no_grad():  # values have no say in attention
        value.student.trunk.blocks[2].attn.proj.weight.mul_(1.5)
    assert float(value(batch)["excess"]) < 1e-6


def test_regions_of_the_others_follow_the_option() -> None:
    for loss in ("frobenius", "inter", "attention", "densecl"):
        found = {}
        for regions in ("local", "global", "both"):
            task = new_task(tiny_clip(), loss, regions=regions)
            with torch.no_grad():
                for p in task.student.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            task.eval()  # densecl's pool stays as it is
            found[regions] = float(task(rla_batch(1))["loss"].detach())
        assert found["both"] == pytest.approx(found["local"] + found["global"], abs=1e-4)


def test_beside_alignment_with_one_pass_more_for_masked_pictures() -> None:
    batch = rla_batch(1)
    for loss in LOSSES:
        task = rla_task(distill=DistillStageConfig(loss=loss))
        out = task(batch)
        assert float(out["loss"].detach()) == pytest.approx(float(out["rla"]) + 0.2 * float(out["scd"]), abs=1e-5)
        out["loss"].backward()
        assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_what_does_not_fit_is_named() -> None:
    encoder = tiny_encoder()
    with pytest.raises(UserError, match=r"distill\.loss=frobenious: .*Did you mean.*frobenius"):
        new_task(encoder, "frobenious")
    for loss in ("attention", "densecl", "ibot"):
        with pytest.raises(UserError, match=rf"distill\.loss={loss}: .*distill\.target=teacher"):
            distill_task(encoder, tiny_refiner(encoder), DistillStageConfig(loss=loss))
    for ema in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"distill\.ema="):
            distill_task(encoder, None, DistillStageConfig(loss="densecl", ema=ema))
    with pytest.raises(UserError, match=r"reads block 3 of 4, which distill\.trainable=last_1"):
        new_task(tiny_clip(), "attention", trainable="last_1")
    with pytest.raises(UserError, match=r"distill\.loss=inter .*batch_size must be 2"):
        new_task(encoder, "inter")(tiny_batch(0, images=1))
