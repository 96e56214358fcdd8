"""The trainer: the official schedule and optimiser, exact resume, mixed precision, one verdict on the numbers."""

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler
from torch.nn.utils import clip_grad_norm_

from rsc_seg.config_catseg import CatSegDataConfig, CatSegSolverConfig
from rsc_seg.d2.loader import train_loader
from rsc_seg.d2.trainer import WARMUP_FACTOR, check_solver, rate_factor
from rsc_seg.data.seg_task import open_task_set
from rsc_seg.errors import UserError
from rsc_seg.seg.policy import parameter_groups
from rsc_seg.training.fit import NotFinite
from tests.d2.sets import options, write_set
from tests.d2.training import TOTAL, Training, equal, solver

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CatSegDataConfig:
    return options(write_set(tmp_path_factory.mktemp("set")))


@pytest.mark.parametrize(("total", "warmup"), [(80, 0), (80, 13), (7, 3), (5, 5)])
def test_rates_are_those_of_detectron2(total: int, warmup: int) -> None:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER = "WarmupCosineLR", total
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.BASE_LR = warmup, WARMUP_FACTOR, 2e-4
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler, theirs = build_lr_scheduler(cfg, optimizer), []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = [2e-4 * rate_factor(step, total=total, warmup=warmup) for step in range(total)]
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-18)


def test_defaults_are_the_official_ones(data: CatSegDataConfig, tmp_path: Path) -> None:
    official = CatSegSolverConfig()
    assert (official.max_iter, official.batch_size, official.clip_norm, official.warmup_iters) == (80000, 4, 0.01, 0)
    groups = Training(tmp_path, data, official).trainer().optimizer.param_groups
    found = {g["name"]: (round(g["lr"], 12), g["weight_decay"], g["betas"]) for g in groups}
    assert found == {
        "aggregator": (2e-4, 1e-4, (0.9, 0.999)),
        "aggregator without decay": (2e-4, 0.0, (0.9, 0.999)),
        "clip": (2e-6, 1e-4, (0.9, 0.999)),
        "clip without decay": (2e-6, 0.0, (0.9, 0.999)),
    }


def test_steps_are_plain_adamw_with_clipping(data: CatSegDataConfig, tmp_path: Path) -> None:
    settings = solver(clip_norm=0.01)
    training = Training(tmp_path, data, settings)
    done, plain = training.run(), training.trainer().inner.train()
    groups = parameter_groups(plain.model, settings.lr, settings.clip_factor, settings.weight_decay)
    parameters, rates = [p for g in groups for p in g["params"]], [g["lr"] for g in groups]
    optimizer = torch.optim.AdamW(groups, fused=True)
    task = open_task_set(data.train, data, training=True)
    batches = train_loader(task, data, batch_size=2, seed=0)
    for step in range(TOTAL):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / TOTAL))
        optimizer.zero_grad()
        plain(next(batches))["loss"].backward()
        norm = clip_grad_norm_(parameters, 0.01)
        optimizer.step()
    assert equal(plain.state_dict(), done.inner.state_dict())
    assert training.rows()[-1]["grad_norm"] == float(norm) > 0.01


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_exactly(data: CatSegDataConfig, tmp_path: Path, workers: int) -> None:
    runs = [Training(tmp_path / name, data, solver(ema=0.9, warmup_iters=2)) for name in ("whole", "stopped")]
    whole = runs[0].run()
    runs[1].data = options(Path(str(data.root)), workers=workers)
    runs[1].run(stop=3)  # a step after the last checkpoint
    assert [row["step"] for row in runs[1].rows()] == [0, 1, 2]
    resumed = runs[1].run()
    assert equal(whole.inner.state_dict(), resumed.inner.state_dict())
    assert equal(whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"])
    assert whole.average is not None and resumed.average is not None
    assert equal(whole.average.average, resumed.average.average) and resumed.average.steps == TOTAL
    assert runs[0].rows() == runs[1].rows() and [row["step"] for row in runs[1].rows()] == list(range(TOTAL))
    names = [sorted(p.name for p in (r.folder / "checkpoints" / "catseg").iterdir()) for r in runs]
    assert names[0] == names[1] == ["step_00000004.pt", "step_00000006.pt"]


def test_evaluations_come_before_the_first_step_and_when_they_are_due(data: CatSegDataConfig, tmp_path: Path) -> None:
    seen: list[int] = []
    training = Training(tmp_path, data, save_every=3, evaluate_every=3)
    training.run(stop=3, evaluate=seen.append)
    assert seen == [0, 3]  # stopped behind the hooks of step 3: evaluated already
    training.run(evaluate=seen.append)
    assert seen == [0, 3, 3]  # the last one, at step 6, is the caller's
    Training(tmp_path / "none", data).run(evaluate=seen.append)
    assert seen == [0, 3, 3]


def test_loss_that_is_not_finite_changes_no_weight(
    data: CatSegDataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Training(tmp_path, data).trainer()
    task = open_task_set(data.train, data, training=True)
    batch = next(train_loader(task, data, batch_size=2, seed=0))
    bad = [{**sample, "image": sample["image"] * torch.inf} for sample in batch]
    before = {k: v.clone() for k, v in trainer.inner.state_dict().items()}
    with caplog.at_level(logging.INFO), pytest.raises(NotFinite, match=r"step 1: loss nan.*train\d\.jpg") as caught:
        trainer.fit(iter([bad]), 0, [])
    assert "No weight was changed" in str(caught.value) and equal(before, trainer.inner.state_dict())
    assert not [r for r in caplog.records if r.exc_info]  # told once, not with detectron2's traceback


def test_bf16_trains_on_the_cpu(data: CatSegDataConfig, tmp_path: Path) -> None:
    full, mixed = (Training(tmp_path / p, data, precision=p) for p in ("32-true", "bf16-mixed"))
    trainer = mixed.run()
    full.run()
    assert {p.dtype for p in trainer.trained} == {torch.float32}
    one, two = ([row["loss"] for row in training.rows()] for training in (full, mixed))
    assert one != two and one == pytest.approx(two, rel=0.05) and two[-1] < two[0]


def test_a_gradient_that_overflows_halves_the_scale_and_leaves_the_step_out(
    data: CatSegDataConfig, tmp_path: Path
) -> None:
    trainer = Training(tmp_path, data, precision="16-mixed").trainer()  # allowed on CUDA alone, as the command checks
    task = open_task_set(data.train, data, training=True)
    batches = list(itertools.islice(train_loader(task, data, batch_size=2, seed=0), 3))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = {k: v.clone() for k, v in trainer.inner.state_dict().items()}
    trainer.options.solver.max_iter = 1
    trainer.fit(iter(batches[:1]), 0, [])
    assert equal(before, trainer.inner.state_dict()) and trainer.scaler.get_scale() == 2.0**39
    trainer.scaler.update(2.0**8)
    trainer.options.solver.max_iter = 3
    trainer.fit(iter(batches[1:]), 1, [])
    assert not equal(before, trainer.inner.state_dict()) and trainer.scaler.get_scale() == 2.0**8
    kept = trainer.state.content(3)["scaler"]
    assert kept["scale"] == 2.0**8 and kept["_growth_tracker"] == 2


def test_without_clipping_the_norm_is_measured_only(data: CatSegDataConfig, tmp_path: Path) -> None:
    free, wide = (Training(tmp_path / str(n), data, solver(clip_norm=n)) for n in (None, 1e9))
    assert equal(free.run().inner.state_dict(), wide.run().inner.state_dict())
    assert free.rows() == wide.rows()


@pytest.mark.parametrize(
    ("changes", "precision", "said"),
    [
        ({"lr": -1.0}, "32-true", "solver.lr=-1.0"),
        ({"max_iter": 0}, "32-true", "solver.max_iter=0"),
        ({"warmup_iters": -1}, "32-true", "solver.warmup_iters=-1"),
        ({"clip_norm": 0.0}, "32-true", "solver.clip_norm=0.0"),
        ({"ema": 1.0}, "32-true", "solver.ema=1.0"),
        ({"weight_decay": math.nan}, "32-true", "solver.weight_decay=nan"),
        ({}, "16-mixed", "needs CUDA, this run is on cpu"),
        ({}, "bf16", "did you mean|must be one of"),
    ],
)
def test_options_that_cannot_be_used(changes: dict[str, Any], precision: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_solver(CatSegSolverConfig(**changes), precision, CPU)
