"""Writes golden/catseg_model.npz: what the official CAT-Seg model computes at toy size, seeded.

    python -m tests.parity.make_catseg_golden --catseg CHECKOUT [--out DIR] [--size toy|vitb16|vitl14_336]

From the root of the repository; see `official_catseg` for what must be installed. Tests rebuild weights and images from
their seeds, so that only outputs are stored. `--size` with a real one compares ours at once and writes nothing.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsc_seg.seg.inference import SlidingOptions, predict_probabilities
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

CLIP = "sem_seg_head.predictor.clip_model."
GOLDEN = Path(__file__).parent / "golden"
WORDS = ("wall", "building, edifice", "sky", "tree", "car-door", "person", "sea", "lamp", "rug", "fence")
STRIDE = 5  # of the logits that are kept, in both directions


@dataclass(frozen=True)
class Case:
    """One inference: the image's height and width, the result's, and the rules."""

    image: tuple[int, int]
    result: tuple[int, int]
    classes: int = 5
    pool: int = 1
    sliding: bool = False
    length: int = 256

    @property
    def names(self) -> list[str]:
        """Words, and the same with a number where there are not enough."""
        return [WORDS[i % len(WORDS)] + ("" if i < len(WORDS) else f" {i}") for i in range(self.classes)]


CASES = {
    "pool1": Case((384, 384), (48, 48)),
    "pool2": Case((384, 384), (40, 52), pool=2),
    "oblong": Case((400, 533), (41, 55), pool=2),
    "small": Case((70, 90), (70, 90)),
    "cut": Case((384, 384), (36, 36), classes=10, length=6),
    "sliding": Case((480, 640), (36, 48), classes=3, sliding=True),
    "sliding_cut": Case((500, 300), (50, 30), classes=7, sliding=True, length=4),
}
REAL = {
    **{name: CASES[name] for name in ("pool2", "oblong", "small")},
    "vocabulary": Case((384, 384), (96, 96), classes=300, pool=2),
    "sliding": CASES["sliding"],
}
TRAIN = Case((384, 384), (384, 384), pool=2)


def our_options(case: Case) -> CatSegOptions:
    """Ours for a case."""
    return CatSegOptions(pool=case.pool, eval_pool=case.pool, class_length=case.length)


def image_of(case: Case, number: int = 0) -> Tensor:
    """The seeded image of a case."""
    return seeded_photo(case.image[0] + number, *case.image)


@torch.no_grad()
def our_outputs(model: CatSeg, case: Case) -> dict[str, Tensor]:
    """Probabilities at the result's size, and the logits of one view where there is one."""
    sliding = SlidingOptions() if case.sliding else None
    found = {
        "probabilities": predict_probabilities(
            model, [image_of(case)], case.names, sizes=[case.result], sliding=sliding
        )[0]
    }
    if not case.sliding:
        found["logits"] = model([image_of(case)], case.names)["logits"][0, :, ::STRIDE, ::STRIDE]
    return found


@torch.no_grad()
def official_outputs(model: Any, case: Case) -> dict[str, Tensor]:
    """The same of the official model."""
    kept: list[Tensor] = []
    set_official(model, case.names, pool=case.pool, sliding=case.sliding, length=case.length)
    hook = model.sem_seg_head.predictor.transformer.register_forward_hook(lambda _, __, out: kept.append(out))
    height, width = case.result
    found = {"probabilities": model([{"image": image_of(case), "height": height, "width": width}])[0]["sem_seg"]}
    hook.remove()
    if not case.sliding:
        found["logits"] = kept[0][0, :, ::STRIDE, ::STRIDE]
    return found


def our_training(model: CatSeg) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of two images, one of them with ignored pixels, and the gradients by our names."""
    apply_policy(model, "attention")
    model.train()
    images = [image_of(TRAIN, i) for i in (0, 1)]
    labels = [seeded_labels(i, TRAIN.classes, 384) for i in (0, 1)]
    loss = model(images, TRAIN.names, labels)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def official_training(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of the official model, by its names."""
    set_official(model, TRAIN.names, pool=TRAIN.pool)
    model.train()
    rows = [{"image": image_of(TRAIN, i), "sem_seg": seeded_labels(i, TRAIN.classes, 384)} for i in (0, 1)]
    loss: Tensor = model(rows)["loss_sem_seg"]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def official_name(key: str) -> str:
    """Of a trainable parameter outside CLIP, or of one part of a split projection."""
    if not key.startswith(("encoder.", "text.")):
        return key.replace("aggregator.", "sem_seg_head.predictor.transformer.")
    number = next(part for part in key.split(".") if part.isdigit())
    tower = "visual." if key.startswith("encoder.") else ""
    return f"{CLIP}{tower}transformer.resblocks.{number}.attn.{'qkv'[int(key[-1])]}_proj_weight"


def without_gradient(names: Iterable[str], *, blocks: int) -> list[str]:
    """Official names whose gradient is zero but for rounding: a bias of keys shifts all scores of a query alike, and
    the last image block never uses its queries."""
    nothing = [key for key in names if re.search(r"swin_block\.block_[12]\.attn\.k\.bias$", key)]
    return [*nothing, f"{CLIP}visual.transformer.resblocks.{blocks - 1}.attn.q_proj_weight"]


def say(line: str) -> None:
    """A line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def compare_training(official: Any, name: str) -> None:
    """Prints how far loss and norms of gradients are apart at real size."""
    model = our_model(SIZES[name], our_options(TRAIN))
    load_official(model, official.state_dict(), "official")
    (loss, grads), (wanted, theirs) = our_training(model), official_training(official)
    ours = {official_name(key): float(grad.norm()) for key, grad in grads.items()}
    norms = {key: float(grad.norm()) for key, grad in theirs.items()}
    nothing = without_gradient(norms, blocks=model.encoder.depth)
    apart = max(abs(ours[key] - norm) / norm for key, norm in norms.items() if key not in nothing)
    say(
        f"{name} training: loss {abs(float(loss - wanted)):.1e} of {float(wanted):.3f}, norms of {len(norms)} "
        f"gradients {apart:.1e} (relative; same names: {ours.keys() == norms.keys()})"
    )


def compare_real(official: Any, name: str) -> None:
    """Prints the largest differences between ours and the official model of real size."""
    state = official.state_dict()
    for key, case in REAL.items():
        model = our_model(SIZES[name], our_options(case))
        load_official(model, state, "official")
        ours, theirs = our_outputs(model, case), official_outputs(official, case)
        say(f"{name} {key}: " + ", ".join(f"{k} {float((ours[k] - theirs[k]).abs().max()):.1e}" for k in ours))
    compare_training(official, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catseg", type=Path, required=True, help="clone of github.com/cvlab-kaist/CAT-Seg")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder for the file")
    parser.add_argument("--size", default="toy", choices=SIZES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    official = official_model(args.catseg.resolve(), TRAIN.names, SIZES[args.size])
    if args.size != "toy":
        compare_real(official, args.size)
        return
    commit = subprocess.check_output(["git", "-C", args.catseg, "rev-parse", "HEAD"], text=True).strip()
    arrays: dict[str, Any] = {"commit": np.array(commit), "torch": np.array(torch.__version__)}
    for key, case in CASES.items():
        for what, value in official_outputs(official, case).items():
            arrays[f"{key}/{what}"] = value.numpy()
    loss, grads = official_training(official)
    arrays |= {"train/loss": loss.numpy(), "train/names": np.array(list(grads))}
    arrays["train/norms"] = torch.stack([grad.norm() for grad in grads.values()]).numpy()
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "catseg_model.npz", **arrays)


if __name__ == "__main__":
    main()
