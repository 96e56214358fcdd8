"""The one training loop, on Lightning Fabric."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule  # what Fabric.setup returns; it has no public name

from rsc_seg.config import OptimConfig
from rsc_seg.errors import UserError
from rsc_seg.training.batch import Batch
from rsc_seg.training.checkpoint import (
    forget_checkpoints,
    load_checkpoint,
    save_checkpoint,
    saved_steps,
)
from rsc_seg.training.log import Progress, RunLog
from rsc_seg.training.optim import lr_factor, make_optimizer, set_lr
from rsc_seg.training.task import Task, begin_step, checkpoint_names, end_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitOptions:
    """How one stage runs; `optim` gives warm-up, clipping and accumulation, `total` the optimiser steps."""

    stage: str
    total: int
    optim: OptimConfig
    log_every: int = 10
    save_every: int = 200
    resume: bool = False


class NotFinite(UserError):
    """The loss became NaN or infinite."""


def _mean_logs(fabric: Fabric, logs: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Means over micro-batches and ranks."""
    keys = list(logs[0])
    stacked = torch.stack([torch.stack([row[k].detach().float() for k in keys]) for row in logs]).mean(dim=0)
    mean = fabric.all_reduce(stacked, reduce_op="mean")
    assert isinstance(mean, torch.Tensor)  # a tensor was given
    return dict(zip(keys, mean.tolist(), strict=True))


def _advice(stage: str) -> str:
    """Which options calm a stage, by their full names."""
    sections = {"refine": ["refine"], "end_to_end": ["refine", "distill"]}.get(stage, ["distill"])
    rates = " and ".join(f"{section}.optim.lr" for section in sections)
    return f"lower {rates} or {sections[-1]}.optim.clip_norm=1"


def _step(
    fabric: Fabric,
    task: _FabricModule,
    optimizer: torch.optim.Optimizer,
    micro: list[Batch],
    step: int,
    options: FitOptions,
) -> dict[str, float]:
    """One optimiser step over its micro-batches; raises NotFinite before any weight changes."""
    rows, raw = [], cast(Task, task.module)
    for i, batch in enumerate(micro):
        begin_step(raw, step * len(micro) + i)
        with fabric.no_backward_sync(task, enabled=i < len(micro) - 1):
            out = task(batch)
            fabric.backward(out["loss"] / len(micro))
        rows.append(out)
    logs = _mean_logs(fabric, rows)
    limit = math.inf if options.optim.clip_norm is None else options.optim.clip_norm  # inf: measures, changes nothing
    norm = fabric.clip_gradients(task, optimizer, max_norm=limit, error_if_nonfinite=False)
    logs["grad_norm"] = math.nan if norm is None else float(norm)
    if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
        names = ", ".join(name for b in micro for name in b.names)
        raise NotFinite(
            f"{options.stage} step {step + 1}: loss {logs['loss']}, gradient norm {logs['grad_norm']}; batch: {names}. "
            "No weight was changed by this step. Remove bad files and go on with --resume, or start in a new "
            f"--output-dir with {_advice(options.stage)}."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    end_step(raw)
    return logs


def fit(
    fabric: Fabric,
    task: Task,
    *,
    groups: list[dict[str, object]],
    batches: Callable[[int], Iterator[Batch]],
    options: FitOptions,
    folder: Path,
    log: RunLog,
) -> Path:
    """Trains `task` for `options.total` steps and returns the folder of its checkpoints.

    `batches(start)` yields the batches from micro-step `start` on, always the same for the same `start`: with the
    checkpoint's step number that makes a resumed run equal to an uninterrupted one. Only `task(batch)` is called.
    """
    names, checkpoints = checkpoint_names(task), folder / "checkpoints" / options.stage
    optimizer = make_optimizer(groups)
    module, optimizer = fabric.setup(task, optimizer)
    if not options.resume:
        forget_checkpoints(fabric, checkpoints)
    done = saved_steps(checkpoints)
    start = done[-1] if done else 0
    if start > options.total:
        raise UserError(
            f"{checkpoints}: holds step {start}, but this run has only {options.total}; "
            "restore its config or choose another --output-dir."
        )
    if start:
        load_checkpoint(fabric, checkpoints, start, module, optimizer, names)
    log.rewind(options.stage, start)
    if start < options.total:
        _run(fabric, module, optimizer, batches, options, (start, names, checkpoints), log)
    return checkpoints


def _run(
    fabric: Fabric,
    module: _FabricModule,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterator[Batch]],
    options: FitOptions,
    where: tuple[int, list[str], Path],
    log: RunLog,
) -> None:
    start, names, checkpoints = where
    progress = Progress(options.stage, options.total, start, enabled=fabric.is_global_zero, every=options.log_every)
    stream, clock = batches(start * options.optim.accumulate), time.monotonic()
    module.train()
    for step in range(start, options.total):
        micro = [next(stream).to(fabric.device) for _ in range(options.optim.accumulate)]
        for batch in micro:
            log.skipped.update(batch.skipped)
        waited = time.monotonic() - clock
        lr = set_lr(optimizer, lr_factor(step, total=options.total, warmup=options.optim.warmup_steps))
        logs = _step(fabric, module, optimizer, micro, step, options)
        if step % options.log_every == 0 or step + 1 == options.total:
            log.write(
                options.stage, step, {**logs, "lr": lr, "seconds": time.monotonic() - clock, "data_seconds": waited}
            )
        progress.update(step + 1, {"loss": logs["loss"], "lr": lr})
        clock = time.monotonic()
        if (step + 1) % options.save_every == 0 or step + 1 == options.total:
            save_checkpoint(fabric, checkpoints, step + 1, module, optimizer, names)
    progress.close()
