"""A tiny encoder, batches cut from smooth random pictures, and streams of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rsc_seg.config import AlignConfig, BackboneConfig, DistillStageConfig, OptimConfig, RefinerConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.pipelines.stream import frozen_copy
from rsc_seg.training.batch import Batch
from rsc_seg.training.optim import parameter_groups
from rsc_seg.training.tasks import DistillTask, RefinerTask, Task

SIZE, CROP, GRID = (56, 84), (28, 28), (2, 2)
REFINER = RefinerConfig(hidden=32)


def tiny_encoder(seed: int = 0) -> DenseEncoder:
    """Four blocks of width 64, weights large enough for tokens to differ; frozen."""
    encoder, _ = build_backbone(BackboneConfig(name="dinov2_tiny14", weights="none"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return encoder


def tiny_refiner(encoder: DenseEncoder, seed: int = 1, noise: float = 0.0) -> Refiner:
    """A Refiner of `encoder`; `noise` moves it away from its start, where it equals the encoder."""
    torch.manual_seed(seed)
    refiner = Refiner(encoder, REFINER)
    with torch.no_grad():
        for p in refiner.parameters():
            p.add_(noise * torch.randn_like(p))
    return refiner


def cut(image: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The box of an image, resized without letterbox."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return F.interpolate(image[None, :, y0:y1, x0:x1], size=size, mode="bilinear", align_corners=False)[0]


def tiny_batch(seed: int, images: int = 2, regions: int = 2) -> Batch:
    """`images` smooth pictures, each with `regions` boxes of about half its sides and their crops."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, 3, 7, 9, generator=generator)
    x = F.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)
    corner = torch.rand(images, regions, 2, generator=generator) * torch.tensor([SIZE[1] / 2, SIZE[0] / 2])
    boxes = torch.cat([corner.round(), corner.round() + torch.tensor([SIZE[1] / 2, SIZE[0] / 2])], dim=-1)
    crops = torch.stack([torch.stack([cut(x[b], box, CROP) for box in boxes[b]]) for b in range(images)])
    return Batch(boxes=boxes, names=[f"{seed}_{b}.jpg" for b in range(images)], images=x, crops=crops)


def stream(images: int = 2) -> Callable[[int], Iterator[Batch]]:
    """`batches(start)`: batch n depends on n alone."""

    def batches(start: int) -> Iterator[Batch]:
        step = start
        while True:
            yield tiny_batch(100 + step, images)
            step += 1

    return batches


def refiner_task(encoder: DenseEncoder, align: AlignConfig | None = None, positions: str = "own") -> RefinerTask:
    """Stage 1 on the tiny encoder."""
    return RefinerTask(
        encoder, tiny_refiner(encoder), align or AlignConfig(direction="g2l"), grid=GRID, positions=positions
    )


def distill_task(
    encoder: DenseEncoder, refiner: Refiner | None = None, config: DistillStageConfig | None = None
) -> DistillTask:
    """Stage 2 on the tiny encoder."""
    if refiner is not None:
        refiner.requires_grad_(False)
    return DistillTask(frozen_copy(encoder), encoder, refiner, config or DistillStageConfig(), grid=GRID)


def optim(**changes: object) -> OptimConfig:
    """A short run's optimiser: no warm-up."""
    return OptimConfig(**{"lr": 1e-3, "warmup_steps": 0, "batch_size": 2, **changes})  # type: ignore[arg-type]


def groups(task: Task, config: OptimConfig) -> list[dict[str, object]]:
    """Parameter groups of a whole task."""
    return parameter_groups(task.named_parameters(), config)


def values(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names whose values differ."""
    return {k for k in before if not torch.equal(before[k], after[k])}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest absolute difference over all tensors."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (60, 90)) -> Path:
    """`count` smooth PNG pictures of height and width `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder
