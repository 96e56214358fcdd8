"""Cat-Seg trained and evaluated on detectron2: objects from the configuration, stages in order, the run folder."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import torch
from torch import Tensor

from rsc_seg.config_catseg import TrainCatSegConfig
from rsc_seg.data.seg_task import TaskSet
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.catseg_check import CatSegJob, check_job, open_sets
from rsc_seg.pipelines.catseg_folder import (
    CHECKPOINTS,
    MADE,
    WEIGHTS,
    WEIGHTS_FACTS,
    EvaluationStore,
    digest_in,
    open_folder,
    row_key,
    what_counts_in_evaluation,
)
from rsc_seg.pipelines.catseg_plan import catseg_plan, sliding_options
from rsc_seg.pipelines.catseg_result import TRAINED, UNTRAINED, rows_of, write_result
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import commands_of, record_run, take_back, update_json
from rsc_seg.seg.build import build_catseg
from rsc_seg.seg.official import PREDICTOR
from rsc_seg.seg.saved import whole_state
from rsc_seg.seg.towers import ZeroShot, check_tower
from rsc_seg.training.cache import cache_key
from rsc_seg.training.fit import NotFinite
from rsc_seg.training.log import RunLog

if TYPE_CHECKING:  # importing these needs detectron2
    from rsc_seg.d2.trainer import CatSegTrainer
    from rsc_seg.d2.wrapper import CatSegD2

_log = logging.getLogger(__name__)
EVALUATION = "evaluation"  # stage of the scores in metrics.jsonl


@dataclass
class _Run:
    """What the stages share in each process; `train` is None where nothing is trained, `main` in the first process."""

    job: CatSegJob
    model: "CatSegD2"
    info: WeightsInfo
    train: Optional[TaskSet]
    tests: list[TaskSet]
    store: EvaluationStore
    log: RunLog
    main: bool
    zero_shot: Optional[ZeroShot] = None

    @property
    def config(self) -> TrainCatSegConfig:
        """The run's configuration."""
        return self.job.config


def _prepared(job: CatSegJob) -> _Run:
    """Everything that can fail before the first file is written."""
    from rsc_seg.d2.launch import is_main, local_device
    from rsc_seg.d2.wrapper import CatSegD2

    config = job.config
    device = local_device(choose_device(config.run.device))
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as the official code
    train, tests = open_sets(job)
    plan = catseg_plan(config.clip, config.model, seed=config.run.seed, checkpoint=job.weights)
    model, info = build_catseg(plan, device)
    names = (tests[0] if train is None else train).names
    wrapped = CatSegD2(model, names, sliding_options(config.test), config.test.view_batch)
    # a whole Cat-Seg by its content, wherever it lies
    weights = info.source if job.weights is None else digest_in(info.source)
    key = cache_key(options=what_counts_in_evaluation(config), weights=weights, whole=job.weights is not None)
    log = RunLog(job.folder, enabled=False)
    return _Run(job, wrapped, info, train, tests, EvaluationStore(job.folder, key), log, is_main())


def _check_samples(train: TaskSet, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` training images at even distances with their labels."""
    pairs = train.pairs()
    last, count = len(pairs) - 1, min(count, len(pairs))
    places = {round(i * last / max(1, count - 1)) for i in range(count)}
    for image, labels in (pairs[i] for i in sorted(places)):
        pixels, classes = train.load(image, labels)
        yield torch.from_numpy(np.array(pixels.transpose(2, 0, 1))), torch.from_numpy(classes)


def _check_tower(run: _Run, train: TaskSet) -> None:
    """Refuses an image tower that no training would mend; nothing of it when a whole Cat-Seg is the start."""
    test = run.config.test
    if test.check == "off" or run.job.weights is not None:
        return
    samples = _check_samples(train, test.check_images)
    try:
        run.zero_shot = check_tower(run.model.model, samples, train.names, refuse=test.check == "refuse")
    except UserError as e:
        told = str(e).replace("skip this check where random weights are meant", "give test.check=warn where they are")
        raise UserError(told) from e


def _begin(run: _Run) -> bool:
    """Opens the folder and the logs, and notes the run in run.json; True when the folder was made."""
    from rsc_seg.d2.launch import wait_for_all

    job, config, made = run.job, run.config, False
    if run.main:
        made = open_folder(job.folder, config, eval_only=job.eval_only, resume=job.resume)
    wait_for_all()
    wandb = dataclasses.asdict(config) if config.run.wandb else None
    if not job.eval_only:
        run.log = RunLog(job.folder, enabled=run.main, wandb_config=wandb)
    if run.main:
        score = {} if run.zero_shot is None else {"zero_shot": dataclasses.asdict(run.zero_shot)}
        record_run(
            job.folder,
            config,
            kind="eval" if job.eval_only else "train",
            weights_file=None if job.weights is None else str(job.weights),
            device=str(run.model.model.device),
            processes=config.run.devices,
            weights=dataclasses.asdict(run.info),
            **score,
        )
    return made


def _evaluate(run: _Run, step: Optional[int], trainer: Optional["CatSegTrainer"] = None, *, pictures: int = 0) -> None:
    """Evaluates on every set of the run that has no result yet, each kept as soon as it is there."""
    from rsc_seg.d2.evaluation import evaluate_set
    from rsc_seg.d2.launch import of_first
    from rsc_seg.d2.trainer import autocast

    row = row_key(step)
    average = None if trainer is None else trainer.average
    for task in run.tests:
        found = of_first(run.store.find(row, task.key))
        if found is None:
            with (
                nullcontext() if average is None else average.in_place(),
                autocast(run.config.run.precision, run.model.model.device),
            ):
                result = evaluate_set(run.model, task, run.config.data, pictures=pictures)
            found = result.as_dict()
            if run.main:
                run.store.keep(row, result)
        if step is not None:
            scores = {f"{task.key}_{name}": value for name, value in found["scores"].items() if value is not None}
            run.log.write(EVALUATION, step, scores)


def _trainer(run: _Run) -> "CatSegTrainer":
    from rsc_seg.d2.trainer import CatSegTrainer, TrainerOptions

    config = run.config
    options = TrainerOptions(
        config.solver,
        config.run.precision,
        run.job.folder / CHECKPOINTS,
        log_every=config.run.log_every,
        save_every=config.run.save_every,
        evaluate_every=config.test.every,
    )
    return CatSegTrainer(run.model, options)


def _fit(run: _Run, trainer: "CatSegTrainer", train: TaskSet) -> None:
    """From the last checkpoint, if any, to the last step."""
    from rsc_seg.d2.checkpoint import last_step, load_checkpoint
    from rsc_seg.d2.launch import of_first
    from rsc_seg.d2.loader import train_loader
    from rsc_seg.d2.trainer import STAGE, standard_hooks

    config, folder = run.config, trainer.options.checkpoints
    start, total = of_first(last_step(folder)), config.solver.max_iter
    if start:
        load_checkpoint(folder, start, trainer.state)
    run.log.rewind(STAGE, start)
    run.log.rewind(EVALUATION, start)
    if start >= total:
        return
    batches = train_loader(train, config.data, batch_size=config.solver.batch_size, seed=config.run.seed, start=start)
    shown = config.test.pictures
    hooks = standard_hooks(trainer, run.log, lambda step: _evaluate(run, step, trainer, pictures=0 if step else shown))
    began = time.monotonic()
    try:
        trainer.fit(batches, start, hooks)
    finally:
        if run.main:
            facts = run.job.folder / "run.json"
            before = json.loads(facts.read_text(encoding="utf-8")).get("seconds", 0)
            update_json(facts, {"seconds": round(before + time.monotonic() - began, 1)})


def _training_facts(run: _Run, train: TaskSet, trainer: "CatSegTrainer") -> dict[str, Any]:
    """What catseg.json and the weights' facts say about the training."""
    config = run.config
    run_facts = json.loads((run.job.folder / "run.json").read_text(encoding="utf-8"))
    images = len(train.pairs())
    return {
        "data": train.key,
        "images": images if config.data.limit is None else min(images, config.data.limit),
        "classes": train.classes,
        "held_out": list(config.data.held_out),
        "steps": config.solver.max_iter,
        "batch_size": config.solver.batch_size,
        "processes": config.run.devices,
        "seed": config.run.seed,
        "trained_parameters": sum(p.numel() for p in trainer.trained),
        "seconds": run_facts.get("seconds"),
        "zero_shot": run_facts.get("zero_shot"),
        "start": run.info.source,
        **commands_of(run.job.folder),
    }


def _export(run: _Run, trainer: "CatSegTrainer", training: dict[str, Any]) -> None:
    """catseg.safetensors, which --weights takes, and catseg_weights.json, which says what it is."""
    config, model = run.config, run.model.model
    with nullcontext() if trainer.average is None else trainer.average.in_place():
        state = whole_state(model)
        official = any(name.startswith(PREDICTOR) for name in state)
        facts = {
            "form": "official" if official else "own",
            "backbone": config.clip.name,
            "version": config.model.version,
            "model": dataclasses.asdict(config.model),
            "licence": run.info.licence,
            "note": run.info.note,
            "ema": config.solver.ema,
            "training": training,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        atomic_write_group(
            {
                run.job.folder / WEIGHTS_FACTS: lambda path: path.write_text(text, encoding="utf-8"),
                run.job.folder / WEIGHTS: lambda path: save_tensors(path, state),
            }
        )


def _train(run: _Run, train: TaskSet) -> None:
    """Training, export, the last evaluation, and the result."""
    from rsc_seg.d2.launch import wait_for_all

    trainer, config = _trainer(run), run.config
    _fit(run, trainer, train)
    training: Optional[dict[str, Any]] = None
    if run.main:
        training = _training_facts(run, train, trainer)
        _export(run, trainer, training)
    total = config.solver.max_iter
    _evaluate(run, total, trainer, pictures=config.test.pictures)
    if run.main:
        names: dict[Optional[int], str] = {0: UNTRAINED if run.job.weights is None else "start", total: TRAINED}
        note = "" if config.solver.ema is None else f"average of the weights, decay {config.solver.ema:g}"
        _write(run, names, note, training)
    wait_for_all()


def _evaluate_only(run: _Run) -> None:
    """Every set once, and the result."""
    from rsc_seg.d2.launch import wait_for_all

    run.model.eval()
    _evaluate(run, None, pictures=run.config.test.pictures)
    if run.main:
        weights = run.job.weights
        _write(run, {None: UNTRAINED if weights is None else weights.name}, "", None)
    wait_for_all()


def _write(run: _Run, names: dict[Optional[int], str], note: str, training: Optional[dict[str, Any]]) -> None:
    write_result(
        run.job.folder,
        run.config,
        model=run.model.model,
        store=run.store,
        tests=run.tests,
        rows=rows_of(run.store, run.tests, names=names, note=note),
        info=run.info,
        training=training,
    )


def run_catseg(job: CatSegJob) -> None:
    """What one process of a job does; the job has gone through `check_job`.

    Leaves in the folder config.yaml, run.json, evaluation/, catseg.json, classes.csv and report.html, and of a training
    run metrics.jsonl, tensorboard/, checkpoints/, catseg.safetensors and catseg_weights.json. A run that fails before
    its first checkpoint and its first finished evaluation takes back what it wrote.
    """
    new = not job.folder.exists()
    run = _prepared(job)
    if run.train is not None and not (job.resume and (job.folder / CHECKPOINTS).is_dir()):
        _check_tower(run, run.train)
    made = _begin(run)
    try:
        if run.train is None:
            _evaluate_only(run)
        else:
            _train(run, run.train)
    except NotFinite:
        raise  # its metrics show how it came
    except UserError:
        run.log.close()
        if made and not run.store.any():
            take_back(job.folder, whole=new, made=MADE)
        raise
    finally:
        run.log.close()


__all__ = ["CatSegJob", "check_job", "run_catseg"]
