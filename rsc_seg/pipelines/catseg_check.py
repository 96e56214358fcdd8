"""What is looked at before any process of a Cat-Seg run starts: options, device, weights, sets."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from rsc_seg.config import require_choice
from rsc_seg.config_catseg import TrainCatSegConfig
from rsc_seg.d2 import require_detectron2
from rsc_seg.data.seg_task import TaskSet, open_task_set
from rsc_seg.data.segsets import segset
from rsc_seg.errors import UserError
from rsc_seg.files import sha256_of
from rsc_seg.pipelines.catseg_folder import StartWeights, refuse_used_folder, weights_of_run
from rsc_seg.pipelines.catseg_plan import catseg_plan, sliding_options
from rsc_seg.pipelines.device import choose_device

_log = logging.getLogger(__name__)
CHECKS = ("refuse", "warn", "off")


@dataclass(frozen=True)
class CatSegJob:
    """One call of the command. `weights`: a whole Cat-Seg to start from or to evaluate."""

    config: TrainCatSegConfig
    folder: Path
    weights: Optional[Path] = None
    eval_only: bool = False
    resume: bool = False


def _check_options(config: TrainCatSegConfig) -> None:
    require_choice("test.check", config.test.check, CHECKS)
    require_choice("run.strategy", config.run.strategy, ("auto", "ddp"))
    if config.run.nodes != 1:
        raise UserError(f"run.nodes={config.run.nodes}: Cat-Seg trains on the processes of one machine.")
    least = [
        ("run.log_every", config.run.log_every, 1),
        ("run.save_every", config.run.save_every, 1),
        ("run.seed", config.run.seed, 0),
        ("test.every", config.test.every, 0),
        ("test.pictures", config.test.pictures, 0),
        ("test.view_batch", config.test.view_batch, 1),
        ("test.check_images", config.test.check_images, 1),
        ("data.workers", config.data.workers, 0),
    ]
    for key, value, lowest in least:
        if value < lowest:
            raise UserError(f"{key}={value}: must be {lowest} or more.")
    # a set has two names: ours and the catalogue's
    if not config.data.test or len({segset(name).name for name in config.data.test}) != len(config.data.test):
        raise UserError(f"data.test={config.data.test}: name at least one set to evaluate on, and none twice.")


def open_sets(job: CatSegJob) -> tuple[Optional[TaskSet], list[TaskSet]]:
    """The training set, None where nothing is trained, and the sets of the evaluation."""
    data = job.config.data
    train = None if job.eval_only else open_task_set(data.train, data, training=True)
    return train, [open_task_set(name, data, training=False) for name in data.test]


def _settled_weights(job: CatSegJob) -> Optional[Path]:
    """--weights, or what a run that goes on was begun with."""
    given = None if job.weights is None else job.weights.expanduser()
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such file of weights (--weights).")
    before = weights_of_run(job.folder)
    begun = (job.folder / "run.json").is_file()
    if job.eval_only and begun and not _same_weights(before, given):
        held = "no weights" if before is None else f"other weights, {before.path} ({before.digest or 'unknown'})"
        raise UserError(f"{job.folder}: holds the evaluation of {held}; choose another --output-dir.")
    if job.resume and not job.eval_only and begun:
        if given is not None and not _same_weights(before, given):
            began = "none" if before is None else str(before.path)
            raise UserError(f"--weights {given}: the run in {job.folder} began with {began}; leave it out.")
        if given is None and before is not None:
            given = before.path
            if not given.is_file():
                raise UserError(f"{given}: the run in {job.folder} began with it; give the same file as --weights.")
            if not _same_weights(before, given):
                raise UserError(f"{given}: not the weights that the run in {job.folder} began with; restore them.")
    return given


def _same_weights(before: Optional[StartWeights], given: Optional[Path]) -> bool:
    """Whether a file holds what a run recorded, wherever it lies; by its path where no digest was recorded."""
    if before is None or given is None:
        return before is None and given is None
    if not before.digest:
        return str(before.path) == str(given)
    return sha256_of(given).startswith(before.digest)


def check_job(job: CatSegJob) -> tuple[CatSegJob, torch.device]:
    """The job with its weights settled, and its device.

    Raises UserError for whatever can be known to be wrong before a model is built.
    """
    require_detectron2()
    from rsc_seg.d2.launch import check_processes  # first: it keeps detectron2's own warnings back
    from rsc_seg.d2.loader import check_limit
    from rsc_seg.d2.mapper import check_sizes
    from rsc_seg.d2.trainer import check_solver

    config = job.config
    _check_options(config)
    device = choose_device(config.run.device)
    check_processes(device, config.run.devices)
    check_solver(config.solver, config.run.precision, device)
    if not job.eval_only and config.solver.batch_size % config.run.devices:
        raise UserError(
            f"solver.batch_size={config.solver.batch_size}: must be a multiple of the {config.run.devices} processes."
        )
    sliding_options(config.test)
    check_sizes(config.data)
    check_limit("data.limit", config.data.limit)
    check_limit("data.test_limit", config.data.test_limit)
    refuse_used_folder(job.folder, eval_only=job.eval_only, resume=job.resume)
    job = dataclasses.replace(job, weights=_settled_weights(job))
    catseg_plan(config.clip, config.model, seed=config.run.seed, checkpoint=job.weights)
    train, tests = open_sets(job)
    if train is not None:
        train.pairs()
    for task in tests:
        note = task.segset.part(len(task.pairs()[: config.data.test_limit]))
        if note:
            _log.warning("%s: %s", task.key, note)
    return job, device
