"""From images of any size to probabilities or labels at any size: one view, or tiles and a global view."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.seg.aggregator import ClassLogits
from rsc_seg.seg.model import CatSeg, Classes

Size = tuple[int, int]


@dataclass(frozen=True)
class SlidingOptions:
    """The protocol of the published numbers.

    An image is resized to `size` (height, width; aspect ratio not kept), cut into tiles of `window` pixels a side that
    overlap by the share `overlap`, and seen once more as a whole at the size of a tile (`global_view`). The last tile
    of a row or column lies flush with the border. Probabilities of tiles are averaged, and so are the result and the
    global view's.
    """

    size: Size = (640, 640)
    window: int = 384
    overlap: float = 0.333
    global_view: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap={self.overlap}: must be from 0 to below 1.")
        if not 1 <= self.window <= min(self.size):
            raise UserError(f"window={self.window}: must be from 1 to the sides of size={self.size}.")

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of every tile, row by row."""
        stride = max(1, int(self.window * (1 - self.overlap)))
        starts = []
        for side in self.size:
            places = list(range(0, side - self.window + 1, stride))
            starts.append(places if places[-1] == side - self.window else [*places, side - self.window])
        return [(top, left) for top in starts[0] for left in starts[1]]


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image with the names that they stand for; `scores` is the winning probability."""

    labels: Int[Tensor, "H W"]
    scores: Float[Tensor, "H W"]
    names: tuple[str, ...]


def _views(model: CatSeg, image: Float[Tensor, "3 H W"], sliding: SlidingOptions) -> Float[Tensor, "V 3 h w"]:
    """Tiles, then the global view, resized for the image tower and normalised."""
    side = sliding.window
    raw = image.to(model.device, torch.float32)[None]
    whole = F.interpolate(raw, size=sliding.size, mode="bilinear", align_corners=False)
    tiles = [whole[..., top : top + side, left : left + side] for top, left in sliding.corners]
    if sliding.global_view:
        tiles.append(F.interpolate(raw, size=(side, side), mode="bilinear", align_corners=False))
    return model.resize(model.normalise(torch.cat(tiles)))


def _stitched(probabilities: Float[Tensor, "V N s s"], sliding: SlidingOptions) -> Float[Tensor, "N H W"]:
    """Mean of the tiles wherever they lie, then mean with the global view."""
    corners, side = sliding.corners, sliding.window
    total = probabilities.new_zeros(probabilities.shape[1], *sliding.size)
    count = probabilities.new_zeros(sliding.size)
    for tile, (top, left) in zip(probabilities[: len(corners)], corners, strict=True):
        total[:, top : top + side, left : left + side] += tile
        count[top : top + side, left : left + side] += 1
    total /= count
    if not sliding.global_view:
        return total
    whole = F.interpolate(probabilities[-1:], size=sliding.size, mode="bilinear", align_corners=False)[0]
    return total.add_(whole).div_(2)


def _at_size(maps: Float[Tensor, "N h w"], size: Size) -> Float[Tensor, "N H W"]:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class _Pending:
    """Logits of one image's views, from which probabilities are made a few classes at a time."""

    logits: ClassLogits
    shape: Size  # of the image
    size: Size  # of the result
    sliding: SlidingOptions | None
    crop: bool

    def probabilities(self, numbers: Int[Tensor, "N"]) -> Float[Tensor, "N H W"]:
        values = self.logits.select(numbers).float()
        if self.sliding is None:
            maps = values.sigmoid()[0]
            # the official code crops the map by the image's height and width, which acts on images smaller than it
            maps = maps[:, : self.shape[0], : self.shape[1]] if self.crop else maps
        else:
            side = (self.sliding.window, self.sliding.window)
            grown = F.interpolate(values, size=side, mode="bilinear", align_corners=False)
            maps = _stitched(grown.sigmoid_(), self.sliding)
        return _at_size(maps, self.size)


def _run(
    model: CatSeg,
    images: Sequence[Tensor],
    text: Float[Tensor, "T P E"],
    *,
    sizes: Sequence[Size] | None,
    sliding: SlidingOptions | None,
    view_batch: int,
) -> Iterator[_Pending]:
    """One image after another; views of neighbouring images share batches of `view_batch`."""
    if sizes is not None and len(sizes) != len(images):
        raise UserError(f"{len(images)} images and {len(sizes)} sizes: give one (height, width) for each image.")
    if view_batch < 1:
        raise UserError(f"view_batch={view_batch}: must be 1 or more.")
    each = 1 if sliding is None else len(sliding.corners) + int(sliding.global_view)
    # whole images to a group, so that no more views than one group's are held
    step = max(1, view_batch // each)
    crop = model.options.alignment == "official"
    for start in range(0, len(images), step):
        group = images[start : start + step]
        for image in group:
            if image.ndim != 3 or image.shape[0] != 3:
                raise UserError(f"image of shape {tuple(image.shape)}: give (3, height, width), RGB from 0 to 255.")
        x = model.prepare(group) if sliding is None else torch.cat([_views(model, i, sliding) for i in group])
        found = [model.logits(part, text) for part in x.split(view_batch)]
        logits = found[0]
        if len(found) > 1:
            kept = [part.classes for part in found if part.classes is not None]
            logits = ClassLogits(
                torch.cat([part.values for part in found]), logits.total, torch.cat(kept) if kept else None
            )
        for i, image in enumerate(group):
            shape = (image.shape[1], image.shape[2])
            size = shape if sizes is None else sizes[start + i]
            yield _Pending(logits.images(i * each, (i + 1) * each), shape, size, sliding, crop)


def _embedded(model: CatSeg, classes: Classes) -> Tensor:
    return classes if isinstance(classes, Tensor) else model.embed_classes(classes)


@torch.no_grad()
def predict_probabilities(
    model: CatSeg,
    images: Sequence[Float[Tensor, "3 H W"]],
    classes: Classes,
    *,
    sizes: Sequence[Size] | None = None,
    sliding: SlidingOptions | None = None,
    view_batch: int = 5,
) -> list[Float[Tensor, "T H W"]]:
    """Probability of every class at every pixel, one tensor an image, at the image's own size or `sizes`.

    Memory grows with classes times pixels; for large vocabularies take `predict_labels`. The model should be in
    evaluation mode. Several images at once give what each gives alone.
    """
    text, out = _embedded(model, classes), []
    for pending in _run(model, images, text, sizes=sizes, sliding=sliding, view_batch=view_batch):
        kept = pending.logits.kept()
        maps = pending.logits.values.new_zeros(len(text), *pending.size, dtype=torch.float32)
        for numbers in kept.split(model.options.class_chunk):
            maps[numbers] = pending.probabilities(numbers)
        out.append(maps)
    return out


@torch.no_grad()
def predict_labels(
    model: CatSeg,
    images: Sequence[Float[Tensor, "3 H W"]],
    names: Sequence[str],
    *,
    sizes: Sequence[Size] | None = None,
    sliding: SlidingOptions | None = None,
    view_batch: int = 5,
    text: Float[Tensor, "T P E"] | None = None,
) -> list[Segmentation]:
    """The most probable class at every pixel, without holding the probabilities of all classes at full size.

    Equals the argmax of `predict_probabilities`, the lowest number at equal values. Classes that no view has kept are
    never computed. `text`: embeddings of `names` where they are at hand.
    """
    text, out = model.embed_classes(names) if text is None else text, []
    for pending in _run(model, images, text, sizes=sizes, sliding=sliding, view_batch=view_batch):
        best = torch.full(pending.size, -1.0, device=text.device)
        labels = torch.zeros(pending.size, dtype=torch.long, device=text.device)
        for numbers in pending.logits.kept().split(model.options.class_chunk):
            score, place = pending.probabilities(numbers).max(dim=0)
            better = score > best
            labels = torch.where(better, numbers[place], labels)
            best = torch.where(better, score, best)
        out.append(Segmentation(labels, best, tuple(names)))
    return out
