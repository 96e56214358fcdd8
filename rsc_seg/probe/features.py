"""Token features of a labelled set in memory, and what the labels say about each token."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import IGNORE
from rsc_seg.probe.settings import ProbeSettings

log = logging.getLogger(__name__)

FeatureFn = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B D h w"]]
LayersFn = Callable[[Float[Tensor, "B 3 H W"]], Sequence[Float[Tensor, "B D h w"]]]


@dataclass(frozen=True)
class TokenFeatures:
    """All tokens of a set, one layer: `tokens` is (N, L, D) on the CPU, row by row; `grid` is (h, w) with h*w = L."""

    tokens: Float[Tensor, "N L D"]
    grid: tuple[int, int]


@dataclass(frozen=True)
class TokenLabels:
    """What the labels say about each token, and the maps that predictions are scored on.

    `share[n, l, t]`: share of class t among all pixels of token l's cell, void pixels included in the whole but in no
    class, so a row sums to the labelled share of the cell. `maps[n]`: uint8 labels at scoring resolution (sizes may
    differ).
    """

    share: Float[Tensor, "N L T"]
    maps: list[Integer[Tensor, "_ _"]]
    grid: tuple[int, int]

    def majority(self) -> Integer[Tensor, "N L"]:
        """The class with more than half of the token's cell, or -1."""
        top, name = self.share.max(dim=2)
        return torch.where(top > 0.5, name, -1)


class LabelledTokens(NamedTuple):
    """The tokens of a set and their labels, on one grid."""

    features: TokenFeatures
    labels: TokenLabels


def cell_shares(labels: Integer[np.ndarray, "H W"], grid: tuple[int, int], num_classes: int) -> Float[Tensor, "L T"]:
    """Share of each class in each token's cell of the label map; a pixel belongs to the cell that holds its centre.

    Values outside 0..T-1 count as void. A cell without a pixel (labels smaller than the grid) has an all-zero row.
    """
    height, width = labels.shape
    h, w = grid
    row = ((np.arange(height) + 0.5) * h / height).astype(np.int64)
    column = ((np.arange(width) + 0.5) * w / width).astype(np.int64)
    cell = row[:, None] * w + column[None]
    name = np.where((labels >= 0) & (labels < num_classes), labels, num_classes).astype(np.int64)
    counts = np.bincount((cell * (num_classes + 1) + name).ravel(), minlength=h * w * (num_classes + 1))
    counts = counts.reshape(h * w, num_classes + 1).astype(np.float64)
    share = counts[:, :num_classes] / np.maximum(counts.sum(1, keepdims=True), 1)
    return torch.from_numpy(share).float()


def resize_labels(labels: Integer[np.ndarray, "H W"], scale: float) -> Integer[Tensor, "h w"]:
    """The label map at `scale` (0..1] of its height and width, by picking the pixel nearest to each new centre; uint8
    or int16."""
    height, width = (max(1, round(side * scale)) for side in labels.shape)
    row = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(np.int64)
    column = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(labels[row[:, None], column[None]]))


def token_labels(
    data: LabelledSet, grid: tuple[int, int], score_scale: float, indices: Optional[Sequence[int]] = None
) -> TokenLabels:
    """Reads the label maps of the set (or of `indices` alone) once.

    Raises UserError when a map holds a value that is neither a class nor 255, or when no pixel of the set is labelled.
    """
    num_classes = len(data.classes)
    shares, maps = [], []
    for i in range(len(data)) if indices is None else indices:
        labels = data.labels(i)
        wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORE)]
        if wrong.size:
            raise UserError(
                f"{data.name(i)}: label {int(wrong[0])} is neither a class (0..{num_classes - 1}) nor {IGNORE}."
            )
        shares.append(cell_shares(labels, grid, num_classes))
        maps.append(resize_labels(labels, score_scale))
    share = torch.stack(shares) if shares else torch.zeros(0, grid[0] * grid[1], num_classes)
    if not bool((share > 0).any()):
        raise UserError(f"none of the {len(maps)} label maps holds a labelled pixel: nothing to measure.")
    return TokenLabels(share, maps, grid)


def image_batch(images: ImageSource, indices: Sequence[int], settings: ProbeSettings) -> Float[Tensor, "B 3 H W"]:
    """Images squashed to `settings.image_size` (bicubic, antialiased) and normalised."""
    frames = [fit_image(images.load(i), settings.image_size, "squash", name=images.name(i))[0] for i in indices]
    return normalize(torch.stack(frames), settings.mean, settings.std)


class LabelCache:
    """Token labels of one set (or of `indices` of it) for each token grid that is asked for, read when first needed."""

    def __init__(self, data: LabelledSet, score_scale: float, indices: Optional[Sequence[int]] = None) -> None:
        self.data = data
        self.score_scale = score_scale
        self.indices = indices
        self._by_grid: dict[tuple[int, int], TokenLabels] = {}

    def at(self, grid: tuple[int, int]) -> TokenLabels:
        """The labels for a grid of (h, w) tokens; see `token_labels`."""
        if grid not in self._by_grid:
            self._by_grid[grid] = token_labels(self.data, grid, self.score_scale, self.indices)
        return self._by_grid[grid]


def _batches(
    images: ImageSource, indices: Sequence[int], settings: ProbeSettings, name: str
) -> Iterator[tuple[slice, Sequence[int], Tensor]]:
    total, told = len(indices), 0
    for start in range(0, total, settings.batch_size):
        done = min(start + settings.batch_size, total)
        part = indices[start:done]
        yield slice(start, done), part, image_batch(images, part, settings)
        if done == total or done - told >= max(total / 5, 1):
            told = done
            log.info("%s: features of %d/%d images", name, done, total)


def extract_layers(
    layers_fn: LayersFn,
    images: ImageSource,
    settings: ProbeSettings,
    *,
    indices: Optional[Sequence[int]] = None,
    dtype: torch.dtype = torch.float32,
    name: str = "encoder",
) -> list[TokenFeatures]:
    """Tokens of every layer that `layers_fn` returns, from one pass over the images (or over `indices` alone), no
    gradient.

    `layers_fn` gets normalised float32 images on the CPU, moves them itself, and returns one map a layer. Memory:
    N * L * D * layers values of `dtype`, held on the CPU. Raises UserError for an empty set, a map of the wrong
    shape or of changing size, and for values that are not finite (naming the images).
    """
    chosen = range(len(images)) if indices is None else indices
    if len(chosen) == 0:
        raise UserError(f"{name}: the image set is empty.")
    layers: list[TokenFeatures] = []
    for place, part, batch in _batches(images, chosen, settings, name):
        with torch.inference_mode():
            maps = layers_fn(batch)
        for k, dense in enumerate(maps):
            if dense.ndim != 4 or len(dense) != len(part):
                raise UserError(
                    f"{name}: expected a map ({len(part)}, D, h, w) for each layer, got {tuple(dense.shape)}."
                )
            grid = (dense.shape[2], dense.shape[3])
            if k == len(layers):
                space = torch.empty(len(chosen), grid[0] * grid[1], dense.shape[1], dtype=dtype)
                layers.append(TokenFeatures(space, grid))
            if layers[k].grid != grid:
                raise UserError(f"{name}: the map changed from {layers[k].grid} to {grid} tokens between batches.")
            tokens = dense.flatten(2).transpose(1, 2).to("cpu", dtype)  # (B, D, h, w) to (B, L, D)
            if not bool(torch.isfinite(tokens).all()):
                raise UserError(
                    f"{name}: features are not finite in {dtype} on {', '.join(images.name(i) for i in part)}."
                )
            layers[k].tokens[place] = tokens
    return layers


def extract_tokens(
    feature_fn: FeatureFn, images: ImageSource, settings: ProbeSettings, *, name: str = "encoder"
) -> TokenFeatures:
    """Tokens of an encoder that returns one map; see `extract_layers`."""
    return extract_layers(lambda batch: [feature_fn(batch)], images, settings, name=name)[0]
