"""A run from a configuration: its stages, the control, and what they leave in the run folder."""

import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rsc_seg.config import DistillStageConfig, OptimConfig, RscvConfig
from rsc_seg.data.images import open_images
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import load_refiner, save_refiner
from rsc_seg.models.weights import blend_states, save_encoder
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.folder import (
    awaits_second_stage,
    commands_of,
    open_run_folder,
    record_run,
    take_back,
    update_json,
)
from rsc_seg.pipelines.objectives import (
    Objective,
    distillation_of,
    nouns_of,
    open_refiner,
    student_task,
    whole_options,
)
from rsc_seg.pipelines.rscv_check import check_config, make_fabric, rehearse, trains_refiner
from rsc_seg.pipelines.stream import RscvData, frozen_copy
from rsc_seg.pipelines.training_facts import Files, file_facts, optim_facts, refiner_training, training_facts
from rsc_seg.training.checkpoint import final_parameters
from rsc_seg.training.fit import FitOptions, NotFinite, fit
from rsc_seg.training.log import RunLog
from rsc_seg.training.optim import parameter_groups, total_steps
from rsc_seg.training.tasks import DistillTask, EndToEndTask, RefinerTask, RlaTask, Task

_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What all stages of one run share."""

    config: RscvConfig
    objective: Objective
    folder: Path
    resume: bool
    fabric: Fabric
    encoder: DenseEncoder
    info: WeightsInfo
    data: RscvData
    log: RunLog
    text: Optional[NounText] = None  # of RegionText
    refiner: Optional[dict[str, str]] = None  # path and hash of another run's Refiner
    files: Files = field(default_factory=dict)  # of boxes and nouns

    def options(self, stage: str, optim: OptimConfig) -> FitOptions:
        """Steps and intervals of a stage."""
        total = total_steps(optim, len(self.data.source), self.fabric.world_size)
        run = self.config.run
        return FitOptions(stage, total, optim, log_every=run.log_every, save_every=run.save_every, resume=self.resume)

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What a sidecar says about the training."""
        data = self.config.data
        facts = {"data": data.root or data.kind, "images": len(self.data.source), "seed": self.config.run.seed}
        return {**facts, **commands_of(self.folder), "start": self.info.source, "files": self.files, **more}


def _prepare(config: RscvConfig, objective: Objective, folder: Path, resume: bool, stage: str) -> _Run:
    """Everything that can fail before the first file is written."""
    fabric = make_fabric(config)
    fabric.launch()
    source = open_images(config.data.kind, config.data.root, config.data.split, config.data.limit, config.data.every)
    encoder, info = build_backbone(config.backbone, fabric.device)
    data = RscvData(config, source, encoder, fabric, folder)
    text = nouns_of(config, fabric.device) if objective.kind == "regiontext" else None
    refiner = rehearse(data, objective, folder, stage, text)
    log = RunLog(folder, enabled=False)
    files = file_facts(config, objective, None if data.labels is None else data.labels.file.path)
    return _Run(config, objective, folder, resume, fabric, encoder, info, data, log, text, refiner, files)


def _begin(run: _Run, made: bool) -> None:
    """Opens the logs and notes the run in run.json."""
    config, zero, images = run.config, run.fabric.is_global_zero, len(run.data.source)
    run.log = RunLog(run.folder, enabled=zero, wandb_config=dataclasses.asdict(config) if config.run.wandb else None)
    if zero:
        record_run(
            run.folder,
            config,
            data=config.data.root or config.data.kind,
            images=images,
            device=str(run.fabric.device),
            weights=dataclasses.asdict(run.info),
            training=training_facts(config, run.objective, config.distill, run.encoder.depth),
            refiner=run.refiner,
            files=run.files,
        )
    said = "run folder" if made else "going on in"
    _log.info("%s %s: %s, %d images, %s weights", said, run.folder, config.objective, images, run.info.source)


def _groups(task: Task, optim: OptimConfig) -> list[dict[str, object]]:
    return parameter_groups(task.named_parameters(), optim)


def _new_refiner(run: _Run) -> Refiner:
    torch.manual_seed(run.config.run.seed)
    return Refiner(run.encoder, run.config.refiner).to(run.fabric.device)


def _save_refiner(run: _Run, refiner: Refiner, state: dict[str, Tensor], prefix: str, steps: int) -> None:
    own = {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
    refiner.load_state_dict(own, strict=False)
    if run.fabric.is_global_zero:
        config = run.config
        training = run.provenance(
            objective=config.objective,
            end_to_end=config.distill.end_to_end,
            precision=config.run.precision,
            image_size=list(config.data.image_size),
            crops=dataclasses.asdict(config.crops),
            **refiner_training(config, run.encoder, steps),
        )
        save_refiner(run.folder / "refiner.safetensors", refiner, config.refiner, run.encoder, training)


def _train(
    run: _Run, task: Task, groups: list[dict[str, object]], batches: Any, options: FitOptions
) -> dict[str, Tensor]:
    """Runs one stage and returns its trained parameters by name."""
    began = time.monotonic()
    checkpoints = fit(run.fabric, task, groups=groups, batches=batches, options=options, folder=run.folder, log=run.log)
    if run.fabric.is_global_zero:
        key, facts = f"seconds_{options.stage}", run.folder / "run.json"
        before = json.loads(facts.read_text(encoding="utf-8")).get(key, 0) if run.resume else 0
        update_json(facts, {key: round(before + time.monotonic() - began, 1), f"steps_{options.stage}": options.total})
    return final_parameters(checkpoints, options.total)


def train_refiner(run: _Run) -> Refiner:
    """Stage 1; leaves refiner.safetensors."""
    config, refiner = run.config, _new_refiner(run)
    task = RefinerTask(
        run.encoder, refiner, config.refine.align, grid=run.data.crop_grid, positions=config.crops.positions
    )
    options = run.options("refine", config.refine.optim)
    batches = run.data.refine_batches(refiner, config.refine.optim, options.total)
    state = _train(run, task, _groups(task, config.refine.optim), batches, options)
    _save_refiner(run, refiner, state, "refiner.", options.total)
    return refiner


def _facts(run: _Run, config: DistillStageConfig, steps: int) -> dict[str, Any]:
    """What the sidecar of a student says about its training, stage 1's among it where there is a Refiner."""
    facts = training_facts(run.config, run.objective, config, run.encoder.depth)
    facts["optim"] = optim_facts(config.optim, steps)
    if facts.get("target") == "refiner":
        facts |= _stage_1(run, steps)
    return facts


def _stage_1(run: _Run, steps: int) -> dict[str, Any]:
    config, sidecar = run.config, run.folder / "refiner.json"
    if run.refiner is None and config.distill.end_to_end:
        return refiner_training(config, run.encoder, steps)
    if run.refiner is not None:  # its training stands in its own sidecar
        sidecar = Path(run.refiner["file"]).expanduser().with_suffix(".json")
    training = json.loads(sidecar.read_text(encoding="utf-8")).get("training", {})
    kept = {key: training[key] for key in ("align", "refine_optim") if key in training}  # older sidecars have none
    facts = {"refiner": whole_options(config.refiner, run.encoder), **kept}
    return facts | ({"refiner_file": run.refiner} if run.refiner else {})


def _export(
    run: _Run, name: str, state: dict[str, Tensor], prefix: str, *, config: DistillStageConfig, steps: int
) -> None:
    """NAME_alpha1.safetensors (the trained weights) and NAME.safetensors (blended with the start)."""
    start = {k: v.detach().cpu() for k, v in run.encoder.trunk.state_dict().items()}
    tuned = start | {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if not run.fabric.is_global_zero:
        return
    for alpha, file in ((1.0, f"{name}_alpha1.safetensors"), (config.alpha, f"{name}.safetensors")):
        info = dataclasses.replace(
            run.info,
            training=run.provenance(alpha=alpha, **_facts(run, config, steps)),
        )
        save_encoder(run.folder / file, blend_states(start, tuned, alpha), info)


def _second_task(run: _Run, student: DenseEncoder, refiner: Optional[Refiner], config: DistillStageConfig) -> Task:
    return student_task(
        run.config,
        run.objective,
        student=student,
        teacher=run.encoder,
        refiner=refiner,
        distill=config,
        grid=run.data.crop_grid,
        text=run.text,
    )


def train_student(run: _Run, refiner: Optional[Refiner], name: str, config: DistillStageConfig) -> None:
    """Stage 2 (with name `control`: without the Refiner); leaves NAME.safetensors and NAME_alpha1.safetensors."""
    student = frozen_copy(run.encoder)
    student.gradient_checkpointing = run.config.backbone.gradient_checkpointing
    if refiner is not None:
        refiner.requires_grad_(False)
    task = _second_task(run, student, refiner, config)
    options = run.options("distill" if name == "student" else name, config.optim)
    batches = run.data.distill_batches(distillation_of(task), config.optim, options.total)
    state = _train(run, task, _groups(task, config.optim), batches, options)
    _export(run, name, state, "student.trunk.", config=config, steps=options.total)


def train_end_to_end(run: _Run) -> None:
    """E2E: both losses in each step; the Refiner's rate and the student's are their own."""
    config, refiner, student = run.config, _new_refiner(run), frozen_copy(run.encoder)
    first = RefinerTask(
        run.encoder, refiner, config.refine.align, grid=run.data.crop_grid, positions=config.crops.positions
    )
    second = _second_task(run, student, refiner, config.distill)
    assert isinstance(second, DistillTask | RlaTask)  # what a stage 2 is
    task = EndToEndTask(first, second)
    groups = parameter_groups(refiner.named_parameters(), config.refine.optim) + parameter_groups(
        student.named_parameters(), config.distill.optim
    )
    options = run.options("end_to_end", config.distill.optim)
    batches = run.data.distill_batches(distillation_of(second), config.distill.optim, options.total, with_crops=True)
    state = _train(run, task, groups, batches, options)
    _save_refiner(run, refiner, state, "refine.refiner.", options.total)
    _export(run, "student", state, "distill.student.trunk.", config=config.distill, steps=options.total)


def run_rscv(config: RscvConfig, folder: Path, *, stage: str = "all", resume: bool = False) -> None:
    """Trains what `stage` asks for (refiner, distill or all) into `folder`; see docs/architecture.md for its files."""
    objective = check_config(config, stage)
    run, made, new = _prepare(config, objective, folder, resume, stage), False, not folder.exists()
    if run.fabric.is_global_zero:
        second_stage = stage == "distill" and awaits_second_stage(folder)
        made = open_run_folder(folder, config, resume=resume, second_stage=second_stage)
    run.fabric.barrier()
    try:
        _begin(run, made)
        _train_stages(run, stage)
    except NotFinite:
        raise  # its metrics show how it came
    except UserError:
        run.log.close()
        if made:
            take_back(folder, whole=new)
        raise


def _refiner_of(run: _Run, stage: str) -> Optional[Refiner]:
    """The Refiner of the run: trained now, or read from this folder or another run's; None where none is needed."""
    file = run.config.distill.refiner
    if trains_refiner(run.config, run.objective, stage):
        return train_refiner(run)
    if not run.objective.has_refiner:
        return None
    if file is not None:
        return open_refiner(file, run.encoder, run.config.refiner).to(run.fabric.device)
    return load_refiner(run.folder / "refiner.safetensors", run.encoder)[0].to(run.fabric.device)


def _train_stages(run: _Run, stage: str) -> None:
    distill = run.config.distill
    if distill.end_to_end:
        train_end_to_end(run)
    else:
        refiner = _refiner_of(run, stage)
        if stage in ("distill", "all"):
            train_student(run, refiner, "student", distill)
    if distill.control and stage != "refiner":
        train_student(run, None, "control", dataclasses.replace(distill, target="teacher", end_to_end=False))
    run.log.tell_skipped()
    run.fabric.barrier()
