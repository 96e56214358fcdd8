"""Writes golden/losses_*.npz: losses and gradients of CLIPSelf and RegionText by the official code at toy size, seeded.

    python -m tests.parity.make_losses_golden --clipself CHECKOUT [--out DIR]

The checkout is a clone of github.com/wusize/CLIPSelf; it needs einops, ftfy and regex besides this project's packages.
Tests take weights, pictures, boxes and nouns from this file, so that only outputs are stored. The official code is
called here and is no part of this project.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.parity.make_clip_golden import GOLDEN, TINY, VARIANTS, boxes_of_two_images, official_tower, seeded_images

LOSSES = {
    f"losses_{family}": replace(TINY[f"clipself_{family}"], width=16, depth=2, sizes=((320, 320),))
    for family in ("openai", "eva")
}
VARIANTS.update(LOSSES)  # where the seeded weights are looked up
SIZE, CROP, PLACES, NOUNS, SAMPLED, SCALE, DRAW = (320, 320), (224, 224), 6, 150, 100, math.log(50), 11


def padded_boxes() -> tuple[Tensor, Tensor]:
    """The boxes of two images, in parts of them, at the first of `PLACES` places (2, N, 4), and which are filled."""
    boxes, valid = torch.zeros(2, PLACES, 4), torch.zeros(2, PLACES, dtype=torch.bool)
    for i, own in enumerate(boxes_of_two_images()):
        boxes[i, : len(own)], valid[i, : len(own)] = own, True
    return boxes, valid


def seeded_crops() -> Tensor:
    """What the teacher sees of every place, (2, N, 3, h, w)."""
    numbers = np.random.RandomState(7).standard_normal((2, PLACES, 3, *CROP))
    return torch.from_numpy(numbers.astype(np.float32))


def seeded_nouns(width: int) -> tuple[Tensor, Tensor]:
    """Embeddings (150, width), not normalised, and a noun for every place (2, N)."""
    rng = np.random.RandomState(8)
    embeddings = rng.standard_normal((NOUNS, width)).astype(np.float32)
    return torch.from_numpy(embeddings), torch.from_numpy(rng.randint(0, NOUNS, (2, PLACES)))


class OfficialModel(nn.Module):
    """A tower in the official CLIP's methods, which the training code calls."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        from open_clip.model import CLIP  # the checkout's own

        self.official, self.visual = CLIP, official_tower(variant)
        self.visual.image_size = CROP
        self.logit_scale = nn.Parameter(torch.tensor(SCALE))

    def encode_pseudo_boxes(self, *args: Any, **named: Any) -> Tensor:
        return self.official.encode_pseudo_boxes(self, *args, **named)

    def encode_image(self, *args: Any, **named: Any) -> Tensor:
        return self.official.encode_image(self, *args, **named)


def stepped(method: Any, batch: tuple[Tensor, ...], variant: str, teacher: nn.Module | None) -> dict[str, np.ndarray]:
    """The loss of an official method, and the gradients of the tower's blocks."""
    model = OfficialModel(variant)
    args = SimpleNamespace(multiscale=False, extract_type="v2", cosine_weight=1.0, contrast_weight=1.0)
    losses, _, _ = method(batch, model, teacher, None, "cpu", torch.float32, False, args)
    (loss,) = losses.values()
    loss.backward()
    blocks = {n: p for n, p in model.visual.named_parameters() if "blocks." in n}
    gradients = {f"gradient/{n}": torch.zeros_like(p) if p.grad is None else p.grad for n, p in blocks.items()}
    return {key: value.detach().numpy() for key, value in ({"loss": loss} | gradients).items()}


def clipself(variant: str) -> dict[str, np.ndarray]:
    """A CLIPSelf step from the start: student and teacher have the same weights."""
    from training.clipself import CLIPSelf  # the checkout's own

    boxes, valid = padded_boxes()
    marked = torch.cat([boxes, valid[..., None].float()], dim=-1)
    found = stepped(CLIPSelf(), (seeded_images(SIZE), marked, seeded_crops()), variant, OfficialModel(variant))
    with torch.no_grad():
        rois = [own[mine] for own, mine in zip(boxes, valid, strict=True)]
        features = OfficialModel(variant).encode_pseudo_boxes(seeded_images(SIZE), rois, True, "v2")
    return found | {"features": normalize(features, dim=-1).numpy()}


def regiontext(variant: str) -> dict[str, np.ndarray]:
    """A step with nouns; which classes the official code drew is stored with it."""
    from training import region_clip  # the checkout's own

    (boxes, valid), (embeddings, nouns) = padded_boxes(), seeded_nouns(LOSSES[variant].joint)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nouns.npy"
        np.save(file, embeddings.numpy())
        method = region_clip.RegionCLIP(SimpleNamespace(train_embed_path=str(file)))
    marked = torch.cat([boxes, nouns[..., None].float(), valid[..., None].float()], dim=-1)
    torch.manual_seed(DRAW)
    classes = region_clip.get_fed_loss_inds(nouns[valid], SAMPLED, NOUNS)

    def seeded(*args: Any) -> Any:
        torch.manual_seed(DRAW)  # as late as here: making the model draws numbers, too
        return method(*args)

    return stepped(seeded, (seeded_images(SIZE), marked), variant, None) | {"classes": classes.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clipself", type=Path, required=True, help="clone of github.com/wusize/CLIPSelf")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder for the files")
    args = parser.parse_args()
    checkout = args.clipself.resolve()
    commit = subprocess.check_output(["git", "-C", checkout, "rev-parse", "HEAD"], text=True).strip()
    os.environ["RoPE"] = "1"  # noqa: SIM112 (so read by CLIPSelf's EVA code)
    sys.path.insert(0, str(checkout / "src"))
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for variant in LOSSES:
        arrays = {"commit": np.array(commit), "torch": np.array(torch.__version__)}
        for name, made in (("clipself", clipself), ("regiontext", regiontext)):
            arrays |= {f"{name}/{key}": value for key, value in made(variant).items()}
        np.savez_compressed(args.out / f"{variant}.npz", **arrays)


if __name__ == "__main__":
    main()
