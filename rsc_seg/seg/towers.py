"""Whether an image tower is fit to train on: it must be alive, and beat chance without any training."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import ConfusionMatrix
from rsc_seg.seg.aggregator import cost_volume
from rsc_seg.seg.model import CatSeg

log = logging.getLogger(__name__)

Sample = tuple[Float[Tensor, "3 H W"], Int[Tensor, "H W"]]  # RGB from 0 to 255, and labels with 255 for ignored pixels
SHUFFLES = 200
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class ZeroShot:
    """mIoU of the cost maps alone, and what the same predictions score when class names are shuffled among them."""

    miou: float
    chance: float
    spread: float  # standard deviation over shuffles
    images: int

    @property
    def better_than_chance(self) -> bool:
        """More than two standard deviations above the mean over shuffles."""
        return self.miou > self.chance + 2 * self.spread


def _matrix_miou(matrix: Int[Tensor, "T T"]) -> float:
    counts = matrix.double()
    hit, truth = counts.diagonal(), counts.sum(1)
    present = truth > 0
    return float((hit / (truth + counts.sum(0) - hit))[present].mean())


@torch.no_grad()
def zero_shot(model: CatSeg, samples: Iterable[Sample], names: Sequence[str]) -> ZeroShot:
    """Labels every place with the class of the highest cosine, mean over templates; nothing trained takes part.

    Compared at four times the grid, mean over the classes in the labels. Chance keeps the predicted regions and
    shuffles which name they carry, over the whole vocabulary. Raises UserError without samples or labelled pixels.
    """
    text = model.embed_classes(names)
    size = (4 * model.options.grid[0], 4 * model.options.grid[1])
    confusion, images = ConfusionMatrix(len(text)), 0
    for image, labels in samples:
        dense, _ = model.features(model.prepare([image]))
        cost = cost_volume(dense, text[None]).mean(dim=1)  # (1, T, h, w)
        found = F.interpolate(cost, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
        truth = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
        confusion.update(truth.cpu(), found.cpu())
        images += 1
    if not images or not bool(confusion.matrix.any()):
        raise UserError(f"zero-shot score: {images} images without a labelled pixel; give images with labels.")
    draw = torch.Generator().manual_seed(0)
    shuffles = [torch.randperm(len(text), generator=draw) for _ in range(SHUFFLES)]
    scores = torch.tensor([_matrix_miou(confusion.matrix[:, order]) for order in shuffles])
    return ZeroShot(_matrix_miou(confusion.matrix), float(scores.mean()), float(scores.std()), images)


@torch.no_grad()
def check_alive(model: CatSeg) -> None:
    """UserError when features of noise are not finite, the same everywhere, or the same for different images."""
    height, width = model.image_size
    draw = torch.Generator().manual_seed(0)
    # noise of several scales, so that patches differ in more than their mean
    noise = sum(
        F.interpolate(
            torch.rand(2, 3, n, n, generator=draw), size=(height, width), mode="bilinear", align_corners=False
        )
        for n in (4, 16, 64)
    )
    assert isinstance(noise, Tensor)
    dense, _ = model.features(model.normalise((noise * 85).to(model.device)))
    name = model.encoder.name
    if not bool(torch.isfinite(dense).all()):
        raise UserError(f"image tower {name}: its features are not finite; use an earlier checkpoint.")
    unit = F.normalize(dense.float().flatten(2), dim=1)
    for what, axis in (("at every place", 2), ("for different images", 0)):
        if float(unit.std(dim=axis).mean()) < _LEAST_SPREAD:
            raise UserError(f"image tower {name}: its features are the same {what}: the weights are broken.")


def check_tower(model: CatSeg, samples: Iterable[Sample], names: Sequence[str], *, refuse: bool = True) -> ZeroShot:
    """`check_alive`, then the zero-shot score, which is logged.

    Raises UserError when it is no better than chance: then image and text tower do not share a space, or the weights
    are broken, and training would not tell. Without `refuse` that is a warning (random weights of a dry run).
    """
    check_alive(model)
    score = zero_shot(model, samples, names)
    told = (
        f"zero-shot mIoU {100 * score.miou:.2f} on {score.images} images and {len(names)} classes, "
        f"{100 * score.chance:.2f} +- {100 * score.spread:.2f} by chance"
    )
    if score.better_than_chance:
        log.info("%s: %s", model.encoder.name, told)
    elif refuse:
        raise UserError(
            f"image tower {model.encoder.name}: {told}: its features do not fit the text tower; check that the weights "
            "belong to this CLIP, or skip this check where random weights are meant."
        )
    else:
        log.warning("%s: %s: no better than chance", model.encoder.name, told)
    return score
