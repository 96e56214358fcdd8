"""One way in: names and files of the towers become a CatSeg."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.models.weights import UNKNOWN_LICENCE
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.seg.policy import apply_policy
from rsc_seg.seg.saved import filled_later, load_whole

log = logging.getLogger(__name__)

VERSIONS = {"updated": ("catseg", "attention"), "vanilla": ("value", "vanilla")}  # last block, policy


def options_of(version: str) -> CatSegOptions:
    """The official options of a version of `VERSIONS`."""
    return CatSegOptions().vanilla() if version == "vanilla" else CatSegOptions()


@dataclass(frozen=True)
class CatSegPlan:
    """Which towers, with which weights, in which version.

    `weights` of the image tower: `official`, `none`, or a file, such as a student of R-SC-V or R-SC-CLIPSelf; `text`:
    the like for the text tower. `version`: updated (CVPR: text encoder tuned too) or vanilla (the first: text encoder
    frozen, residual of the last block is the token itself, 80 templates). `finetune`: see `apply_policy`; empty: the
    version's own. `checkpoint`: a whole Cat-Seg, in the official names or as this project saves it, loaded last.
    `guide`: an encoder without text that joins the appearance guidance (ours). `options`: None means the version's own.
    """

    backbone: str = "clip_vitb16"
    weights: str = "official"
    text: str = "official"
    version: str = "updated"
    finetune: str = ""
    checkpoint: str = ""
    options: CatSegOptions | None = None
    guide: BackboneConfig | None = None
    attention: str = "auto"
    seed: int = 0


def _guide(config: BackboneConfig | None, device: torch.device) -> DenseEncoder | None:
    if config is None:
        return None
    guide, info = build_backbone(config, device)
    if guide.joint_dim is not None:
        raise UserError(
            f"guide={config.name}: a CLIP guides already; give an encoder without text such as dinov2_vitb14."
        )
    log.info("guide: %s, %s", guide.name, info.source)
    return guide


def build_catseg(plan: CatSegPlan, device: torch.device | str = "cpu") -> tuple[CatSeg, WeightsInfo]:
    """The model of `plan` in training mode with `requires_grad` set, and what is known about its image tower.

    The new layers are drawn from `seed`; the global random state is left as it was. Logs how many tensors the image
    tower has and how many of the model's train. Raises UserError for whatever cannot be had or does not fit.
    """
    if plan.version not in VERSIONS:
        raise UserError(f"version={plan.version}: must be one of {', '.join(VERSIONS)}.")
    last_block, policy = VERSIONS[plan.version]
    options, device = plan.options or options_of(plan.version), torch.device(device)
    config = BackboneConfig(
        name=plan.backbone,
        weights=plan.weights,
        attention=plan.attention,
        last_block=last_block,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    with torch.random.fork_rng(devices=[]), filled_later(quiet=bool(plan.checkpoint)):
        torch.manual_seed(plan.seed)
        encoder, info = build_backbone(config, device)
        if encoder.joint_dim is None:
            raise UserError(f"backbone '{plan.backbone}' has no text tower; choose a CLIP, and this one as guide.")
        text = build_text_tower(plan.backbone, plan.text, seed=plan.seed, device=device)
        model = CatSeg(encoder, text, options, guide=_guide(plan.guide, device)).to(device)
    if plan.checkpoint:
        source = load_whole(model, Path(plan.checkpoint).expanduser())
        info = dataclasses.replace(info, source=source, licence=UNKNOWN_LICENCE, note="")
    trained = apply_policy(model, plan.finetune or policy)
    held = sum(1 for name, _ in model.encoder.trunk.named_parameters() if not name.endswith(("original1", "original2")))
    log.info(
        "image tower %s (%s): %d tensors loaded; %d tensors of the model train",
        info.backbone,
        info.source,
        held,
        len(trained),
    )
    return model.train(), info
