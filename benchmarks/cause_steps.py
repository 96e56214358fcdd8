#!/usr/bin/env python3
"""Times one iteration of CAUSE's steps 1-3 against the official training loops, in one process, in turns.

    benchmarks/cause_steps.py --checkout DIR [--heads mlp tr] [--steps 1 2 3] [--batch 16] [--iterations 2]
                              [--rounds 2] [--threads N] [--no-backbone]

DIR is a checkout of the official code, which is imported and run on the CPU as it is: `train()` of train_mediator,
train_front_door_* and fine_tuning_*, with its own ViT-S/14 at random weights, on random images and labels. Ours is the
loop of rsc_seg.cause.stages on made-up tokens of ten kinds (those of random weights hardly differ), held in memory as a
cache would give them, with the same labels, batch, grid and codebook; in steps 2 and 3 with `released` gradients, which
is the official work, and with `detached` ones. Both use float32 (the official autocast does nothing on a CPU). The
first iteration of each block is left out. --no-backbone hands the official loop the very same tokens for nothing, so
that only the steps themselves are compared, on equal input.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import math
import statistics
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.stages import PROBE_GRADS, CauseOptions, train_codebook, train_head, train_probes

DIM, PATCH, CLASSES = 384, 14, 27
RESOLUTION = {"tr": 322, "mlp": 224}


@contextlib.contextmanager
def official_environment(checkout: Path) -> Iterator[None]:
    """Makes the official modules importable without a GPU and without the packages that training does not use."""
    missing = {}
    for name in ("tensorboardX", "pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils"):
        try:
            importlib.import_module(name)
        except ImportError:
            missing[name] = types.ModuleType(name)
    for name, module in missing.items():
        module.SummaryWriter = object  # type: ignore[attr-defined]
        if "." in name:
            setattr(missing["pydensecrf"], name.split(".")[1], module)

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    with (
        mock.patch.dict(sys.modules, missing),
        mock.patch.object(sys, "path", [str(checkout.resolve()), *sys.path]),
        mock.patch.object(torch.Tensor, "cuda", stay),
        mock.patch.object(nn.Module, "cuda", stay),
    ):
        yield


class Given(nn.Module):
    """In place of the backbone: tokens of the batch, without work."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens[: len(x)]


@dataclass
class Views:
    """Random views of one resolution: images and labels for the official loop, tokens for ours."""

    resolution: int
    images: Tensor
    maps: Tensor
    held: Tensor
    grid: tuple[int, int] = field(init=False)
    dim: int = DIM

    def __post_init__(self) -> None:
        self.grid = (self.resolution // PATCH, self.resolution // PATCH)

    def __len__(self) -> int:
        return 4096  # of which the same batch is read again and again

    def tokens(self, indices: Sequence[int]) -> Tensor:
        return self.held[: len(indices)].float()

    def labels(self, indices: Sequence[int]) -> Tensor:
        return self.maps[: len(indices)].short()


class Enough(Exception):
    """Ends our endless epoch."""


@dataclass
class Clock:
    """Seconds between the beginnings of iterations, the first left out."""

    marks: list[float] = field(default_factory=list)

    def __call__(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.marks)][1:] or [math.nan]


class Bench:
    """Both loops of all three steps for one head."""

    def __init__(self, kind: str, args: argparse.Namespace) -> None:
        self.kind, self.args = kind, args
        torch.manual_seed(0)
        vit = importlib.import_module("models.dinov2vit")
        vars(vit)["XFORMERS_AVAILABLE"] = False  # its attention needs a GPU
        self.vit = self._vit(vit)
        self.segment = importlib.import_module("modules.segment")
        self.parts = importlib.import_module("modules.segment_module")
        self.views = {r: self._views(r) for r in sorted({322, RESOLUTION[kind]}, reverse=True)}
        self.codes = 0.02 * (self.views[322].held.flatten(0, 1)[:2048] + torch.randn(2048, DIM))

    @staticmethod
    def _vit(vit: Any) -> nn.Module:
        def block(**options: Any) -> nn.Module:
            return vit.Block(attn_class=vit.MemEffAttention, **options)

        return vit.DinoVisionTransformer(
            patch_size=PATCH, embed_dim=DIM, depth=12, num_heads=6, mlp_ratio=4, block_fn=block
        )

    @torch.no_grad()
    def _views(self, resolution: int) -> Views:
        side = resolution // PATCH
        coarse = torch.randn(self.args.batch, 3, side // 2, side // 2)
        images = nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bilinear")
        labels = torch.randint(-1, CLASSES, (self.args.batch, 1, side // 2, side // 2)).float()
        maps = nn.functional.interpolate(labels, size=(resolution, resolution), mode="nearest")[:, 0].long()
        # random weights give tokens that hardly differ; ten kinds of tokens are what a trained encoder gives
        kinds = torch.randn(10, DIM) + 0.35 * torch.randn(1, DIM)
        held = kinds[torch.randint(10, (self.args.batch, side * side))]
        return Views(resolution, images, maps, held + 0.6 * torch.randn_like(held))

    def official(self, step: int) -> list[float]:
        """Seconds of the official iterations of a step."""
        views = self.views[322 if step == 1 else RESOLUTION[self.kind]]
        clock = Clock()

        class Loader:
            def __len__(inner) -> int:
                return self.args.iterations + 1

            def __iter__(inner) -> Iterator[dict[str, Tensor]]:
                for _ in range(len(inner)):
                    clock()
                    yield {"ind": torch.arange(len(views.images)), "img": views.images, "label": views.maps}
                clock()

        options = argparse.Namespace(
            dim=DIM, reduced_dim=90, projection_dim=2048, num_queries=views.grid[0] ** 2, n_classes=CLASSES,
            num_codebook=2048, grid=True, distributed=False, dataset="cityscapes", ckpt="x/dinov2_vit_small_14.pth",
        )  # fmt: skip
        net = self._backbone(views)
        cluster = self.parts.Cluster(options)
        quiet = (contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()))
        with quiet[0], quiet[1]:
            if step == 1:
                optimizer = torch.optim.Adam(cluster.parameters(), lr=1e-3)
                importlib.import_module("train_mediator").train(0, 0, options, net, cluster, Loader(), optimizer)
                return clock.seconds()
            segment = (self.segment.Segment_TR if self.kind == "tr" else self.segment.Segment_MLP)(options)
            cluster.codebook.data, cluster.codebook.requires_grad = self.codes.clone(), False
            if self.kind == "tr":
                segment.head.codebook = segment.head_ema.codebook = self.codes.clone()
            first = torch.optim.Adam(segment.parameters(), lr=1e-3)
            if step == 2:
                cluster.bank_init()
                self.parts.ema_init(segment.head, segment.head_ema)
                self.parts.ema_init(segment.projection_head, segment.projection_head_ema)
                run = importlib.import_module(f"train_front_door_{self.kind}").train
                run(0, 0, options, net, segment, cluster, Loader(), first, None, 0)
            else:
                second = torch.optim.Adam(cluster.parameters(), lr=1e-3)
                run = importlib.import_module(f"fine_tuning_{self.kind}").train
                run(0, 0, options, net, segment, cluster, Loader(), first, second)
        return clock.seconds()

    def _backbone(self, views: Views) -> nn.Module:
        if self.args.no_backbone:
            return Given(views.held)
        return self.vit.eval().requires_grad_(False)

    def ours(self, step: int, probe_grad: str = "released") -> list[float]:
        """Seconds of our iterations of a step."""
        views = self.views[322 if step == 1 else RESOLUTION[self.kind]]
        clock = Clock()

        def watch(*_: Any) -> None:
            clock()
            if len(clock.marks) >= self.args.iterations + 2:
                raise Enough

        options = CauseOptions(head=self.kind, batch_size=self.args.batch, lr=1e-3, share=1.0)
        model = CauseModel(self.kind, self.codes, views.grid, CLASSES)
        with contextlib.suppress(Enough):
            if step == 1:
                train_codebook(views, options, watcher=watch)
            elif step == 2:
                train_head(views, self.codes, options, probe_grad, model=model, watcher=watch)
            else:
                train_probes(views, model, self.codes, options, probe_grad, watcher=watch)
        return clock.seconds()


def compare(bench: Bench, step: int, rounds: int) -> str:
    """One line: medians over all iterations, and their ratio."""
    modes = ("released",) if step == 1 else PROBE_GRADS
    theirs: list[float] = []
    mine: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        theirs += bench.official(step)
        for mode in modes:
            mine[mode] += bench.ours(step, mode)
    slow = statistics.median(theirs)
    fast = {mode: statistics.median(values) for mode, values in mine.items()}
    ours = ", ".join(f"ours {mode} {value:.3f} s ({slow / value:.1f}x)" for mode, value in fast.items())
    return f"per iteration: official {slow:.3f} s, {ours}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", choices=("mlp", "tr"), default=["mlp", "tr"])
    parser.add_argument("--steps", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-backbone", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with official_environment(args.checkout):
        for kind in args.heads:
            bench = Bench(kind, args)
            for step in args.steps:
                sys.stdout.write(f"{kind} step {step}, {compare(bench, step, args.rounds)}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
