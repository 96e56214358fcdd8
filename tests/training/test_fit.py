"""The loop: exact resume, accumulation, the NaN guard, clipping, what it logs."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from rsc_seg.config import OptimConfig
from rsc_seg.errors import UserError
from rsc_seg.training.batch import Batch
from rsc_seg.training.checkpoint import saved_steps
from rsc_seg.training.fit import FitOptions, NotFinite, fit
from rsc_seg.training.log import RunLog
from rsc_seg.training.tasks import Task
from tests.training.helpers import (
    changed,
    distill_task,
    furthest,
    groups,
    optim,
    refiner_task,
    stream,
    tiny_encoder,
    tiny_refiner,
    values,
)

Batches = Callable[[int], Iterator[Batch]]


class Interrupted(Exception):
    """The end of a run at an arbitrary step."""


def new_task(stage: str) -> Task:
    encoder = tiny_encoder()
    return refiner_task(encoder) if stage == "refine" else distill_task(encoder, tiny_refiner(encoder, noise=0.1))


def run(
    folder: Path,
    task: Task,
    batches: Batches,
    config: OptimConfig | None = None,
    *,
    log: RunLog | None = None,
    **options: Any,
) -> Path:
    config = config or optim(lr=1e-3, warmup_steps=2)
    fabric = Fabric(accelerator="cpu", devices=1)
    defaults = {"stage": "refine", "total": 6, "log_every": 1, "save_every": 2}
    return fit(
        fabric,
        task,
        groups=groups(task, config),
        batches=batches,
        options=FitOptions(optim=config, **{**defaults, **options}),
        folder=folder,
        log=log or RunLog(folder),
    )


def stopping(batches: Batches, after: int) -> Batches:
    """The same batches, but `after` of them only."""

    def cut(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(start)):
            if i == after:
                raise Interrupted
            yield batch

    return cut


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "after"), [("refine", 3), ("refine", 4), ("distill", 5)])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, stage: str, after: int) -> None:
    whole, parts, resumed = new_task(stage), new_task(stage), new_task(stage)
    run(tmp_path / "whole", whole, stream(), stage=stage)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", parts, stopping(stream(), after), stage=stage)
    assert saved_steps(tmp_path / "parts" / "checkpoints" / stage)[-1] == after // 2 * 2
    asked: list[int] = []

    def watched(start: int) -> Iterator[Batch]:
        asked.append(start)
        return stream()(start)

    run(tmp_path / "parts", resumed, watched, stage=stage, resume=True)
    assert asked == [after // 2 * 2]
    assert furthest(values(whole), values(resumed)) < 1e-6
    logged = rows(tmp_path / "parts")
    assert [r["step"] for r in logged] == list(range(6))
    for a, b in zip(rows(tmp_path / "whole"), logged, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6) and a["lr"] == b["lr"]


def test_resume_with_accumulation_asks_for_the_right_micro_step(tmp_path: Path) -> None:
    asked: list[int] = []

    def watched(start: int) -> Iterator[Batch]:
        asked.append(start)
        return stream()(start)

    config = optim(accumulate=3)
    with pytest.raises(Interrupted):
        run(tmp_path, new_task("refine"), stopping(stream(), 8), config, total=3)
    run(tmp_path, new_task("refine"), watched, config, total=3, resume=True)
    assert asked == [6]


def test_finished_stage_is_left_alone(tmp_path: Path) -> None:
    first = run(tmp_path, new_task("refine"), stream(), total=2)
    before = (first / "step_00000002.pt").read_bytes()

    def never(start: int) -> Iterator[Batch]:
        raise AssertionError("no batch is needed")

    assert run(tmp_path, new_task("refine"), never, total=2, resume=True) == first
    assert (first / "step_00000002.pt").read_bytes() == before
    assert [r["step"] for r in rows(tmp_path)] == [0, 1]


def test_checkpoints_beyond_the_run_are_refused(tmp_path: Path) -> None:
    run(tmp_path, new_task("refine"), stream(), total=4)
    with pytest.raises(UserError, match="holds step 4, but this run has only 3"):
        run(tmp_path, new_task("refine"), stream(), total=3, resume=True)


def test_new_run_forgets_older_checkpoints(tmp_path: Path) -> None:
    folder = run(tmp_path, new_task("refine"), stream(), total=6)
    with pytest.raises(Interrupted):
        run(tmp_path, new_task("refine"), stopping(stream(), 3), total=6)
    assert saved_steps(folder) == [2]


def halves(batch: Batch) -> list[Batch]:
    return [
        dataclasses.replace(
            batch, boxes=batch.boxes[i : i + 1], names=batch.names[i : i + 1], images=batch.pictures[i : i + 1],
            crops=batch.cuts[i : i + 1],
        )
        for i in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["refine", "distill"])
def test_two_half_batches_are_one_whole(tmp_path: Path, stage: str) -> None:
    def split(start: int) -> Iterator[Batch]:
        assert start == 0
        for batch in stream()(0):
            yield from halves(batch)

    whole, parts = new_task(stage), new_task(stage)
    run(tmp_path / "whole", whole, stream(), total=3, stage=stage)
    run(tmp_path / "parts", parts, split, optim(lr=1e-3, warmup_steps=2, accumulate=2), total=3, stage=stage)
    # Adam divides by the gradient's size, so rounding grows where a gradient is nearly zero
    assert furthest(values(whole), values(parts)) < 2e-4
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(tmp_path: Path, value: float) -> None:
    def poisoned(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(stream()(start), start):
            yield dataclasses.replace(batch, images=batch.pictures * value) if i == 3 else batch

    task, reference = new_task("refine"), new_task("refine")
    with pytest.raises(NotFinite, match=r"refine step 4: loss nan.*batch: 103_0\.jpg, 103_1\.jpg") as caught:
        run(tmp_path / "a", task, poisoned, total=6)
    assert "\n" not in str(caught.value)
    assert "new --output-dir with lower refine.optim.lr or refine.optim.clip_norm=1" in str(caught.value)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", reference, stopping(stream(), 3), total=6)
    assert changed(values(reference), values(task)) == set()
    assert saved_steps(tmp_path / "a" / "checkpoints" / "refine") == [2]
    assert [r["step"] for r in rows(tmp_path / "a")] == [0, 1, 2]


class Cliff(Task):
    """A finite loss whose gradient is not: sqrt at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """sqrt(0 * w)."""
        return {"loss": self.weight.abs().sqrt().sum()}


def test_a_gradient_that_is_not_finite_stops_as_well(tmp_path: Path) -> None:
    task = Cliff()
    with pytest.raises(NotFinite, match="loss 0.0, gradient norm nan"):
        run(tmp_path, task, stream(), total=2)
    assert float(task.weight.detach()) == 0
    assert not (tmp_path / "checkpoints").exists()


class Slope(Task):
    """A loss with a gradient of known norm: 5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """3a + 4b."""
        return {"loss": (self.weight * torch.tensor([3.0, 4.0])).sum()}


@pytest.mark.parametrize(("clip", "seen"), [(None, [3.0, 4.0]), (1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_clipping_scales_the_gradient_and_logs_its_norm_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float | None, seen: list[float]
) -> None:
    task, gradients = Slope(), []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        gradients.append(task.weight.grad.tolist())
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run(tmp_path, task, stream(), optim(clip_norm=clip), total=1)
    assert gradients == [pytest.approx(seen, abs=1e-5)]
    assert rows(tmp_path)[0]["grad_norm"] == pytest.approx(5.0)


def test_log_lines_off_a_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsc_seg.training.log"):
        run(tmp_path, new_task("refine"), stream(), total=5, log_every=2)
    lines = [r.getMessage() for r in caplog.records if r.name == "rsc_seg.training.log" and "ETA" in r.getMessage()]
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert all("loss" in line and "s/step" in line for line in lines)
    assert [r["step"] for r in rows(tmp_path)] == [0, 2, 4]
    assert set(rows(tmp_path)[0]) >= {"stage", "step", "loss", "cosine", "token_norm", "grad_norm", "lr", "seconds"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_replaced_images_are_named_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def with_skipped(start: int) -> Iterator[Batch]:
        for batch in stream()(start):
            yield dataclasses.replace(batch, skipped=[("broken.jpg", "broken.jpg: truncated")])

    log = RunLog(tmp_path)
    with caplog.at_level(logging.WARNING, "rsc_seg.training.log"):
        log.tell_skipped()
        assert not caplog.text
        for stage in ("refine", "distill"):
            run(tmp_path, new_task(stage), with_skipped, total=2, stage=stage, log=log)
        log.tell_skipped()
    assert caplog.text.count("1 unreadable images were replaced by others: broken.jpg: truncated") == 1


def test_weights_of_a_step_do_not_depend_on_logging_or_saving(tmp_path: Path) -> None:
    often, rarely = new_task("refine"), new_task("refine")
    run(tmp_path / "a", often, stream(), total=3, log_every=1, save_every=1)
    run(tmp_path / "b", rarely, stream(), total=3, log_every=100, save_every=100)
    assert changed(values(often), values(rarely)) == set()
    assert saved_steps(tmp_path / "a" / "checkpoints" / "refine") == [2, 3]
