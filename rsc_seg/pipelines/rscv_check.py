"""What can be known of a run before its first file is written: options that do not fit, parts that cannot be built."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy

from rsc_seg.config import RscvConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, trainable_parameters
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import load_refiner
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.pipelines.objectives import (
    Objective,
    open_refiner,
    refiner_facts,
    resolve_objective,
    student_task,
)
from rsc_seg.pipelines.stream import RscvData
from rsc_seg.training.optim import check_optim, total_steps
from rsc_seg.training.tasks import REGIONS, RefinerTask

STAGES = ("refiner", "distill", "all")


def make_fabric(config: RscvConfig) -> Fabric:
    """Lightning Fabric for the run section; UserError for a device or strategy that this machine has not."""
    run = config.run
    require_choice("run.strategy", run.strategy, ("auto", "ddp", "fsdp"))
    require_choice("run.precision", run.precision, ("32-true", "bf16-mixed"))
    require_choice("run.device", run.device, ("auto", "cpu", "cuda", "mps"))
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda: this machine has no usable CUDA device; use --device cpu or auto.")
    if run.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        return Fabric(
            accelerator=run.device,
            devices=run.devices,
            num_nodes=run.nodes,
            strategy=FSDPStrategy(state_dict_type="full") if run.strategy == "fsdp" else run.strategy,
            precision=run.precision,  # type: ignore[arg-type]
        )
    except Exception as e:  # Fabric reports what a machine lacks by several types
        raise UserError(
            f"run.device={run.device}, run.devices={run.devices}, run.strategy={run.strategy}: {str(e).splitlines()[0]}"
        ) from e


def check_config(config: RscvConfig, stage: str) -> Objective:
    """The objective, with sizes and `distill.target` filled in; UserError for options that cannot be."""
    fill_sizes(config.backbone.name, config.data, config.crops)
    require_choice("--stage", stage, STAGES)
    objective, distill = resolve_objective(config), config.distill
    require_choice("distill.regions", distill.regions, REGIONS)
    own = objective.target is not None and distill.boxes_from == "own"
    if distill.boxes < 1 or own and 0 < config.crops.bank < distill.boxes:
        raise UserError(
            f"distill.boxes={distill.boxes}: must be 1 or more, and at most crops.bank={config.crops.bank} "
            "where there is a bank."
        )
    _check_temperatures(config, objective)
    for key, value in (("log_every", config.run.log_every), ("save_every", config.run.save_every)):
        if value < 1:
            raise UserError(f"run.{key}={value}: must be 1 or more.")
    if not 0 <= distill.alpha <= 1:
        raise UserError(f"distill.alpha={distill.alpha}: must be from 0 (the start) to 1 (the trained weights).")
    _check_stages(config, objective, stage)
    return objective


def _check_temperatures(config: RscvConfig, objective: Objective) -> None:
    """Of the losses that the objective has: others' options may hold anything."""
    align, distill = config.refine.align, config.distill
    found: dict[str, float] = {}
    if objective.has_refiner:
        found |= {f"refine.align.{key}": getattr(align, key) for key in ("temperature", "target_temperature")}
    if objective.target is not None:
        found |= {f"distill.{key}": getattr(distill, key) for key in ("temperature_student", "temperature_teacher")}
    for key, value in found.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{key}={value}: must be a finite number above 0; the loss divides by it.")


def _check_stages(config: RscvConfig, objective: Objective, stage: str) -> None:
    distill = config.distill
    if config.run.strategy == "fsdp" and (
        stage == "all" and trains_refiner(config, objective, stage) or distill.control and stage != "refiner"
    ):
        raise UserError(
            "run.strategy=fsdp: trains one stage a process, as it leaves its modules sharded; run --stage refiner, "
            "then --stage distill, with distill.control=false."
        )
    if distill.end_to_end and stage != "all":
        raise UserError(
            "distill.end_to_end=true trains both stages at once: it needs --stage all and distill.target=refiner."
        )
    if stage == "refiner" and (distill.refiner is not None or config.objective != "rscv" and not objective.has_refiner):
        why = f"objective={config.objective} has no Refiner" if distill.refiner is None else "distill.refiner is given"
        raise UserError(f"--stage refiner: {why}, so there is nothing to train in stage 1; leave --stage out.")


def trains_refiner(config: RscvConfig, objective: Objective, stage: str) -> bool:
    """Whether a Refiner is trained in this call."""
    wanted = stage == "refiner" or stage == "all" and objective.has_refiner
    return wanted and config.distill.refiner is None


def rehearse(
    data: RscvData, objective: Objective, folder: Path, stage: str, text: Optional[NounText]
) -> dict[str, str] | None:
    """Builds what the stages need once, so that what does not fit fails before anything is written.

    Returns path and hash of a Refiner that another run has trained.
    """
    config, encoder = data.config, data.encoder
    with_refiner = objective.has_refiner or stage == "refiner"
    sections = ["refine.optim", "distill.optim"] if with_refiner else ["distill.optim"]
    for section in sections:
        optim = config.refine.optim if section == "refine.optim" else config.distill.optim
        check_optim(optim, section)
        total_steps(optim, len(data.source), data.fabric.world_size, section=section)
    refiner: Optional[Refiner] = None
    if with_refiner:
        data.dataset("refine").sample(0, 0)
        refiner = Refiner(encoder, config.refiner)
        RefinerTask(encoder, refiner, config.refine.align, grid=data.crop_grid, positions=config.crops.positions)
    data.dataset("distill", regions=True).sample(0, 0)
    _check_trainable(encoder, config.distill.trainable, needed=stage != "refiner")
    if stage != "refiner":
        _rehearse_student(data, objective, refiner if objective.has_refiner else None, text)
    if stage == "distill" and objective.has_refiner and config.distill.refiner is None:
        load_refiner(folder / "refiner.safetensors", encoder)
    if config.distill.refiner is None:
        return None
    open_refiner(config.distill.refiner, encoder, config.refiner)
    return refiner_facts(config.distill.refiner, folder)


def _rehearse_student(
    data: RscvData, objective: Objective, refiner: Optional[Refiner], text: Optional[NounText]
) -> None:
    encoder, config = data.encoder, data.config
    student_task(
        config,
        objective,
        student=encoder,
        teacher=encoder,
        refiner=refiner,
        distill=config.distill,
        grid=data.crop_grid,
        text=text,
    )
    encoder.requires_grad_(False).eval()


def _check_trainable(encoder: DenseEncoder, policy: str, *, needed: bool) -> None:
    try:
        names: Sequence[str] = trainable_parameters(encoder, policy)
    except UserError as e:
        raise UserError(f"distill.{e}") from e
    encoder.requires_grad_(False)
    if needed and not names:
        raise UserError(f"distill.trainable={policy}: nothing would train in stage 2; name blocks, or --stage refiner.")
