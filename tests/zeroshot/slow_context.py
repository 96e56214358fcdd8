"""MaskCLIP, coupling ratio and context aggregation a second time: loops, float64, nothing of rsc_seg but encoders."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rsc_seg.models.encoder import DenseEncoder

Array = np.ndarray
SIZES = ((40, 64), (64, 40), (48, 48), (36, 60))  # height, width of the four pictures


def write_pictures(root: Path, classes: int = 5, split: str = "val", count: int = 4, first: int = 0) -> Path:
    """Pictures of coloured blocks and their labels in the layout `plain`, with a row of 255 in each."""
    for i in range(count):
        draw, (height, width) = np.random.default_rng(first + i), SIZES[i % len(SIZES)]
        cells = (height // 8 + 1, width // 8 + 1)
        pixels = np.kron(draw.integers(0, 256, (*cells, 3)), np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)
        parts = draw.integers(0, classes - 1, (height // 22 + 1, width // 22 + 1))
        labels = np.kron(parts, np.ones((22, 22)))[:height, :width].astype(np.uint8)
        labels[-3:] = 255  # the last class is never labelled
        for folder, array in (("images", pixels), ("labels", labels)):
            path = root / split / folder / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    names = ", ".join(f'"thing {t}"' for t in range(classes))
    (root / "classes.json").write_text(f'{{"names": [{names}]}}')
    return root


def encoded(encoder: DenseEncoder, pixels: Array) -> Array:
    """Dense features (h, w, E) of an array (H, W, 3) of values 0..1."""
    x = (pixels.astype(np.float32) - np.float32(encoder.mean)) / np.float32(encoder.std)
    with torch.no_grad():
        dense = encoder.dense(torch.from_numpy(x).permute(2, 0, 1)[None])
    return dense[0].permute(1, 2, 0).double().numpy()


def squashed(path: Path, size: tuple[int, int]) -> Array:
    """A picture at `size` (height, width), values 0..1."""
    image = Image.open(path).convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def unit(values: Array) -> Array:
    """Vectors along the last axis at length one."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def line_weights(before: int, after: int) -> Array:
    """(after, before): bilinear interpolation of a line, half-pixel centres, ends clamped."""
    found = np.zeros((after, before))
    for i in range(after):
        at = min(max((i + 0.5) * before / after - 0.5, 0), before - 1)
        low = min(int(at), before - 1)
        found[i, low] += 1 - (at - low)
        found[i, min(low + 1, before - 1)] += at - low
    return found


def enlarged(scores: Array, size: tuple[int, int]) -> Array:
    """(T, h, w) at `size`."""
    return np.einsum(
        "yh,thw,xw->tyx", line_weights(scores.shape[1], size[0]), scores, line_weights(scores.shape[2], size[1])
    )


def slow_labels(
    encoder: DenseEncoder,
    embeddings: Array,
    path: Path,
    *,
    short: int,
    window: int | None,
    stride: int,
    scale: float | None,
) -> Array:
    """The class of every pixel; `scale` None averages cosines, else probabilities."""
    width, height = Image.open(path).size
    step = encoder.patch_size if window is None else 1
    factor = short / min(width, height)
    high, wide = (max(step, round(side * factor / step) * step) for side in (height, width))
    pixels = squashed(path, (high, wide))
    tall, broad = (high, wide) if window is None else (window, window)
    total, count = np.zeros((len(embeddings), high, wide)), np.zeros((high, wide))
    tops = sorted({*range(0, high - tall + 1, stride), high - tall})
    lefts = sorted({*range(0, wide - broad + 1, stride), wide - broad})
    for top in tops:
        for left in lefts:
            tokens = unit(encoded(encoder, pixels[top : top + tall, left : left + broad]))
            scores = np.einsum("hwe,te->thw", tokens, unit(embeddings))
            if scale is not None:
                scores = np.exp(scale * scores) / np.exp(scale * scores).sum(axis=0)
            total[:, top : top + tall, left : left + broad] += enlarged(scores, (tall, broad))
            count[top : top + tall, left : left + broad] += 1
    return enlarged(total / count, (height, width)).argmax(axis=0)


def slow_scores(pairs: Sequence[tuple[Array, Array]], classes: int) -> dict[str, float]:
    """Scores in percent from labels and answers, class by class with sets of pixels."""
    truth = np.concatenate([labels.ravel() for labels, _ in pairs])
    answer = np.concatenate([found.ravel() for _, found in pairs])[truth != 255]
    truth = truth[truth != 255]
    iou, recall, share = {}, {}, {}
    for t in range(classes):
        both, either = np.sum((truth == t) & (answer == t)), np.sum((truth == t) | (answer == t))
        if either:
            iou[t] = both / either
        if np.any(truth == t):
            recall[t], share[t] = both / np.sum(truth == t), np.mean(truth == t)
    return {
        "miou": 100 * float(np.mean([iou[t] for t in recall])),
        "miou_union": 100 * float(np.mean(list(iou.values()))),
        "macc": 100 * float(np.mean(list(recall.values()))),
        "pacc": 100 * float(np.mean(truth == answer)),
        "fwiou": 100 * float(sum(share[t] * iou[t] for t in recall)),
    }


def slow_ratios(alone: tuple[Array, Array], joint: Array, use: tuple[Array, Array]) -> tuple[list[float], list[float]]:
    """Numerators and denominators of Eq. 15 for one pair: maps (h, w, E) alone, (h, 2w, E) joint, masks (h, w)."""
    a, b = (unit(m) for m in alone)
    width = a.shape[1]
    left, right = unit(joint)[:, :width], unit(joint)[:, width:]
    above, below = [], []
    for y, x in np.argwhere(use[0]):
        best, place = -math.inf, (0, 0)
        for v, u in np.argwhere(use[1]):
            cosine = float(left[y, x] @ right[v, u])
            if cosine > best:
                best, place = cosine, (v, u)
        above.append(best)
        below.append(float(a[y, x] @ b[place]))
    return above, below


def slow_contexts(
    seed: int, name: str, count: int, names: Sequence[str], places: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """Context, row and column of every draw, as docs/context.md says."""
    generator = np.random.default_rng([seed, *np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32)])
    found = []
    for _ in range(count):
        row, column = generator.integers(places[0]), generator.integers(places[1])
        context = generator.integers(len(names))
        while names[context] == name:
            context = generator.integers(len(names))
        found.append((int(context), int(row), int(column)))
    return found


def slow_mean(
    encode: Callable[[Array], Array], target: Array, contexts: Sequence[tuple[Array, int, int]], patch: int
) -> Array:
    """Mean over the contexts of the target's tokens (h, w, E)."""
    h, w = target.shape[0] // patch, target.shape[1] // patch
    cut = []
    for context, row, column in contexts:
        canvas = context.copy()
        for y in range(target.shape[0]):
            canvas[row * patch + y, column * patch : column * patch + target.shape[1]] = target[y]
        cut.append(encode(canvas)[row : row + h, column : column + w])
    return np.mean(cut, axis=0)
