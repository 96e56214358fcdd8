#!/usr/bin/env python3
"""Times our Cat-Seg and the official one in one process, in turns, on the same weights and images.

    python -m benchmarks.catseg --catseg CHECKOUT [--size vitb16|toy|vitl14_336] [--classes 150] [--train-classes 171]
        [--cases first cached pool2 train sliding] [--large 847] [--repeats 3] [--threads N] [--device cpu|cuda]

From the root of the repository, with a clone of github.com/cvlab-kaist/CAT-Seg and detectron2, einops, ftfy and regex
installed. Weights are seeded random numbers in float32, which changes no cost. Outputs are compared first and must
agree. Cases: `first` (one image of 384 pixels, pooling 1, text included), `cached` (the same with text at hand),
`pool2` (the same at pooling 2), `train` (one step without the optimiser, one image, pooling 2), `sliding` (one image,
640 pixels, the large vocabulary, labels out; a process for each side, whose peak memory is read). Prints medians of
wall and processor seconds and the median of the pairwise ratios, official over ours.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsc_seg.data import vocab
from rsc_seg.seg.inference import SlidingOptions, predict_labels, predict_probabilities
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.official import load_official
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.seg.policy import apply_policy
from tests.parity.official_catseg import (
    SIZES,
    official_model,
    our_model,
    seeded_labels,
    seeded_photo,
    set_official,
)

TOLERANCE = 1e-5
KINDS = ("", "old ", "red ", "small ", "wooden ", "distant ")
IN_PROCESS = ("first", "cached", "pool2", "train")


def names_of(count: int) -> list[str]:
    """That many class names of a few words: the 150 of ADE20K, then the same with adjectives."""
    known = [name for kind in KINDS for name in (kind + n for n in vocab.load("ade20k_150").names)]
    if count > len(known):
        raise SystemExit(f"at most {len(known)} classes")
    return known[:count]


class Pair:
    """Both models with the same weights, and the calls that are timed."""

    def __init__(self, args: argparse.Namespace, sides: tuple[str, ...] = ("ours", "official")) -> None:
        self.args, self.device = args, torch.device(args.device)
        size = SIZES[args.size]
        official = official_model(args.catseg.resolve(), names_of(args.classes), size)
        self.ours: CatSeg = our_model(size, replace(CatSegOptions(), class_chunk=args.chunk))
        load_official(self.ours, official.state_dict(), "official")
        self.ours.to(self.device)
        self.official: Any = official.to(self.device) if "official" in sides else None
        self.image = seeded_photo(0, 384, 384).to(self.device)
        self.large = seeded_photo(1, 640, 640).to(self.device)

    def official_image(self) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.official([{"image": self.image, "height": 384, "width": 384}])[0]["sem_seg"]
        return found

    def our_image(self, names: list[str]) -> Tensor:
        return predict_probabilities(self.ours, [self.image], names)[0]

    def inference(self, case: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        names, pool = names_of(self.args.classes), 2 if case == "pool2" else 1
        set_official(self.official, names, pool=pool)
        self.ours.options = replace(self.ours.options, eval_pool=pool)

        def ours() -> Tensor:
            if case == "first":
                self.ours.forget_classes()
            return self.our_image(names)

        def official() -> Tensor:
            if case == "first":
                self.official.sem_seg_head.predictor.cache = None
            return self.official_image()

        return ours, official

    def train(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        names = names_of(self.args.train_classes)
        labels = seeded_labels(3, len(names), 384).to(self.device)
        set_official(self.official, names, pool=2)
        apply_policy(self.ours, "attention")
        self.ours.train()
        self.official.train()

        def ours() -> Tensor:
            self.ours.zero_grad(set_to_none=True)
            loss = self.ours([self.image], names, [labels])["loss"]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        def official() -> Tensor:
            self.official.zero_grad(set_to_none=True)
            loss: Tensor = self.official([{"image": self.image, "sem_seg": labels}])["loss_sem_seg"]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        return ours, official


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """Result, wall seconds, processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def compare(pair: Pair, case: str, repeats: int) -> None:
    """Prints the medians of one case."""
    calls = pair.train() if case == "train" else pair.inference(case)
    difference = float((calls[0]() - calls[1]()).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"{case}: ours and the official result differ by {difference:.1e}")
    rows = [[timed(call, pair.device)[1:] for call in calls] for _ in range(repeats)]
    wall, cpu = ([[row[side][clock] for side in (0, 1)] for row in rows] for clock in (0, 1))
    middle = [statistics.median(column) for column in (*zip(*wall, strict=True), *zip(*cpu, strict=True))]
    ratios = [statistics.median(b / a for a, b in times) for times in (wall, cpu)]
    sys.stdout.write(
        f"{case}: official {middle[1]:.2f} s, ours {middle[0]:.2f} s, ratio {ratios[0]:.2f} (processor seconds "
        f"{middle[3]:.2f}, {middle[2]:.2f}, ratio {ratios[1]:.2f}); largest difference {difference:.1e}\n"
    )
    sys.stdout.flush()


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sliding_side(args: argparse.Namespace, side: str) -> None:
    """One side of the sliding case in this process; prints JSON."""
    pair = Pair(args, sides=(side,))
    names = names_of(args.large)

    def ours() -> Tensor:
        return predict_labels(pair.ours, [pair.large], names, sliding=SlidingOptions())[0].labels

    def official() -> Tensor:
        with torch.no_grad():
            found: Tensor = pair.official([{"image": pair.large, "height": 640, "width": 640}])[0]["sem_seg"]
        return found.argmax(dim=0)

    pair.ours.embed_classes(names)  # text is at hand on both sides; it is timed by `first`
    if side == "official":
        set_official(pair.official, names, pool=1, sliding=True)
        pair.official.sem_seg_head.predictor.cache = (
            pair.ours.embed_classes(names).transpose(0, 1)[None].transpose(1, 2)
        )
    # what a forward pass needs beside weights: the peak over what stands before it
    before = peak_bytes(pair.device)
    labels, wall, cpu = timed(ours if side == "ours" else official, pair.device)
    torch.save(labels.cpu().short(), args.labels)
    found = {"wall": wall, "cpu": cpu, "peak": peak_bytes(pair.device), "before": before}
    sys.stdout.write(json.dumps(found) + "\n")


def sliding(args: argparse.Namespace) -> None:
    """Prints times and peak memory of the large vocabulary, each side in a process of its own."""
    found, labels = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("official", "ours"):
            file = Path(folder) / f"{side}.pt"
            command = [sys.executable, "-m", "benchmarks.catseg", *sys.argv[1:], "--side", side, "--labels", str(file)]
            lines = subprocess.check_output(command, text=True).splitlines()
            found[side], labels[side] = json.loads(lines[-1]), torch.load(file)
    equal = float((labels["official"] == labels["ours"]).float().mean())
    a, b = found["official"], found["ours"]
    sys.stdout.write(
        f"sliding, {args.large} classes: official {a['wall']:.1f} s, ours {b['wall']:.1f} s, ratio "
        f"{a['wall'] / b['wall']:.2f} (processor {a['cpu'] / b['cpu']:.2f}); peak {a['peak'] / 1e9:.2f} and "
        f"{b['peak'] / 1e9:.2f} GB, {a['before'] / 1e9:.2f} and {b['before'] / 1e9:.2f} GB of them before the pass; "
        f"equal labels {equal:.5f}\n"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catseg", type=Path, required=True)
    parser.add_argument("--size", default="vitb16", choices=SIZES)
    parser.add_argument("--cases", nargs="+", default=[*IN_PROCESS, "sliding"], choices=[*IN_PROCESS, "sliding"])
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--train-classes", type=int, default=171)
    parser.add_argument("--large", type=int, default=847)
    parser.add_argument("--chunk", type=int, default=CatSegOptions().class_chunk)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=("ours", "official"), help=argparse.SUPPRESS)
    parser.add_argument("--labels", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        sliding_side(args, args.side)
        return
    inside = [case for case in args.cases if case in IN_PROCESS]
    if inside:
        pair = Pair(args)
        for case in inside:
            compare(pair, case, args.repeats)
        del pair
    if "sliding" in args.cases:
        sliding(args)


if __name__ == "__main__":
    main()
