"""Cat-Seg's training on detectron2's loop: the official rates and clipping, mixed precision, several processes."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import EvalHook, IterationTimer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rsc_seg.config import require_choice
from rsc_seg.config_catseg import CatSegSolverConfig
from rsc_seg.d2.checkpoint import TrainingState, not_finite, save_checkpoint
from rsc_seg.d2.ema import WeightAverage
from rsc_seg.d2.wrapper import CatSegD2
from rsc_seg.errors import UserError
from rsc_seg.seg.policy import parameter_groups
from rsc_seg.training.fit import NotFinite
from rsc_seg.training.log import Progress, RunLog
from rsc_seg.training.optim import make_optimizer, set_lr

STAGE = "train"  # of the rows in metrics.jsonl
WARMUP_FACTOR = 1e-3  # detectron2's own: share of the peak rate at which a warm-up begins
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_LEAST_SCALE = 2.0**-10  # of the loss in 16-mixed: gradients that overflow even then are not finite


def check_solver(config: CatSegSolverConfig, precision: str, device: torch.device) -> None:
    """UserError, by the options' full names, for values that cannot be used."""
    require_choice("run.precision", precision, PRECISIONS)
    if precision == "16-mixed" and device.type != "cuda":
        raise UserError(f"run.precision=16-mixed: needs CUDA, this run is on {device.type}; use bf16-mixed or 32-true.")
    for key, least in (("max_iter", 1), ("batch_size", 1), ("warmup_iters", 0)):
        if getattr(config, key) < least:
            raise UserError(f"solver.{key}={getattr(config, key)}: must be {least} or more.")
    for key in ("lr", "clip_factor", "weight_decay"):
        value = getattr(config, key)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"solver.{key}={value}: must be 0 or more.")
    if config.clip_norm is not None and not config.clip_norm > 0:
        raise UserError(f"solver.clip_norm={config.clip_norm}: must be above 0, or null for no clipping.")
    if config.ema is not None and not 0 < config.ema < 1:
        raise UserError(f"solver.ema={config.ema}: must be above 0 and below 1, or null for no average.")


def rate_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at `step` (from 0), equal to detectron2's WarmupCosineLR.

    A cosine over all steps, whose beginning a linear warm-up replaces: it ends on the cosine, not at the peak.
    """
    length = min(warmup, total)
    if step < length:
        end = 0.5 * (1 + math.cos(math.pi * length / total))
        return WARMUP_FACTOR + (end - WARMUP_FACTOR) * step / length
    return 0.5 * (1 + math.cos(math.pi * step / total))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Mixed precision of a run, in training and in evaluation; in 32-true it does nothing."""
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=precision in _TYPES)


def distributed(model: CatSegD2) -> nn.Module:
    """The model as it is called in training: wrapped where there are several processes.

    From `class_length` classes on nothing is padded, so that the learnt padding has no gradient.
    """
    if comm.get_world_size() == 1:
        return model
    idle = 0 < model.model.options.class_length <= len(model.train_names)
    device = model.model.device
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=idle,
    )


@dataclass(frozen=True)
class TrainerOptions:
    """How training runs; `checkpoints` is their folder."""

    solver: CatSegSolverConfig
    precision: str
    checkpoints: Path
    log_every: int = 20
    save_every: int = 5000
    evaluate_every: int = 0


class CatSegTrainer(SimpleTrainer):
    """detectron2's trainer whose step has mixed precision, clipping, and one verdict of all processes on the numbers.

    `average` is None without solver.ema. Raises NotFinite on all processes when loss or gradient is not finite, before
    any weight changes, and when a step has made weights that are not, before they are saved, scored or exported.
    """

    def __init__(self, model: CatSegD2, options: TrainerOptions) -> None:
        solver = options.solver
        groups = parameter_groups(model.model, solver.lr, solver.clip_factor, solver.weight_decay)
        optimizer = make_optimizer([{**group, "base_lr": group["lr"]} for group in groups])
        super().__init__(distributed(model), [], optimizer)
        self.inner, self.options = model, options
        self.trained = [p for group in groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(model.model.device.type, enabled=options.precision == "16-mixed")
        self.average = None if solver.ema is None else WeightAverage(model, solver.ema)
        self.state = TrainingState(model, optimizer, self.scaler, self.average)

    def run_step(self) -> None:
        """One optimiser step over `solver.batch_size` images of all processes."""
        began = time.monotonic()
        batch = next(self._data_loader_iter)
        waited = time.monotonic() - began
        with autocast(self.options.precision, self.inner.model.device):
            loss = self.model(batch)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.after_backward()
        self.scaler.unscale_(self.optimizer)
        limit = self.options.solver.clip_norm
        # inf: measures, changes nothing
        norm = nn.utils.clip_grad_norm_(self.trained, math.inf if limit is None else limit)
        values = self._agreed(loss.detach(), norm, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        self._check_weights()
        times = {"seconds": time.monotonic() - began, "data_seconds": waited}
        self.storage.put_scalars(**values, **times, smoothing_hint=False)

    def _agreed(self, loss: Tensor, norm: Tensor, batch: list[dict[str, Any]]) -> dict[str, float]:
        """Mean loss over processes and the gradient's norm, which are equal on all; NotFinite when they are not."""
        mean = loss.float() / comm.get_world_size()
        if comm.get_world_size() > 1:
            dist.all_reduce(mean)
        values = {"loss": float(mean), "grad_norm": float(norm)}
        # a scaled gradient may overflow: that step is left out and the scale halved
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE
        if math.isfinite(values["loss"]) and (searching or math.isfinite(values["grad_norm"])):
            return values
        names = [name for part in comm.all_gather([sample["file_name"] for sample in batch]) for name in part]
        raise NotFinite(
            f"step {self.iter + 1}: loss {values['loss']}, gradient norm {values['grad_norm']}; images: "
            f"{', '.join(names)}. No weight was changed by this step. Remove bad files and go on with --resume, or "
            "start in a new --output-dir with a lower solver.lr."
        )

    def _check_weights(self) -> None:
        """NotFinite after a step whose update was not: the rate can be too high for a gradient that is in order."""
        bad = not_finite(self.state.weights())
        if bad:
            raise NotFinite(
                f"step {self.iter + 1}: the weights became not finite, such as {bad[0]}. They are neither saved nor "
                "scored, and earlier checkpoints stand; --resume would come to the same step, so start in a new "
                "--output-dir with a lower solver.lr."
            )

    def fit(self, batches: Iterator[list[dict[str, Any]]], start: int, hooks: list[HookBase]) -> None:
        """Steps `start` to solver.max_iter over `batches`, with the hooks in order and detectron2's timer before."""
        self.data_loader, self._data_loader_iter_obj = batches, None
        self.register_hooks([IterationTimer(), *hooks])
        logger = logging.getLogger("detectron2.engine.train_loop")
        logger.addFilter(_without_user_errors)
        try:
            self.train(start, self.options.solver.max_iter)
        finally:
            logger.removeFilter(_without_user_errors)


def _without_user_errors(record: logging.LogRecord) -> bool:
    """detectron2 logs every exception with its traceback; a UserError is told in one line by the command."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


class RateHook(HookBase):
    """Sets the rate of every group before its step, as a pure function of the step."""

    def __init__(self, solver: CatSegSolverConfig) -> None:
        self.solver = solver

    def before_step(self) -> None:
        """Rates of this step."""
        factor = rate_factor(self.trainer.iter, total=self.solver.max_iter, warmup=self.solver.warmup_iters)
        set_lr(self.trainer.optimizer, factor)
        # the groups' rates differ by constants; the table names the aggregator's
        self.trainer.storage.put_scalar("lr", factor * self.solver.lr, smoothing_hint=False)


class LogHook(HookBase):
    """Writes the latest numbers every so many steps and after the last one; rows as those of R-SC-V's training."""

    def __init__(self, log: RunLog, every: int) -> None:
        self.log, self.every = log, every
        self.progress: Optional[Progress] = None

    def before_train(self) -> None:
        """Begins the progress display."""
        trainer, shown = self.trainer, comm.is_main_process()
        self.progress = Progress(STAGE, trainer.max_iter, trainer.start_iter, enabled=shown, every=self.every)

    def after_step(self) -> None:
        """A row, when it is time for one."""
        step, last = self.trainer.iter, self.trainer.max_iter - 1
        latest = {key: value for key, (value, when) in self.trainer.storage.latest().items() if when == step}
        shown = {key: latest[key] for key in ("loss", "lr")}
        if step % self.every == 0 or step == last:
            row = {key: latest[key] for key in ("loss", "grad_norm", "lr", "seconds", "data_seconds")}
            self.log.write(STAGE, step, row)
        if self.progress is not None:
            self.progress.update(step + 1, shown)

    def after_train(self) -> None:
        """Ends the progress display."""
        if self.progress is not None:
            self.progress.close()


class CheckpointHook(HookBase):
    """Saves every so many steps and after the last one."""

    def __init__(self, folder: Path, state: TrainingState, every: int) -> None:
        self.folder, self.state, self.every = folder, state, every

    def after_step(self) -> None:
        """Saves, when it is time."""
        done = self.trainer.iter + 1
        if done % self.every == 0 or done == self.trainer.max_iter:
            save_checkpoint(self.folder, done, self.state)


class EvaluationHook(EvalHook):
    """detectron2's periodic evaluation, also at the step where a run begins or goes on; the last one is not its matter.

    `evaluate(step)` leaves out what it has done before, so that a run stopped during an evaluation ends it.
    """

    def __init__(self, every: int, evaluate: Callable[[int], None]) -> None:
        def now() -> dict[str, float]:
            evaluate(self.trainer.iter + self.begun)
            return {}

        super().__init__(every, now, eval_after_train=False)
        self.every, self.begun = every, 0

    def before_train(self) -> None:
        """Before the first step there is the untrained model."""
        if self.every > 0 and self.trainer.start_iter % self.every == 0:
            self._do_eval()
        self.begun = 1


def standard_hooks(
    trainer: CatSegTrainer, log: RunLog, evaluate: Optional[Callable[[int], None]] = None
) -> list[HookBase]:
    """Rates, log, checkpoints, evaluations, in this order: what is evaluated has been saved."""
    options = trainer.options
    hooks: list[HookBase] = [
        RateHook(options.solver),
        LogHook(log, options.log_every),
        CheckpointHook(options.checkpoints, trainer.state, options.save_every),
    ]
    return hooks + ([EvaluationHook(options.evaluate_every, evaluate)] if evaluate is not None else [])
