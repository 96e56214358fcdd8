"""Boxes labelled with nouns by a CLIP: RegionText's pseudo-labels, made where no file of them is at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from rsc_seg.data.box_writer import Found, Written, write_boxes
from rsc_seg.data.nouns import Nouns
from rsc_seg.data.region_boxes import enlarged, letterboxed
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import normalize
from rsc_seg.errors import UserError

_BATCH = 64  # crops of one forward pass
BoxesOf = Callable[[int], Float[Tensor, "N 4"]]  # an image's number to its boxes x, y, width, height


class ImageEncoder(Protocol):
    """What the labels need of a CLIP's image tower: one vector for an image, in the space of its texts."""

    @property
    def mean(self) -> Sequence[float]:
        """Of the three channels, as it takes them."""

    @property
    def std(self) -> Sequence[float]:
        """Of the three channels."""

    def cls(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of normalised images."""


@dataclass(frozen=True)
class LabelOptions:
    """How boxes are shown to the CLIP and which labels are kept.

    crop_size: height, width of what it sees. enlarge: sides of that over the box's. threshold: least cosine; boxes
    below are left out. per_image: the best so many boxes of an image by cosine, None for all.
    """

    crop_size: tuple[int, int]
    enlarge: float = 1.5
    threshold: float = -1.0
    per_image: int | None = None


@torch.no_grad()
def label_crops(
    encoder: ImageEncoder, crops: Float[Tensor, "N 3 h w"], nouns: Float[Tensor, "K E"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The noun of each normalised crop (the nearest by cosine) and that cosine. `nouns` are unit embeddings."""
    if not len(crops):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    found = [F.normalize(encoder.cls(part.to(nouns.device)).float(), dim=1) @ nouns.T for part in crops.split(_BATCH)]
    best = torch.cat(found).max(dim=1)
    return best.indices.cpu(), best.values.cpu()


def label_image(
    encoder: ImageEncoder,
    nouns: Float[Tensor, "K E"],
    image: Image.Image,
    boxes: Float[Tensor, "N 4"],
    options: LabelOptions,
) -> Found:
    """COCO-format annotations (bbox, category_id from 0, score, area, iscrowd) of an RGB image's boxes, best first."""
    cuts = [enlarged(box, options.enlarge, image.size) for box in boxes.tolist()]
    crops = [normalize(letterboxed(image, cut, options.crop_size), encoder.mean, encoder.std) for cut in cuts]
    numbers, scores = label_crops(encoder, torch.stack(crops) if crops else torch.zeros(0, 3, 1, 1), nouns)
    order = [i for i in scores.argsort(descending=True, stable=True).tolist() if scores[i] >= options.threshold]
    return [
        {
            "bbox": [round(float(v), 3) for v in boxes[i]],
            "category_id": int(numbers[i]),
            "score": round(float(scores[i]), 6),
            "area": round(float(boxes[i, 2] * boxes[i, 3]), 3),
            "iscrowd": 0,
        }
        for i in order[: options.per_image]
    ]


def write_pseudo_labels(
    path: Path,
    source: ImageSource,
    boxes: BoxesOf,
    *,
    encoder: ImageEncoder,
    embeddings: Float[Tensor, "K E"],
    nouns: Nouns,
    options: LabelOptions,
    key: str = "",
) -> Written:
    """Writes the boxes of all images of `source`, each with its nearest noun, in the form that PseudoLabels reads.

    `embeddings` are the nouns' unit vectors in the encoder's joint space, on its device; `key` names all that the
    labels depend on, see `write_boxes`. Raises UserError when nouns and embeddings differ in number, or no box is kept.
    """
    if len(nouns) != len(embeddings):
        raise UserError(f"{nouns.where}: {len(nouns)} nouns for {len(embeddings)} embeddings; they must be as many.")

    def make(image: Image.Image, i: int) -> Found:
        return label_image(encoder, embeddings, image, boxes(i), options)

    return write_boxes(path, source, make, key=key, names=nouns.names, info={"made": "pseudo-labels"})
