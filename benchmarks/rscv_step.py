#!/usr/bin/env python3
"""Times a training step of both stages against a plain composition of library calls, in one process, in turns.

    benchmarks/rscv_step.py [--backbone dinov2_vits14] [--size 224] [--steps 5] [--batch 2] [--threads N]
                            [--precision 32-true|bf16-mixed]

Reference: timm's whole teacher on the image, crops one by one, nothing kept, float32, torch's AdamW as it comes. Ours:
the same step from cached frozen features, as tools/rscv_finetune.py runs it with crops.bank and run.precision. Weights
are random and the position rule is timm's, so both sides are the same function: their losses are compared first and
must agree. Prints the median ratio.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import roi_align

from rsc_seg.config import AlignConfig, BackboneConfig, DistillStageConfig, RefinerConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder, EarlyFeatures
from rsc_seg.models.refiner import Refiner
from rsc_seg.ops.contrast import soft_target_loss
from rsc_seg.ops.correlation import scd_loss
from rsc_seg.pipelines.stream import frozen_copy
from rsc_seg.training.batch import Batch
from rsc_seg.training.cache import FeatureCache, open_cache
from rsc_seg.training.optim import make_optimizer
from rsc_seg.training.tasks import DistillTask, RefinerTask, crop_features

TOLERANCE = 1e-4
LR = 1e-9


def timm_patches(encoder: DenseEncoder, x: Tensor) -> Tensor:
    """Final patch tokens by timm's own forward pass."""
    return encoder.trunk.forward_features(x)[:, encoder.num_prefix_tokens :]


def timm_early(encoder: DenseEncoder, refiner: Refiner, x: Tensor) -> EarlyFeatures:
    """f_A's output and the taps by timm's forward_intermediates, which runs the whole encoder."""
    wanted = sorted({*refiner.taps, refiner.front_depth})
    found = encoder.trunk.forward_intermediates(
        x, indices=[n - 1 for n in wanted], return_prefix_tokens=True, norm=False, intermediates_only=True
    )
    by_number = dict(zip(wanted, found, strict=True))
    patches, prefix = by_number[refiner.front_depth]
    return EarlyFeatures(prefix, patches, torch.stack([by_number[t][0] for t in refiner.taps], dim=1))


def plain_roi(maps: Tensor, boxes: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """torchvision's RoIAlign as tokens."""
    return roi_align(maps, [b / patch for b in boxes], grid, sampling_ratio=0, aligned=True).flatten(2).transpose(1, 2)


class Bench:
    """Both sides of both stages on the same data and the same weights."""

    def __init__(self, backbone: str, size: int, batch: int, folder: Path) -> None:
        config = BackboneConfig(name=backbone, weights="none", position_rule="antialias")
        self.encoder, _ = build_backbone(config)
        torch.manual_seed(0)
        self.refiner = Refiner(self.encoder, RefinerConfig())
        self.images = torch.randn(batch, 3, size, size)
        self.crops = torch.randn(batch, 4, 3, 224, 224)
        corner = torch.rand(batch, 4, 2) * size * 0.5
        self.boxes = torch.cat([corner, corner + size * 0.45], dim=2)
        self.grid = self.encoder.grid(224, 224)
        self.cache = self._fill(folder, batch, size)

    def _fill(self, folder: Path, batch: int, size: int) -> FeatureCache:
        early = self.refiner.early(self.encoder, self.images)
        z = crop_features(self.encoder, (size, size), self.boxes, self.crops, "own")
        with torch.no_grad():
            regions = self.refiner(early, self.boxes, self.grid)
        arrays = {
            **early._asdict(),
            "crop_tokens": z.unflatten(0, (batch, 4)),
            "regions": regions.unflatten(0, (batch, 4)),
        }
        shapes = {name: tuple(t.shape[1:]) for name, t in arrays.items()}
        return open_cache(
            folder, "bench", shapes, rows=batch, dtype="float32", produce=lambda: iter([(list(range(batch)), arrays)])
        )

    def stage1(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[torch.nn.Parameter]]:
        """Losses (ours, reference) and what trains."""
        task = RefinerTask(self.encoder, self.refiner, AlignConfig(), grid=self.grid)
        rows = list(range(len(self.images)))

        def ours() -> Tensor:
            early = EarlyFeatures(*(self.cache.rows(name, rows) for name in EarlyFeatures._fields))
            tokens = self.cache.rows("crop_tokens", rows).flatten(0, 1)
            return task(Batch(boxes=self.boxes, names=[], early=early, crop_tokens=tokens))["loss"]

        def reference() -> Tensor:
            with torch.no_grad():
                target = torch.cat([timm_patches(self.encoder, crop[None]) for crop in self.crops.flatten(0, 1)])
                early = timm_early(self.encoder, self.refiner, self.images)
            return soft_target_loss(self.refiner(early, self.boxes, self.grid), target)

        return ours, reference, [p for p in self.refiner.parameters() if p.requires_grad]

    def stage2(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[torch.nn.Parameter]]:
        """Losses (ours, reference) and what trains."""
        student = frozen_copy(self.encoder)
        task = DistillTask(student, self.encoder, self.refiner, DistillStageConfig(), grid=self.grid)
        rows, patch = list(range(len(self.images))), self.encoder.patch_size

        def ours() -> Tensor:
            target = self.cache.rows("regions", rows).flatten(0, 1)
            return task(Batch(boxes=self.boxes, names=[], images=self.images, region_tokens=target))["loss"]

        def reference() -> Tensor:
            with torch.no_grad():
                target = self.refiner(timm_early(self.encoder, self.refiner, self.images), self.boxes, self.grid)
            side = student.grid(*self.images.shape[-2:])
            dense = timm_patches(student, self.images).transpose(1, 2).unflatten(2, side)
            return scd_loss(plain_roi(dense, self.boxes, patch, self.grid), target)

        return ours, reference, [p for p in student.parameters() if p.requires_grad]


def step_seconds(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Wall time of forward, backward and update."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()
    return time.perf_counter() - start


def compare(
    name: str,
    sides: tuple[Callable[[], Tensor], Callable[[], Tensor], list[torch.nn.Parameter]],
    steps: int,
    precision: str,
) -> str:
    """One line: both medians and the median of the pairwise ratios."""
    plain, reference, parameters = sides

    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return plain()

    with torch.no_grad():
        a, b = float(ours()), float(reference())
    if abs(a - b) > TOLERANCE:
        raise SystemExit(f"{name}: losses differ ({a:.6f} and {b:.6f}): the two sides do not compute the same step")
    mine, theirs = make_optimizer([{"params": parameters, "lr": LR}]), torch.optim.AdamW(parameters, lr=LR)
    pairs = [(step_seconds(ours, mine), step_seconds(reference, theirs)) for _ in range(steps + 1)][1:]
    ratio = statistics.median(b / a for a, b in pairs)
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{name}: reference {slow:.2f} s, ours ({precision}) {fast:.2f} s, {ratio:.2f}x; losses {a:.5f} and {b:.5f}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.backbone, args.size, args.batch, Path(folder))
        for name, sides in (("stage 1", bench.stage1()), ("stage 2", bench.stage2())):
            sys.stdout.write(f"{args.backbone} at {args.size}, {compare(name, sides, args.steps, args.precision)}\n")


if __name__ == "__main__":
    main()
