"""The averaged student: once an optimiser step, kept in checkpoints, never exported, keyed draws."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from rsc_seg.config import DistillStageConfig, OptimConfig
from rsc_seg.models.passes import encoder_pass
from rsc_seg.training import ema
from rsc_seg.training.batch import Batch
from rsc_seg.training.checkpoint import final_parameters, saved_steps
from rsc_seg.training.ema import POOL, DenseContrast, MaskedTokens
from rsc_seg.training.fit import FitOptions, fit
from rsc_seg.training.log import RunLog
from rsc_seg.training.rla import RlaTask
from rsc_seg.training.task import begin_step, checkpoint_names
from tests.training.clip_helpers import GRID, SIDE, rla_batch, rla_task, tiny_clip
from tests.training.helpers import furthest, groups, optim, values

AVERAGED = ("densecl", "ibot")


class Interrupted(Exception):
    """The end of a run at an arbitrary step."""


def new_task(loss: str, kind: str = "clipself") -> RlaTask:
    return rla_task(kind, distill=DistillStageConfig(loss=loss, ema=0.5, boxes=2))


def batches(stop: int | None = None) -> Callable[[int], Iterator[Batch]]:
    def from_start(start: int) -> Iterator[Batch]:
        step = start
        while stop is None or step < stop:
            yield rla_batch(100 + step)
            step += 1
        raise Interrupted

    return from_start


def run(folder: Path, task: RlaTask, *, total: int = 4, stop: int | None = None, **changes: object) -> Path:
    config: OptimConfig = optim(lr=1e-3, **changes)
    options = FitOptions("distill", total, config, log_every=1, save_every=1, resume=True)
    return fit(
        Fabric(accelerator="cpu", devices=1),
        task,
        groups=groups(task, config),
        batches=batches(stop),
        options=options,
        folder=folder,
        log=RunLog(folder),
    )


@pytest.mark.parametrize("loss", AVERAGED)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, loss: str) -> None:
    whole, kind = new_task(loss, "regiontext"), "regiontext"
    run(tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", new_task(loss, kind), stop=2)
    assert saved_steps(tmp_path / "parts" / "checkpoints" / "distill") == [1, 2]
    resumed = new_task(loss, kind)
    run(tmp_path / "parts", resumed)
    assert furthest(values(whole), values(resumed)) == 0
    lines = [
        [json.loads(x) for x in (tmp_path / f / "metrics.jsonl").read_text().splitlines()] for f in ("whole", "parts")
    ]
    assert [row["loss"] for row in lines[0]] == [row["loss"] for row in lines[1]]
    without = new_task(loss, kind)  # the checkpoint matters: what was averaged is far from the start
    assert furthest(values(whole.distill.averaged), values(without.distill.averaged)) > 1e-3


@pytest.mark.parametrize("loss", AVERAGED)
def test_checkpoint_holds_the_averages_and_the_students_part_stands_alone(tmp_path: Path, loss: str) -> None:
    task = new_task(loss)
    state = final_parameters(run(tmp_path, task, total=1), 1)
    assert set(state) == set(checkpoint_names(task))
    blocks = {n for n in state if n.startswith("student.trunk.")}
    assert blocks == {n for n, p in task.named_parameters() if p.requires_grad and n.startswith("student.")}
    assert state.keys() - blocks and all(n.startswith("distill.averaged.") for n in state.keys() - blocks)
    averages = {n for n in state if n.startswith("distill.averaged.average.")}
    assert {n.removeprefix("distill.averaged.average.") for n in averages} == {
        n.removeprefix("student.") for n in blocks
    }


@pytest.mark.parametrize("loss", AVERAGED)
def test_follows_once_an_optimiser_step_and_not_once_a_micro_step(
    tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = new_task(loss), []
    assert task.distill is not None and task.distill.averaged is not None
    averaged = task.distill.averaged
    name = "trunk.blocks.0.mlp.fc1.weight"
    start = averaged.average.get_parameter(name).clone()
    follow = type(averaged).follow

    def noted(self: ema.AveragedStudent, student: torch.nn.Module) -> None:
        before = self.average.get_parameter(name).clone()
        follow(self, student)  # type: ignore[arg-type]
        seen.append((before, student.get_parameter(name).detach().clone(), self.average.get_parameter(name).clone()))

    monkeypatch.setattr(type(averaged), "follow", noted)
    steps = []
    monkeypatch.setattr(task.distill, "begin", steps.append)
    run(tmp_path, task, total=2, accumulate=3)
    assert len(seen) == 2 and steps == list(range(6))
    assert torch.equal(seen[0][0], start)
    for before, student, after in seen:
        assert not torch.equal(student, before)
        torch.testing.assert_close(after, (before + student) / 2)


def test_averages_start_at_the_student_and_never_ask_for_a_gradient() -> None:
    for made in (DenseContrast, MaskedTokens):
        student = tiny_clip()
        averaged = made(student, decay=0.9, seed=0)
        assert furthest(values(averaged.average), values(student)) == 0
        assert furthest(values(averaged.head), values(averaged.average_head)) == 0
        assert not any(p.requires_grad for m in (averaged.average, averaged.average_head) for p in m.parameters())
        assert all(p.requires_grad for p in averaged.head.parameters())


def test_heads_depend_on_the_seed_alone_and_leave_the_random_state() -> None:
    first, again, other = (MaskedTokens(tiny_clip(), decay=0.9, seed=seed) for seed in (1, 1, 2))
    assert furthest(values(first), values(again)) == 0 != furthest(values(first), values(other))
    student = tiny_clip()
    state = torch.get_rng_state()
    pools = [DenseContrast(student, decay=0.9, seed=1).pool for _ in range(2)]
    assert torch.equal(*pools) and torch.equal(torch.get_rng_state(), state)


def test_masks_lie_on_the_unpadded_part_and_follow_seed_step_and_image() -> None:
    module = MaskedTokens(tiny_clip(), decay=0.9, seed=0)
    images, valid = rla_batch(0).pictures, torch.tensor([[0.0, 0.0, SIDE, SIDE / 2], [0.0, 0.0, 30.0, SIDE]])
    mask = module.mask(images, valid, 0)
    assert mask.shape == (2, 6, 6)
    assert not mask[0, 3:].any() and not mask[1, :, 2:].any()  # a patch counts where its centre lies
    for rows, inside in ((mask[0], 18), (mask[1], 12)):
        assert max(1, round(0.1 * inside)) <= int(rows.sum()) <= round(0.5 * inside)
    assert torch.equal(mask, module.mask(images, valid, 0))
    whole = module.mask(images, None, 0)
    assert not torch.equal(whole, module.mask(images, None, 1))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, MaskedTokens(tiny_clip(), decay=0.9, seed=1).mask(images, None, 0))
    counts = [int(m.sum()) for step in range(100) for m in module.mask(images, None, step)]
    assert min(counts) < 7 and max(counts) > 15 and max(counts) <= 18


def test_mask_patch_learns_and_is_what_the_student_sees() -> None:
    batch, task = rla_batch(1), new_task("ibot")
    assert task.distill is not None and isinstance(task.distill.averaged, MaskedTokens)
    module = task.distill.averaged
    loss = task.distill(batch)["loss"]
    loss.backward()
    assert module.mask_patch.grad is not None and module.mask_patch.grad.any()
    with torch.no_grad():
        module.mask_patch.add_(1.0)
    assert float(task.distill(batch)["loss"].detach()) != pytest.approx(float(loss.detach()), abs=1e-4)


def test_centre_follows_the_averaged_students_scores_in_training_only() -> None:
    batch, task = rla_batch(1), new_task("ibot")
    assert task.distill is not None and isinstance(task.distill.averaged, MaskedTokens)
    module = task.distill.averaged
    with torch.no_grad():
        tokens = module.average.dense(batch.pictures).flatten(2).transpose(1, 2)
        mean = module.average_head(tokens).mean(dim=(0, 1))
    task.eval()
    task(batch)
    assert not module.centre.any()
    task.train()
    task(batch)
    torch.testing.assert_close(module.centre, 0.1 * mean)


def test_pool_takes_region_means_in_the_place_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, task = rla_batch(1), new_task("densecl")
    assert task.distill is not None and isinstance(task.distill.averaged, DenseContrast)
    module = task.distill.averaged
    before = module.pool.clone()
    task.eval()
    task(batch)
    assert torch.equal(module.pool, before)
    task.train()
    module.place.fill_(POOL - 1)
    task(batch)  # 2 images x 2 boxes
    moved = (module.pool != before).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == [0, 1, 2, POOL - 1] and int(module.place) == 3
    torch.testing.assert_close(module.pool.norm(dim=1), torch.ones(POOL))


def test_negatives_come_from_the_pool() -> None:
    batch, task = rla_batch(1), new_task("densecl").eval()
    assert task.distill is not None and isinstance(task.distill.averaged, DenseContrast)
    module, seen = task.distill.averaged, encoder_pass(task.student, batch.pictures)
    view = module.view(batch.pictures, 0)
    with torch.no_grad():
        loss = float(module(seen, view, batch.boxes, GRID, 0.2))
        own = module.head(task.distill.target(batch.pictures, batch.boxes, seen.dense, GRID)).mean(dim=1)
        module.pool[:4] = torch.nn.functional.normalize(own, dim=1)
        assert float(module(seen, view, batch.boxes, GRID, 0.2)) > loss


def test_view_follows_seed_and_step() -> None:
    module, images = DenseContrast(tiny_clip(), decay=0.9, seed=0), rla_batch(1).pictures
    assert torch.equal(module.view(images, 3), module.view(images, 3))
    assert not torch.equal(module.view(images, 3), module.view(images, 4))
    assert not torch.equal(module.view(images, 3), module.average.dense(images.flip(-1)))


def test_begin_reaches_tasks_inside_tasks() -> None:
    task = new_task("ibot")
    begin_step(task, 17)
    assert task.step == 17 and task.distill is not None and task.distill.step == 17
