"""A tiny CLIP and batches with the regions of region-language alignment."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.config import BackboneConfig, DistillStageConfig, RefinerConfig, RlaConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.refiner import Refiner
from rsc_seg.pipelines.stream import frozen_copy
from rsc_seg.training.batch import Batch, Regions
from rsc_seg.training.distill import DistillTask
from rsc_seg.training.rla import RlaTask, distill_weight

SIDE, CROP, PLACES, NOUNS = 96, 64, 3, 12
GRID = (2, 2)


def tiny_clip(name: str = "clip_tiny16", seed: int = 0) -> DenseEncoder:
    """Four blocks of width 64, a joint space of 32; frozen, the same weights at every call."""
    encoder, _ = build_backbone(BackboneConfig(name=name, weights="none"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(p.mean() + 0.1 * torch.randn(p.shape, generator=generator))
    return encoder.requires_grad_(False)


def tiny_refiner(encoder: DenseEncoder, seed: int = 1) -> Refiner:
    """A frozen Refiner that differs from its start."""
    torch.manual_seed(seed)
    refiner = Refiner(encoder, RefinerConfig(hidden=32))
    with torch.no_grad():
        for p in refiner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return refiner.requires_grad_(False)


def rla_batch(seed: int = 0, images: int = 2) -> Batch:
    """Smooth pictures, two boxes each for the distillation, and regions: image i has 1 + i % PLACES of them."""
    g = torch.Generator().manual_seed(seed)
    x = F.interpolate(torch.randn(images, 3, 8, 8, generator=g), size=(SIDE, SIDE), mode="bicubic")

    def boxes(count: int) -> Tensor:
        corner = torch.rand(images, count, 2, generator=g) * SIDE / 2
        return torch.cat([corner, corner + SIDE * (0.2 + 0.3 * torch.rand(images, count, 2, generator=g))], dim=-1)

    valid = torch.arange(PLACES)[None] < 1 + torch.arange(images)[:, None] % PLACES
    crops = torch.randn(images, PLACES, 3, CROP, CROP, generator=g)
    nouns = torch.where(valid, torch.randint(0, NOUNS, valid.shape, generator=g), -1)
    regions = Regions(boxes(PLACES) * valid[..., None], valid, crops, nouns)
    return Batch(boxes=boxes(2), names=[f"{seed}_{i}" for i in range(images)], images=x, regions=regions)


def share(batch: Batch, mine: slice) -> Batch:
    """Some images of a batch."""
    r = batch.regions
    assert r is not None and r.crops is not None and r.nouns is not None
    return dataclasses.replace(
        batch,
        boxes=batch.boxes[mine],
        names=batch.names[mine],
        images=batch.pictures[mine],
        regions=Regions(r.boxes[mine], r.valid[mine], r.crops[mine], r.nouns[mine]),
    )


def noun_text(seed: int = 3, scale: float = 10.0) -> NounText:
    """Unit embeddings of `NOUNS` nouns."""
    found = torch.randn(NOUNS, 32, generator=torch.Generator().manual_seed(seed))
    return NounText(F.normalize(found, dim=1), scale)


def rla_task(
    kind: str = "clipself",
    *,
    distill: DistillStageConfig | None = None,
    refined: bool = False,
    rla: RlaConfig | None = None,
    encoder: DenseEncoder | None = None,
) -> RlaTask:
    """RLA on a tiny CLIP, alone or beside a distillation (`refined`: whose target is a Refiner)."""
    encoder = encoder or tiny_clip()
    student, second = frozen_copy(encoder), None
    config = distill or DistillStageConfig()
    if distill is not None or refined:
        refiner = tiny_refiner(encoder) if refined else None
        second = DistillTask(student, encoder, refiner, config, grid=GRID)
    text, teacher = (noun_text(), None) if kind == "regiontext" else (None, encoder)
    return RlaTask(
        student,
        teacher,
        rla or RlaConfig(sampled=8),
        kind,
        text=text,
        distill=second,
        weight=distill_weight(config, encoder.depth) if second is not None else 0.0,
    )
