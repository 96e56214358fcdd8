"""What each objective trains: which stages, which task, and the nouns and the Refiner that it needs."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from rsc_seg.config import DistillStageConfig, RefinerConfig, RscvConfig, require_choice
from rsc_seg.data.nouns import open_nouns
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.data.rla import KINDS
from rsc_seg.errors import UserError
from rsc_seg.files import sha256_of
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText, noun_text, read_noun_embeddings
from rsc_seg.models.refiner import Refiner, default_taps
from rsc_seg.models.refiner_file import load_refiner
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.training.rla import RlaTask, distill_weight
from rsc_seg.training.tasks import DistillTask, Task

_log = logging.getLogger(__name__)
PROMPTS = "clipself"  # the sentences around RegionText's nouns
CLIP_SCALE = 100.0  # at which every released CLIP's factor of cosines ends


@dataclass(frozen=True)
class Objective:
    """`kind` of region-language alignment, None: none; `target` of the distillation beside it or alone, None: none."""

    kind: Optional[str]
    target: Optional[str]

    @property
    def has_refiner(self) -> bool:
        """Whether a Refiner is trained or loaded."""
        return self.target == "refiner"


OBJECTIVES = {
    "rscv": Objective(None, "refiner"),
    "scd": Objective(None, "teacher"),
    **{
        f"{prefix}{kind}": Objective(kind, target)
        for kind in KINDS
        for prefix, target in (("", None), ("sc-", "teacher"), ("r-sc-", "refiner"))
    },
}

_KIND_TITLES = {"clipself": "CLIPSelf", "regiontext": "RegionText"}


def objective_title(name: str) -> str:
    """The method's name in print, such as R-SC-CLIPSelf."""
    kind = OBJECTIVES[name].kind
    if kind is None:
        return {"rscv": "R-SC-V", "scd": "SCD"}[name]
    return name.removesuffix(kind).upper() + _KIND_TITLES[kind]


def resolve_objective(config: RscvConfig) -> Objective:
    """What `config.objective` stands for; gives `distill.target` the value that follows from it, in place.

    With rscv `distill.target` is the user's own. Raises UserError for an unknown objective and for options that it has
    no use for.
    """
    require_choice("objective", config.objective, tuple(OBJECTIVES))
    require_choice("distill.target", config.distill.target, ("refiner", "teacher"))
    found, name = OBJECTIVES[config.objective], config.objective
    if name == "rscv":
        found = dataclasses.replace(found, target=config.distill.target)
    config.distill.target = found.target or "teacher"
    row = find_backbone(config.backbone.name)
    if found.kind is not None and row.joint_dim is None:
        raise UserError(
            f"objective={name}: region-language alignment needs a CLIP, and backbone {row.name} shares no space with "
            "text; choose one such as clip_vitb16, or objective=rscv."
        )
    if name != "rscv" and config.distill.control and not found.has_refiner:
        raise UserError(
            f"distill.control=true: the control is the same run without a Refiner, and objective={name} has none."
        )
    if config.distill.refiner is not None and (not found.has_refiner or config.distill.end_to_end):
        why = "distill.end_to_end=true trains its own" if found.has_refiner else f"objective={name} has none"
        raise UserError(f"distill.refiner={config.distill.refiner}: names a Refiner, but {why}; leave it out.")
    if config.distill.end_to_end and not found.has_refiner:
        raise UserError(f"distill.end_to_end=true trains a Refiner along, and objective={name} has none.")
    return found


def nouns_of(config: RscvConfig, device: torch.device) -> NounText:
    """RegionText's nouns as embeddings, made by the backbone's text tower or read from `rla.noun_embeddings`.

    Where a file is given and the text tower cannot be had, the factor of cosines is 100, CLIP's usual one. Raises
    UserError for what cannot be had or does not fit.
    """
    backbone, file = config.backbone, config.rla.noun_embeddings
    nouns = open_nouns(config.rla)
    try:
        tower = build_text_tower(backbone.name, backbone.weights, device=device)
    except UserError as e:
        if file is None:
            raise UserError(f"{e} Embeddings of the nouns can be given instead: rla.noun_embeddings.") from e
        width = find_backbone(backbone.name).joint_dim or 0
        _log.warning("no text tower (%s): the factor of cosines is %g", e, CLIP_SCALE)
        return NounText(read_noun_embeddings(file, nouns=len(nouns), width=width).to(device), CLIP_SCALE)
    sentences = class_sentences(nouns.names, open_prompts(PROMPTS))
    return noun_text(tower, sentences, file=file, cached=backbone.weights != "none")


def student_task(
    config: RscvConfig,
    objective: Objective,
    *,
    student: DenseEncoder,
    teacher: DenseEncoder,
    refiner: Optional[Refiner],
    distill: DistillStageConfig,
    grid: tuple[int, int],
    text: Optional[NounText],
) -> Task:
    """The task of stage 2; `distill` may differ from the configuration's, for a control.

    Raises UserError for losses, numbers or encoders that do not go together.
    """
    seed = config.run.seed
    second = None
    if objective.target is not None:
        second = DistillTask(student, teacher, refiner, distill, grid=grid, seed=seed)
    if objective.kind is None:
        assert second is not None  # every objective trains something
        return second
    return RlaTask(
        student,
        teacher if objective.kind == "clipself" else None,
        config.rla,
        objective.kind,
        text=text,
        distill=second,
        weight=distill_weight(distill, student.depth),
        trainable=distill.trainable,
        seed=seed,
    )


def distillation_of(task: Task) -> Optional[DistillTask]:
    """The distillation of a task of stage 2; None for region-language alignment alone."""
    if isinstance(task, RlaTask):
        return task.distill
    assert isinstance(task, DistillTask)
    return task


def whole_options(options: RefinerConfig, encoder: DenseEncoder) -> dict[str, Any]:
    """The options with the values that are left to the encoder."""
    depth = options.depth or min(encoder.row.head_blocks, encoder.depth - 1)
    taps = list(options.taps or default_taps(encoder.depth, depth))
    return dataclasses.asdict(options) | {"depth": depth, "taps": taps}


def open_refiner(path: str, encoder: DenseEncoder, options: RefinerConfig) -> Refiner:
    """The frozen Refiner of another run (`distill.refiner`).

    Raises UserError for one of another encoder, of other weights, or of other `refiner.*` options than these.
    """
    refiner, sidecar = load_refiner(Path(path).expanduser(), encoder)
    theirs = whole_options(RefinerConfig(**sidecar["refiner"]), encoder)
    for key, value in whole_options(options, encoder).items():
        if theirs[key] != value:
            raise UserError(
                f"{path}: trained with refiner.{key}={theirs[key]}, this run has refiner.{key}={value} "
                "(distill.refiner); give the options that it was trained with."
            )
    return refiner


def refiner_facts(path: str, folder: Path) -> dict[str, str]:
    """Path and SHA-256 of `distill.refiner` for run.json; UserError when the run in `folder` began with other bytes."""
    facts = {"file": str(path), "sha256": sha256_of(Path(path).expanduser())}
    record = folder / "run.json"
    before = json.loads(record.read_text(encoding="utf-8")).get("refiner") if record.is_file() else None
    if before is not None and before["sha256"] != facts["sha256"]:
        raise UserError(f"{path}: is not the file that the run in {folder} began with (distill.refiner); restore it.")
    return facts
