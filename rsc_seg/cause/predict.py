"""From tokens to pixels: cluster and linear predictions of all views, counted image by image."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from rsc_seg.cause.crf import CrfPool, crf_image
from rsc_seg.cause.scores import SegmentationScores, cluster_scores, count_pixels, linear_scores
from rsc_seg.cause.tokens import TokenSource
from rsc_seg.cause.views import Canvas, Views
from rsc_seg.data.transforms import normalize
from rsc_seg.errors import UserError

log = logging.getLogger(__name__)

FeatureFn = Callable[[Float[Tensor, "B L D"]], Float[Tensor, "B C h w"]]
LinearFn = Callable[[Float[Tensor, "B C h w"]], Float[Tensor, "B T h w"]]
CRF_SHARPNESS = 3.0
CrfTag = tuple[str, int, np.ndarray]


@dataclass(frozen=True)
class Segmenter:
    """What predicts: the head's `features` of tokens, the `centroids` of the cluster probe, the `linear` probe.

    All of it in eval mode and on `device`; nothing is trained here.
    """

    features: FeatureFn
    centroids: Float[Tensor, "T C"]
    linear: Optional[LinearFn] = None
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class EvalImages:
    """What is predicted on: views with their tokens, those of the mirrored views for the flip average, and the mean and
    std that the encoder's input was normalised by (for the CRF's picture)."""

    views: Views
    tokens: TokenSource
    flipped: Optional[TokenSource] = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass
class Evaluation:
    """Counts (T classes, T predictions) for each row, and the predictions that were to be kept, by row and image.

    Rows: `cluster`, `linear` without more; `cluster flip`, `linear flip` with the average over the mirrored view;
    `cluster crf` or `cluster flip crf` (the officially reported one) after the CRF.
    """

    counts: dict[str, Integer[Tensor, "T T"]] = field(default_factory=dict)
    kept: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def scores(self) -> dict[str, SegmentationScores]:
        """Scores of every row."""
        return {
            row: (cluster_scores if row.startswith("cluster") else linear_scores)(counts)
            for row, counts in self.counts.items()
        }

    def add(self, row: str, image: int, labels: np.ndarray, predicted: np.ndarray, *, classes: int, keep: bool) -> None:
        """Counts one image's prediction."""
        found = count_pixels(torch.from_numpy(labels.copy()), torch.from_numpy(predicted.copy()), classes)
        self.counts[row] = self.counts[row] + found if row in self.counts else found
        if keep:
            self.kept.setdefault(row, {})[image] = predicted


def upsample(planes: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Bilinear with half-pixel centres, as everywhere in CAUSE."""
    return F.interpolate(planes.float(), size=size, mode="bilinear", align_corners=False)


def cluster_argmax(
    features: Float[Tensor, "B C h w"], centroids: Float[Tensor, "T C"], size: tuple[int, int]
) -> Integer[Tensor, "B H W"]:
    """The centroid nearest by cosine to the upsampled feature of each pixel.

    The feature's norm is the same for all centroids, so the dot products are taken at the tokens and only they are
    upsampled: the same argmax as the official upsampling of all channels.
    """
    dots = torch.einsum("bchw,tc->bthw", features.float(), F.normalize(centroids.float(), dim=1))
    return upsample(dots, size).argmax(1)


def cluster_cosines(
    features: Float[Tensor, "B C h w"], centroids: Float[Tensor, "T C"], size: tuple[int, int]
) -> Float[Tensor, "B T H W"]:
    """Cosines of centroids and upsampled features, where their values matter (CRF, overlapping windows)."""
    full = F.normalize(upsample(features, size), dim=1)
    return torch.einsum("bchw,tc->bthw", full, F.normalize(centroids.float(), dim=1))


def flip_average(features: Float[Tensor, "B C h w"], of_mirrored: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """The mean of an image's features and its mirrored view's, turned back."""
    return (features + of_mirrored.flip(-1)) / 2


def _on_canvas(
    planes: Callable[[Float[Tensor, "B C h w"]], Float[Tensor, "B T R R"]],
    features: Float[Tensor, "V C h w"],
    canvas: Canvas,
) -> Float[Tensor, "T H W"]:
    """Scores of a canvas's views laid where they belong, averaged where they overlap."""
    if len(canvas.parts) == 1:
        return planes(features)[0]
    total: Optional[Tensor] = None
    weight = torch.zeros(canvas.height, canvas.width, device=features.device)
    for k, (_, left, top) in enumerate(canvas.parts):
        part = planes(features[k : k + 1])[0]
        height, width = part.shape[1:]
        if total is None:
            total = part.new_zeros(part.shape[0], canvas.height, canvas.width)
        total[:, top : top + height, left : left + width] += part
        weight[top : top + height, left : left + width] += 1
    if total is None:
        raise UserError(f"image {canvas.image}: no view covers it.")
    return total / weight


def _batches(canvases: Sequence[Canvas], batch_size: int) -> Iterator[list[Canvas]]:
    """Canvases in order, about `batch_size` views together."""
    batch: list[Canvas] = []
    for canvas in canvases:
        batch.append(canvas)
        if sum(len(c.parts) for c in batch) >= batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Evaluator:
    """One pass over all canvases."""

    def __init__(
        self, segmenter: Segmenter, images: EvalImages, crf: Optional[CrfPool[CrfTag]], keep: Collection[int]
    ) -> None:
        self.segmenter, self.images, self.crf, self.keep = segmenter, images, crf, frozenset(keep)
        self.side = (images.views.resolution, images.views.resolution)
        self.classes = len(images.views.data.classes)
        self.result = Evaluation()

    def features(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B C h w"]:
        """The head's features of a batch."""
        return self.segmenter.features(tokens.to(self.segmenter.device))

    def add(self, row: str, canvas: Canvas, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Counts a prediction."""
        self.result.add(row, canvas.image, labels, predicted, classes=self.classes, keep=canvas.image in self.keep)

    def rows(self, canvas: Canvas, features: Float[Tensor, "V C h w"], flip: str, labels: np.ndarray) -> None:
        """Predictions without the CRF."""
        centroids, linear, side = self.segmenter.centroids, self.segmenter.linear, self.side
        if len(canvas.parts) == 1:
            names = cluster_argmax(features, centroids, side)[0]
        else:
            names = _on_canvas(lambda f: cluster_cosines(f, centroids, side), features, canvas).argmax(0)
        self.add(f"cluster{flip}", canvas, labels, names.to("cpu", torch.uint8).numpy())
        if linear is not None:
            names = _on_canvas(lambda f: upsample(linear(f), side), features, canvas).argmax(0)
            self.add(f"linear{flip}", canvas, labels, names.to("cpu", torch.uint8).numpy())

    def submit(self, canvas: Canvas, features: Float[Tensor, "V C h w"], flip: str, labels: np.ndarray) -> None:
        """Hands a canvas to the CRF and counts what it has finished."""
        if self.crf is None:
            return
        cosines = _on_canvas(lambda f: cluster_cosines(f, self.segmenter.centroids, self.side), features, canvas)
        probabilities = (CRF_SHARPNESS * cosines).softmax(0).cpu().numpy()
        pixels = torch.from_numpy(self.images.views.canvas_pixels(canvas).copy()).permute(2, 0, 1)
        picture = normalize(pixels.float().div(255), self.images.mean, self.images.std).numpy()
        tag = (f"cluster{flip} crf", canvas.image, labels)
        self.collect(self.crf.put(tag, probabilities, crf_image(picture, self.images.mean, self.images.std)))

    def collect(self, finished: Sequence[tuple[CrfTag, UInt8[np.ndarray, "H W"]]]) -> None:
        """Counts predictions of the CRF."""
        for (row, image, labels), predicted in finished:
            self.result.add(row, image, labels, predicted, classes=self.classes, keep=image in self.keep)

    def batch(self, canvases: Sequence[Canvas]) -> None:
        """Predicts and counts some images."""
        views, images = self.images.views, self.images
        numbers = [view for canvas in canvases for view, _, _ in canvas.parts]
        plain = self.features(images.tokens.tokens(numbers))
        both = plain
        if images.flipped is not None:
            both = flip_average(plain, self.features(images.flipped.tokens(numbers)))
        flip = "" if images.flipped is None else " flip"
        start = 0
        for canvas in canvases:
            part = slice(start, start + len(canvas.parts))
            start = part.stop
            labels = views.canvas_labels(canvas)
            self.rows(canvas, plain[part], "", labels)
            if flip:
                self.rows(canvas, both[part], flip, labels)
            self.submit(canvas, both[part], flip, labels)


def _check(segmenter: Segmenter, images: EvalImages) -> None:
    views, classes = images.views, len(images.views.data.classes)
    if not views.canvases:
        raise UserError("training crops cannot be scored; take the views of a protocol (centre or full).")
    if segmenter.centroids.shape[0] != classes:
        raise UserError(
            f"the cluster probe has {segmenter.centroids.shape[0]} centroids, but {views.opened.rule.title} has "
            f"{classes} classes; it was made for another set."
        )
    for what, source in (("tokens", images.tokens), ("tokens of mirrored views", images.flipped)):
        if source is not None and len(source) != len(views):
            raise UserError(f"{what}: {len(source)} views, but the protocol has {len(views)}; open them for this one.")


@torch.no_grad()
def evaluate(
    segmenter: Segmenter,
    images: EvalImages,
    *,
    crf: Optional[CrfPool[CrfTag]] = None,
    batch_size: int = 16,
    keep: Collection[int] = (),
    name: str = "evaluation",
) -> Evaluation:
    """Predictions of all images, counted; memory does not grow with their number, but for the images of `keep`.

    `crf`: an entered pool; the CRF of one image then runs while the next ones are predicted. With `images.flipped` its
    row is the officially reported one. Raises UserError when probe and set do not fit, or a CRF process dies.
    """
    _check(segmenter, images)
    run = _Evaluator(segmenter, images, crf, keep)
    canvases = images.views.canvases
    begin, done, told = time.perf_counter(), 0, 0
    for batch in _batches(canvases, batch_size):
        run.batch(batch)
        done += len(batch)
        if done == len(canvases) or done - told >= max(len(canvases) / 5, 1):
            told = done
            log.info("%s: %d/%d images, %.0f s", name, done, len(canvases), time.perf_counter() - begin)
    if crf is not None:
        run.collect(crf.rest())
    return run.result
