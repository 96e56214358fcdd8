"""A tiny Cat-Seg that trains on the set of `tests.d2.sets`, through the real trainer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.engine import HookBase
from torch import Tensor

from rsc_seg.config_catseg import CatSegDataConfig, CatSegSolverConfig
from rsc_seg.d2.checkpoint import last_step, load_checkpoint
from rsc_seg.d2.loader import train_loader
from rsc_seg.d2.trainer import STAGE, CatSegTrainer, TrainerOptions, standard_hooks
from rsc_seg.d2.wrapper import CatSegD2
from rsc_seg.data.seg_task import open_task_set
from rsc_seg.seg.policy import apply_policy
from rsc_seg.training.log import RunLog
from tests.seg.tiny import tiny_model

TOTAL = 6


def solver(**changes: Any) -> CatSegSolverConfig:
    """Six steps of two images, all blocks of both towers at the full rate."""
    given: dict[str, Any] = {"max_iter": TOTAL, "batch_size": 2, "lr": 1e-3, "clip_factor": 1.0, "clip_norm": 1.0}
    return CatSegSolverConfig(**given | changes)


def wrapped(data: CatSegDataConfig, policy: str = "full", **options: Any) -> CatSegD2:
    """A tiny model of that set's classes."""
    model = tiny_model(**options)
    apply_policy(model, policy)
    return CatSegD2(model, open_task_set(data.train, data, training=True).names)


@dataclass
class Training:
    """One run in a folder; `stop`: interrupted after so many steps."""

    folder: Path
    data: CatSegDataConfig
    solver: CatSegSolverConfig = field(default_factory=solver)
    precision: str = "32-true"
    save_every: int = 2
    evaluate_every: int = 0

    def trainer(self, **options: Any) -> CatSegTrainer:
        """A new trainer of a new model."""
        settings = TrainerOptions(
            self.solver, self.precision, self.folder / "checkpoints" / "catseg", 1, self.save_every, self.evaluate_every
        )
        return CatSegTrainer(wrapped(self.data, **options), settings)

    def run(
        self, stop: Optional[int] = None, evaluate: Optional[Callable[[int], None]] = None, **options: Any
    ) -> CatSegTrainer:
        """Trains from the last checkpoint in the folder to the end, or until it is stopped."""
        trainer, log = self.trainer(**options), RunLog(self.folder)
        start = last_step(trainer.options.checkpoints)
        if start:
            load_checkpoint(trainer.options.checkpoints, start, trainer.state)
        log.rewind(STAGE, start)
        task = open_task_set(self.data.train, self.data, training=True)
        batches = train_loader(task, self.data, batch_size=self.solver.batch_size, seed=0, start=start)
        hooks = standard_hooks(trainer, log, evaluate)
        if stop is not None:
            hooks.append(Stop(stop))
        try:
            trainer.fit(batches, start, hooks)
        except KeyboardInterrupt:
            assert stop is not None
        finally:
            log.close()
        return trainer

    def rows(self) -> list[dict[str, Any]]:
        """The log without times."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


class Stop(HookBase):
    """Ctrl-C after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.after:
            raise KeyboardInterrupt


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of nested dicts and lists, by their path."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {k: t for key, inner in items for k, t in tensors(inner, f"{name}/{key}").items()}


def equal(a: Any, b: Any) -> bool:
    """Whether two nests hold the same tensors, bit by bit."""
    one, two = tensors(a), tensors(b)
    return bool(one) and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
