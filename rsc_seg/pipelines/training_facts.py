"""What sidecars and run.json say of a training: the options as they were used, and the files behind them."""

import dataclasses
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config import DistillStageConfig, OptimConfig, RlaConfig, RscvConfig
from rsc_seg.data.ground_truth import instances_file
from rsc_seg.data.rla import box_source
from rsc_seg.files import sha256_of
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.pipelines.objectives import Objective, whole_options
from rsc_seg.training.region_losses import AVERAGED_LOSSES
from rsc_seg.training.rla import distill_weight

Files = dict[str, dict[str, str]]  # option to path and hash


def file_facts(config: RscvConfig, objective: Objective, labels: Optional[Path] = None) -> Files:
    """Path and SHA-256 of every file that the boxes and nouns of a run come from, by the option that names it.

    `labels`: RegionText's labelled boxes, those that were made where no option names any.
    """
    used: dict[str, Optional[str | Path]] = {"data.proposals": config.data.proposals}
    if objective.kind == "regiontext":
        used |= {"rla.nouns": config.rla.nouns, "rla.noun_embeddings": config.rla.noun_embeddings}
        used["rla.pseudo_labels"] = labels or config.rla.pseudo_labels
    if objective.kind is not None and not _labelled(config, objective) and box_source(config.rla, config.data) == "gt":
        used["rla.boxes"] = instances_file(config.data.root, config.data.split)
    return {
        key: {"file": str(path), "sha256": sha256_of(Path(path).expanduser())}
        for key, path in used.items()
        if path is not None
    }


def _labelled(config: RscvConfig, objective: Objective) -> bool:
    return objective.kind == "regiontext" and config.rla.pseudo_labels is not None


def _rla(config: RscvConfig) -> dict[str, Any]:
    rla, side = config.rla, find_backbone(config.backbone.name).native_size
    whole: RlaConfig = dataclasses.replace(rla, crop_size=rla.crop_size or [side, side])
    return dataclasses.asdict(whole)


def _distill(distill: DistillStageConfig, weight: Optional[float]) -> dict[str, Any]:
    """Options of the distillation with lambda resolved; `ema` where the loss has it."""
    facts = dataclasses.asdict(distill) | {"weight": weight}
    for key in ("optim", "control", "refiner", "alpha", "trainable"):
        del facts[key]
    if distill.loss not in AVERAGED_LOSSES:
        del facts["ema"]
    return facts


def optim_facts(optim: OptimConfig, steps: int) -> dict[str, Any]:
    """Options of an optimiser, with the steps that it takes in place of epochs and a bound on them."""
    facts = dataclasses.asdict(optim) | {"steps": steps}
    del facts["epochs"], facts["max_steps"]
    return facts


def training_facts(config: RscvConfig, objective: Objective, distill: DistillStageConfig, depth: int) -> dict[str, Any]:
    """What sidecars and run.json say of an objective: its name, lambda, boxes, the distillation and its target.

    `distill` may differ from the configuration's, for a control.
    """
    facts: dict[str, Any] = {"objective": config.objective}
    if objective.kind is not None:
        labelled = _labelled(config, objective)
        facts["boxes"] = "labels" if labelled else box_source(config.rla, config.data)
        facts |= {"rla": _rla(config), "proposals": config.data.proposals}
    if objective.target is not None:
        weight = distill_weight(distill, depth) if objective.kind else None
        facts |= {"target": distill.target, "distill_loss": distill.loss, "distill_boxes": distill.boxes_from}
        facts |= {"lambda": weight} if objective.kind else {}
        facts["distill"] = _distill(distill, weight)
    facts |= {"trainable": distill.trainable, "end_to_end": distill.end_to_end}
    facts |= {"precision": config.run.precision, "image_size": list(config.data.image_size)}
    return facts | {"crops": dataclasses.asdict(config.crops)}


def refiner_training(config: RscvConfig, encoder: DenseEncoder, steps: int) -> dict[str, Any]:
    """What is known of stage 1: the alignment, the optimiser, and the Refiner with its depth and taps.

    `steps`: those that were made, with end to end those of both stages.
    """
    return {
        "refiner": whole_options(config.refiner, encoder),
        "align": dataclasses.asdict(config.refine.align),
        "refine_optim": optim_facts(config.refine.optim, steps),
    }
